"""Word embeddings whose gradient keeps its place in memory from step to step.

The gradient of a look-up table is zero but for the few rows that a batch looked up, and yet torch allocates
and clears the whole table for it at every step: 47 MB for the 350 rows of a batch of questions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WordEmbedding(nn.Embedding):
    """`nn.Embedding` with a memory for its gradient.

    Whoever has used a gradient hands it back with `take_back`, and the next backward pass writes into it.
    Whoever does not loses nothing: the backward pass then makes a new one.

    Attributes:
        is_read_whole: whether every row may have a gradient: a decoder tied to the weights reads all of
            them, and other processes read other rows.
    """

    def __init__(self, words: int, width: int, padding_idx: int | None) -> None:
        super().__init__(words, width, padding_idx=padding_idx)
        self.is_read_whole = False
        self._spare: Tensor | None = None
        self._looked_up: list[Tensor] = []

    def forward(self, input: Tensor) -> Tensor:
        """INT64 `[…]` → `[…, width]`."""
        if input.device.type != "cpu" or not (self.training and torch.is_grad_enabled()):
            return super().forward(input)
        found = _LookUp.apply(self.weight, input, self)
        assert isinstance(found, Tensor)
        return found

    def rows(self) -> Tensor | None:
        """INT64 `[rows]`, ascending: outside them the gradient is zero; None where any row may have one."""
        if self.is_read_whole or not self._looked_up:
            return None
        return torch.cat(self._looked_up).unique()

    def take_back(self) -> None:
        """Takes the weight's gradient away, cleared, for the next backward pass."""
        gradient, self.weight.grad = self.weight.grad, None
        rows = self.rows()
        self._looked_up = []
        if type(gradient) is not Tensor or gradient.shape != self.weight.shape:
            return
        if rows is None:
            gradient.zero_()
        else:
            gradient.index_fill_(0, rows, 0.0)
        self._spare = gradient

    def gradient(self, ids: Tensor, upstream: Tensor, like: Tensor) -> Tensor:
        """The table's gradient; INT64 `[…]`, `[…, width]` and the table → `[words, width]`."""
        rows, place = torch.unique(ids, return_inverse=True)
        sums = torch.ops.aten.embedding_dense_backward(
            upstream.reshape(-1, upstream.shape[-1]), place.reshape(-1), len(rows), -1, False
        )
        if self.padding_idx is not None:
            sums.masked_fill_((rows == self.padding_idx)[:, None], 0.0)
        # The spare one leaves this object, so that torch may keep it as the weight's gradient uncopied.
        table, self._spare = self._spare, None
        if table is None or table.shape != like.shape:
            table = torch.zeros_like(like, memory_format=torch.contiguous_format)
        if not self.is_read_whole:
            self._looked_up.append(rows)
        return table.index_copy_(0, rows, sums)


def word_embeddings(module: nn.Module) -> list[WordEmbedding]:
    """Those inside a module."""
    return [each for each in module.modules() if isinstance(each, WordEmbedding)]


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, module: WordEmbedding) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(ids, table)
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        ids, table = ctx.saved_tensors
        return ctx.module.gradient(ids, upstream, table), None, None
