"""Gradient clipping by the norm over all parameters (Pascanu et al. 2013)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from bertmp.model.embedding import word_embeddings


def clip_gradients(module: nn.Module, limit: float) -> float:
    """Clips all gradients to an L2 norm of `limit`, in place; returns the norm before.

    Of a word embedding's gradient only the rows that were looked up are read and scaled.
    """
    rows = {id(each.weight): each.rows() for each in word_embeddings(module)}
    parts = [_Part.of(each.grad, rows.get(id(each))) for each in module.parameters() if each.grad is not None]
    norm = get_total_norm([part.values for part in parts])
    if float(norm) > limit:
        for part in parts:
            part.scale(limit / (norm + 1e-6))
    return float(norm)


@dataclass(frozen=True)
class _Part:
    """What is not zero of one gradient: all of it, or some of its rows, copied out."""

    gradient: Tensor
    rows: Tensor | None
    values: Tensor

    @classmethod
    def of(cls, gradient: Tensor, rows: Tensor | None) -> _Part:
        return cls(gradient, rows, gradient if rows is None else gradient.index_select(0, rows))

    def scale(self, factor: Tensor) -> None:
        self.values.mul_(factor)
        if self.rows is not None:
            self.gradient.index_copy_(0, self.rows, self.values)
