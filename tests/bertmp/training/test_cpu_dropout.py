"""Dropout drops at its rate, keeps the mean, and is decided by torch's seed."""

from __future__ import annotations

import pytest
import torch

from bertmp.training.cpu_tuning import Dropout, dropout

SHAPE = (501, 37)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_rate_and_the_mean_are_kept(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    count, dropped = 0, 0
    for _ in range(20):
        out = dropout(torch.ones(SHAPE, dtype=dtype), rate)
        values = out.unique()
        assert len(values) == 2
        assert values[0] == 0
        assert float(values[1]) == pytest.approx(1 / (1 - rate), rel=0.005)
        dropped += int((out == 0).sum())
        count += out.numel()
    deviation = (count * rate * (1 - rate)) ** 0.5
    assert abs(dropped - count * rate) < 4 * deviation


def test_every_place_is_dropped_alike() -> None:
    torch.manual_seed(1)
    kept = torch.stack([dropout(torch.ones(64), 0.3) > 0 for _ in range(4000)]).float().mean(0)
    assert (kept - 0.7).abs().max() < 5 * (0.21 / 4000) ** 0.5


def test_the_seed_decides() -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.stack([dropout(torch.ones(SHAPE), 0.1) for _ in range(2)])

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    assert not torch.equal(draw(3)[0], draw(3)[1])


def test_gradients_pass_where_values_do() -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    out = dropout(x, 0.2)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad == 0, out == 0)
    assert torch.allclose(x.grad[x.grad != 0], torch.tensor(1.25), rtol=1e-4)


def test_it_does_nothing_outside_training_or_at_rate_0() -> None:
    x = torch.randn(3, 4)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x
