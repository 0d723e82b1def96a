"""What makes training on the CPU faster and leaves the model's code as the paper has it.

`tune_for_cpu` is the one switch: it exchanges the word embedding and the dropout of a model for modules that
compute the same with less work, rounds the shapes of packed batches, and keeps freed memory in the process.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertmp.model.bert import SelfAttention
from bertmp.model.heads import Head
from bertmp.model.packed import ShapeGrid

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = (1 << 31) - 1
_RANGE = 1 << 16

SHAPE_GRID = ShapeGrid(tokens=32, bucket=8)
"""The matrix library compiles and caches a kernel for every new shape of a product, about 4 MB per step for a
small BERT: rounded shapes come again."""


def tune_for_cpu(head: Head) -> None:
    """Exchanges modules of `head` in place; parameters, their names and the modules' names stay the same."""
    keep_freed_memory()
    head.shape_grid = SHAPE_GRID
    embeddings = head.bert.embeddings
    embeddings.word_embeddings = WordEmbedding.of(embeddings.word_embeddings, bool(head.tied_weights))
    for parent in list(head.modules()):
        if isinstance(parent, SelfAttention):
            parent.drop = dropout
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p).train(child.training))


def keep_freed_memory() -> None:
    """Has glibc keep freed blocks in the process, since training allocates the same blocks at every step.

    By default glibc maps every block over 32 MB again and returns freed memory to the kernel, which then
    clears each page at the next step: a gradient of the word embeddings alone has 11,000 pages. That takes a
    tenth of a step of a small BERT. Does nothing if the C library has no `mallopt`.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


class Dropout(nn.Dropout):
    """`nn.Dropout` with `dropout` below."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p) if self.training else input


def dropout(x: Tensor, p: float) -> Tensor:
    """Sets a fraction `p` of the elements to 0 and scales the others by 1 / (1 - p) (Srivastava et al. 2014).

    On the CPU torch draws one Bernoulli variate per element, a fifteenth of a training step of a small BERT.
    Comparing 16 random bits per element with a threshold costs a tenth of that and gives `p` to 1 in 65,536.
    The bits follow from torch's generator, so that `torch.manual_seed` decides them.
    """
    if p == 0:
        return x
    count = x.shape.numel()
    seed = int(torch.randint(1 << 62, ()))
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    bits = torch.from_numpy(words.view(np.int16)[:count])
    dropped = round(p * _RANGE)
    kept = (bits >= dropped - _RANGE // 2).view(x.shape).to(x.dtype)
    return x * kept.mul_(_RANGE / (_RANGE - dropped))


class WordEmbedding(nn.Embedding):
    """`nn.Embedding` that reuses the memory of its gradient.

    The gradient is zero but for the few rows that a batch looked up, and yet torch allocates and clears the
    full table at every step: 47 MB for the 350 rows of a batch of questions. After an optimizer step,
    `recycle_grad` takes the gradient, and the next backward pass writes into it; without that call the
    backward pass allocates a new one.

    Attributes:
        dense_grad: whether every row may have a gradient: a decoder tied to the weights reads all of them,
            and other processes read other rows.
    """

    def __init__(self, words: int, width: int, padding_idx: int | None) -> None:
        super().__init__(words, width, padding_idx=padding_idx)
        self.dense_grad = False
        self._spare: Tensor | None = None
        self._looked_up: list[Tensor] = []

    @classmethod
    def of(cls, table: nn.Embedding, dense_grad: bool) -> WordEmbedding:
        """The same table with the same weight."""
        with torch.device("meta"):
            new = cls(table.num_embeddings, table.embedding_dim, table.padding_idx)
        new.weight, new.dense_grad = table.weight, dense_grad
        return new.train(table.training)

    def forward(self, input: Tensor) -> Tensor:
        """INT64 `[…]` → `[…, width]`."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(input)
        found = _LookUp.apply(self.weight, input, self)
        assert isinstance(found, Tensor)
        return found

    def rows(self) -> Tensor | None:
        """INT64 `[rows]`, ascending: the others have no gradient; None if any row may have one."""
        if self.dense_grad or not self._looked_up:
            return None
        return torch.cat(self._looked_up).unique()

    def recycle_grad(self) -> None:
        """Removes and clears the weight's gradient, and keeps its memory for the next backward pass."""
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
        rows, inverse = torch.unique(ids, return_inverse=True)
        sums = torch.ops.aten.embedding_dense_backward(
            upstream.reshape(-1, upstream.shape[-1]), inverse.reshape(-1), len(rows), -1, False
        )
        if self.padding_idx is not None:
            sums.masked_fill_((rows == self.padding_idx)[:, None], 0.0)
        # Without a reference here, torch keeps the tensor as the weight's gradient without a copy.
        table, self._spare = self._spare, None
        if table is None or table.shape != like.shape:
            table = torch.zeros_like(like, memory_format=torch.contiguous_format)
        if not self.dense_grad:
            self._looked_up.append(rows)
        return table.index_copy_(0, rows, sums)


def word_embeddings(module: nn.Module) -> list[WordEmbedding]:
    """The tuned word embeddings inside a module; none on CUDA."""
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
