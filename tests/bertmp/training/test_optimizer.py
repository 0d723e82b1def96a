"""The optimizers' arithmetic, the groups they work on, and the schedule."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from bertmp.model.config import BertConfig
from bertmp.training.metrics import BestEvaluation, Evaluation
from bertmp.training.step import Lamb, learning_rate, make_optimizer, set_learning_rate
from bertmp.training.train_options import TrainOptions
from tests.models import classifier

CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=16,
    labels=("a", "b"),
)


def settings(**options: object) -> TrainOptions:
    return TrainOptions("classification", Path("data"), Path("model"), Path("run"), **options)  # type: ignore[arg-type]


def test_lamb_follows_the_papers_formula() -> None:
    """Two steps against the formula written out in FP64."""
    weight = nn.Parameter(torch.tensor([[0.3, -1.2], [2.0, 0.7]]))
    gradients = [torch.tensor([[0.1, 0.4], [-0.2, 0.05]]), torch.tensor([[-0.3, 0.2], [0.1, 0.6]])]
    rate, first, second, eps, decay = 0.02, 0.9, 0.999, 1e-6, 0.1
    expected = weight.detach().double().clone()
    mean, square = torch.zeros_like(expected), torch.zeros_like(expected)
    optimizer = Lamb([weight], lr=rate, betas=(first, second), eps=eps, weight_decay=decay)
    for number, gradient in enumerate(gradients, 1):
        g = gradient.double()
        mean, square = first * mean + (1 - first) * g, second * square + (1 - second) * g * g
        unbiased = mean / (1 - first**number)
        direction = unbiased / ((square / (1 - second**number)).sqrt() + eps) + decay * expected
        expected = expected - rate * expected.norm() / direction.norm() * direction
        weight.grad = gradient.clone()
        optimizer.step()
    assert torch.allclose(weight.detach().double(), expected, atol=1e-6)


def test_lamb_takes_a_step_of_the_weights_own_length() -> None:
    """Scaling a tensor's gradient by a million changes nothing: the length of the step is the tensor's."""
    steps = []
    for scale in (1.0, 1e6):
        weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        optimizer = Lamb([weight], lr=0.1, weight_decay=0.01)
        weight.grad = torch.tensor([0.6, -0.2]) * scale
        optimizer.step()
        steps.append(weight.detach() - torch.tensor([3.0, 4.0]))
    assert float(steps[0].norm()) == pytest.approx(0.5, rel=1e-4)
    assert torch.allclose(steps[0], steps[1], atol=1e-4)


def test_lamb_moves_tensors_of_zeros_and_tensors_without_decay_as_adam_does() -> None:
    for weight, decay in ((torch.zeros(3), 0.1), (torch.ones(3) * 50, 0.0)):
        parameter = nn.Parameter(weight.clone())
        optimizer = Lamb([parameter], lr=0.1, weight_decay=decay)
        parameter.grad = torch.tensor([1.0, -1.0, 2.0])
        optimizer.step()
        moved = parameter.detach() - weight
        assert torch.allclose(moved, torch.tensor([-0.1, 0.1, -0.1]), atol=1e-3)


def test_biases_and_layernorms_are_not_decayed() -> None:
    model = classifier(CONFIG)
    optimizer = make_optimizer(model, settings(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        exempt = name.endswith("bias") or "LayerNorm" in name
        assert decay[id(parameter)] == (0.0 if exempt else 0.3), name


def test_lower_blocks_learn_slower() -> None:
    model = classifier(CONFIG)
    optimizer = make_optimizer(model, settings(layerwise_lr_decay=0.5, learning_rate=1.0))
    set_learning_rate(optimizer, 0.8)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {
        "classifier.weight": 0.8,
        "bert.pooler.dense.bias": 0.8,
        "bert.encoder.layer.2.output.dense.weight": 0.4,
        "bert.encoder.layer.0.output.LayerNorm.weight": 0.1,
        "bert.embeddings.word_embeddings.weight": 0.05,
    }
    for name, rate in expected.items():
        assert rates[id(model.get_parameter(name))] == pytest.approx(rate), name


def test_the_rate_rises_to_the_peak_and_falls_to_nothing() -> None:
    options = settings(learning_rate=1e-3, warmup_ratio=0.2)
    rates = [learning_rate(step, 50, options) for step in range(50)]
    assert rates[9] == max(rates) == 1e-3
    assert rates[0] == pytest.approx(1e-4)
    assert all(a < b for a, b in itertools.pairwise(rates[:10]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 3e-5


def evaluation(accuracy: float) -> Evaluation:
    return Evaluation({"loss": 1.0, "accuracy": accuracy}, 10)


def test_the_best_evaluation_is_the_first_of_the_highest() -> None:
    best = BestEvaluation()
    for step, accuracy in ((10, 0.5), (20, 0.7), (30, 0.7), (40, 0.6)):
        best = best.after(evaluation(accuracy), step)
    assert best == BestEvaluation(0.7, 20, 2)
    assert best.is_new(20)
    assert not best.is_new(40)
    assert best.after(evaluation(0.8), 50) == BestEvaluation(0.8, 50, 0)


def test_without_a_score_of_its_own_the_loss_ranks() -> None:
    worse, better = (Evaluation({"loss": loss}, 5) for loss in (2.0, 1.0))
    assert better.score > worse.score
