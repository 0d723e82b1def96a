"""The model answers like transformers' from the same folder, in both directions."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import transformers

from bertmp.data.tokenizer import Tokenizer
from bertmp.model.checkpoint import load_checkpoint, save_checkpoint
from bertmp.model.config import ACTIVATIONS, BertConfig
from bertmp.model.heads import LossOptions
from bertmp.model.packed import Batch, Packed, ShapeGrid, bucket_by_length, has_varlen_kernel
from tests.models import batch, classifier, packed

TOLERANCE = 1e-5
LABELS = ("no", "perhaps", "yes")
SMALL = BertConfig(
    vocab_size=30522,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=40,
    labels=LABELS,
)


@torch.no_grad()
def _difference(ours: torch.nn.Module, theirs: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    expected = theirs(**inputs).logits
    # An output of zeros would agree with anything.
    assert expected.abs().max() > 0.1
    return float((ours(**inputs) - expected).abs().max())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_transformers_reads_what_we_save(activation: str, minilm: Path, tmp_path: Path) -> None:
    config = replace(SMALL, hidden_act=activation)
    model = classifier(config)
    save_checkpoint(tmp_path / "ours", model, config, Tokenizer.load(minilm))

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()

    assert type(theirs).__name__ == "BertForSequenceClassification"
    assert [theirs.config.id2label[number] for number in range(3)] == list(LABELS)
    assert _difference(model, theirs, batch(config.vocab_size)) <= TOLERANCE


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_we_read_what_transformers_saves(activation: str, minilm: Path, tmp_path: Path) -> None:
    theirs = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
            hidden_act=activation,
            num_labels=5,
            initializer_range=0.2,
        )
    ).eval()
    theirs.save_pretrained(tmp_path)
    Tokenizer.load(minilm).save(tmp_path)

    ours = load_checkpoint(tmp_path)

    assert ours.labels == tuple(f"LABEL_{number}" for number in range(5))
    assert ours.missing_keys == ours.unexpected_keys == ()
    assert _difference(ours.model, theirs, batch(30522)) <= TOLERANCE


def test_a_real_encoder_has_the_states_of_transformers(minilm: Path) -> None:
    ours = load_checkpoint(minilm)
    theirs = transformers.BertModel.from_pretrained(minilm).eval()
    inputs = batch(30522, rows=4, length=30)
    with torch.no_grad():
        states, pooled = ours.model(**inputs)
        expected = theirs(**inputs)
    tokens = inputs["attention_mask"].bool()
    assert (states - expected.last_hidden_state)[tokens].abs().max() <= TOLERANCE
    assert (pooled - expected.pooler_output).abs().max() <= TOLERANCE


def test_the_tokenizer_is_that_of_transformers(minilm: Path, tmp_path: Path) -> None:
    texts = [
        "What is an atom ?",
        "Naïve café — 日本語 \u2028 […]",
        "unbelievablyunsplittable",
        "A" * 300,
        "🙂 ok",
    ]
    ours, saved = Tokenizer.load(minilm), tmp_path / "saved"
    saved.mkdir()
    ours.save(saved)
    for folder in (minilm, saved):
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert [row.input_ids for row in ours.encode(texts)] == theirs(texts)["input_ids"]
    pair = ours.encode(["Who wrote it ?"], ["Nobody knows ."])[0]
    expected = theirs("Who wrote it ?", "Nobody knows .")
    assert (pair.input_ids, pair.token_type_ids) == (expected["input_ids"], expected["token_type_ids"])


def test_padding_does_not_change_the_answer() -> None:
    model = classifier(SMALL)
    alone = batch(SMALL.vocab_size, rows=1, length=8)
    padded = {name: torch.nn.functional.pad(tensor, (0, 9)) for name, tensor in alone.items()}
    with torch.no_grad():
        assert (model(**alone) - model(**padded)).abs().max() <= 1e-6


@pytest.mark.parametrize("length", [9, 30])
def test_packed_texts_have_the_states_of_padded_ones(length: int, minilm: Path) -> None:
    model = load_checkpoint(minilm).model
    inputs = batch(30522, rows=4, length=length)
    with torch.no_grad():
        states, pooled = model(**inputs)
        packed_states = model.encode(packed(inputs))
        packed_pooled, _ = model.encode_at(packed(inputs))
    assert (packed_states - states[inputs["attention_mask"].bool()]).abs().max() <= TOLERANCE
    assert (packed_pooled - pooled).abs().max() <= TOLERANCE


def test_states_read_at_some_tokens_are_those_of_all() -> None:
    lengths = [6, 30, 7, 5, 31, 9]
    rows = torch.randint(1, SMALL.vocab_size, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    texts = Batch(rows, torch.zeros_like(rows), tuple(lengths), {})
    starts = torch.tensor([0, *itertools.accumulate(lengths)][:-1])
    wanted = torch.tensor([41, 2, 5, 37, 80, 11])

    def run(all_positions: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = classifier(SMALL)
        model.bert.all_positions = all_positions
        pooled, states = model.encode_at(texts, wanted)
        (pooled.square().sum() + states.square().sum()).backward()
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        return torch.cat([model.encode(texts)[starts], states]), gradients

    all_read, expected = run(all_positions=True)
    few_read, found = run(all_positions=False)
    assert torch.allclose(few_read, all_read, atol=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-4 * float(gradient.abs().max()) + 1e-7), name


def test_one_long_text_does_not_pad_the_others() -> None:
    lengths = [6, 7, 6, 8] * 8 + [512, 500, 9]
    assert bucket_by_length(lengths) == [(0, 32), (32, 34), (34, 35)]
    assert bucket_by_length([9]) == [(0, 1)]
    assert bucket_by_length([7] * 12 + [40] * 8, multiple=8) == [(0, 16), (16, 20)]
    assert bucket_by_length([7] * 12 + [512] * 8, multiple=8) == [(0, 12), (12, 20)]
    layout = Packed.of(lengths, torch.device("cpu"), ShapeGrid(tokens=32, bucket=8))
    assert layout.pad_tokens == -sum(lengths) % 32
    assert sum(bucket.rows * bucket.longest for bucket in layout.buckets) <= 1.25 * sum(lengths)
    assert [(bucket.rows, bucket.longest) for bucket in layout.buckets] == [(32, 8), (2, 512), (1, 16)]

    exact = Packed.of(lengths, torch.device("cpu"))
    assert exact.pad_tokens == 0
    assert [(bucket.rows, bucket.longest) for bucket in exact.buckets] == [(32, 8), (2, 512), (1, 9)]

    generator = torch.Generator().manual_seed(0)
    tokens = sum(lengths)
    query, key, value = (torch.randn(tokens, 8, generator=generator) for _ in range(3))
    together = layout.unpad(layout.attend(query, key, value, 4, None))
    starts = [0, *itertools.accumulate(lengths)]
    for a, b in itertools.pairwise(starts):
        one = Packed.of([b - a], torch.device("cpu"))
        alone = one.unpad(one.attend(query[a:b], key[a:b], value[a:b], 4, None))
        assert torch.allclose(together[a:b], alone, atol=1e-6)


def test_the_loss_of_a_packed_batch_is_that_of_one_text_at_a_time() -> None:
    model = classifier(SMALL)
    together = packed(batch(SMALL.vocab_size), labels=torch.tensor([0, 1, 2]))
    starts = [0, *itertools.accumulate(together.lengths)]
    alone = [
        Batch(
            together.input_ids[a:b], together.token_type_ids[a:b], (b - a,), {"labels": torch.tensor([row])}
        )
        for row, (a, b) in enumerate(itertools.pairwise(starts))
    ]
    loss, whole = gradients(model, [together])
    loss_alone, parts = gradients(model, alone)
    assert loss_alone == pytest.approx(loss, rel=1e-6)
    for name, gradient in whole.items():
        assert (parts[name] - gradient).abs().max() <= 1e-5 * max(1.0, float(gradient.abs().max())), name


def gradients(model: torch.nn.Module, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    """The summed loss over some batches and its gradients."""
    model.zero_grad()
    total = 0.0
    for part in batches:
        loss = model.loss_sums(part, LossOptions()).sum()
        loss.backward()
        total += float(loss.detach())
    return total, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_sensitive_operations_run_in_fp32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[torch.dtype]] = {}

    class Record(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            name = getattr(function, "__name__", "")
            if name in ("layer_norm", "softmax", "tanh", "cross_entropy"):
                seen.setdefault(name, set()).add(args[0].dtype)
            result = function(*args, **(kwargs or {}))
            if name in ("linear", "matmul"):
                seen.setdefault(name, set()).add(result.dtype)
            return result

    model = classifier(SMALL).train()
    with torch.autocast("cpu", dtype=torch.bfloat16), Record():
        model.loss_sums(
            packed(batch(SMALL.vocab_size), labels=torch.tensor([0, 1, 2])), LossOptions()
        ).sum().backward()

    assert seen == {
        "layer_norm": {torch.float32},
        "softmax": {torch.float32},
        "tanh": {torch.float32},
        "cross_entropy": {torch.float32},
        "linear": {torch.bfloat16},
        "matmul": {torch.bfloat16},
    }
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("capability", "dtype", "head_size", "has"),
    [
        ((8, 0), torch.float16, 64, True),
        ((9, 0), torch.bfloat16, 32, True),
        ((7, 5), torch.float16, 64, False),
        ((8, 0), torch.float32, 64, False),
        ((8, 0), torch.float16, 12, False),
    ],
)
def test_variable_length_kernel_is_taken_only_where_torch_has_it(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    head_size: int,
    has: bool,
) -> None:
    """A T4 (7.5) has none, and a head size of 12 is not a multiple of 8."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    on_gpu = SimpleNamespace(is_cuda=True, dtype=dtype, device="cuda:0")
    assert has_varlen_kernel(cast(Any, on_gpu), head_size) == has
