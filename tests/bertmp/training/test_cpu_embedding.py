"""Word embeddings reuse their gradient's memory, and nobody can tell but by the clock."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bertmp.model.config import BertConfig
from bertmp.training.cpu_tuning import Dropout, WordEmbedding, tune_for_cpu, word_embeddings
from bertmp.training.distributed.sharding import clip_gradients
from tests.models import classifier

CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=16,
).with_labels(("a", "b"))


class Reader(nn.Module):
    """A table and a product: enough to have a gradient of each kind."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table, self.product = table, nn.Linear(8, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.product(self.table(ids)).square().sum()


def pair() -> tuple[Reader, Reader]:
    """The same model over torch's own table and over ours."""
    torch.manual_seed(0)
    theirs = Reader(nn.Embedding(50, 8, padding_idx=0))
    ours = Reader(WordEmbedding(50, 8, padding_idx=0))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


BATCHES = [torch.tensor([[3, 0, 7], [7, 49, 3]]), torch.tensor([1, 1, 2]), torch.tensor([0, 7])]


@pytest.mark.parametrize("limit", [0.01, 1e9])
def test_gradients_and_clipping_are_those_of_the_plain_table(limit: float) -> None:
    theirs, ours = pair()
    for batches in (BATCHES[:1], BATCHES[1:], BATCHES):  # the later two accumulate several batches
        for ids in batches:
            theirs(ids).backward()
            ours(ids).backward()
        expected = float(nn.utils.clip_grad_norm_(theirs.parameters(), limit))
        assert clip_gradients(ours, limit) == pytest.approx(expected, rel=1e-6)
        for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
            assert torch.allclose(one.grad, other.grad, rtol=1e-5, atol=1e-9)
        theirs.zero_grad()
        ours.table.recycle_grad()
        ours.zero_grad()


def test_memory_comes_again_and_is_clear() -> None:
    _, ours = pair()
    ours(BATCHES[0]).backward()
    first = ours.table.weight.grad.data_ptr()
    ours.table.recycle_grad()
    assert ours.table.weight.grad is None
    ours(BATCHES[1]).backward()
    gradient = ours.table.weight.grad
    assert gradient.data_ptr() == first
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [1, 2]


def test_table_with_dense_grad_is_cleared_entirely() -> None:
    _, ours = pair()
    ours.table.dense_grad = True
    for _ in range(2):
        (ours(BATCHES[0]) + ours.table.weight.square().sum()).backward()
        assert ours.table.rows() is None
        expected = (2 * ours.table.weight)[[5, 6]]
        assert torch.allclose(ours.table.weight.grad[[5, 6]], expected)
        ours.table.recycle_grad()
    assert word_embeddings(ours) == [ours.table]


def test_it_looks_up_plainly_outside_training() -> None:
    _, ours = pair()
    with torch.no_grad():
        assert ours.table(BATCHES[0]).grad_fn is None
    ours.eval()
    ours(BATCHES[0]).backward()
    assert ours.table.rows() is None


def test_tuned_model_has_the_same_names_and_parameters() -> None:
    head = classifier(CONFIG)
    modules, parameters = [name for name, _ in head.named_modules()], dict(head.named_parameters())
    tune_for_cpu(head)
    assert [name for name, _ in head.named_modules()] == modules
    tuned = dict(head.named_parameters())
    assert list(tuned) == list(parameters)
    assert all(tuned[name] is parameter for name, parameter in parameters.items())
    assert isinstance(head.bert.embeddings.word_embeddings, WordEmbedding)
    assert {type(module) for module in head.modules() if isinstance(module, nn.Dropout)} == {Dropout}
