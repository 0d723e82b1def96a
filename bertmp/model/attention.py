"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2) over padded batches.

The softmax runs in FP32 whatever the autocast of the device would do: its input is made FP32 explicitly,
because the CPU's autocast, unlike CUDA's, leaves softmax in the type it is given.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MASKED = -10000.0
"""Added to the scores of padding. exp(-1e4) is 0 in FP32, and scores below -5e4 stay within FP16's range,
which the usual constants (-3.4e38, -65504) leave as soon as anything negative is added."""


def padding_bias(attention_mask: Tensor) -> Tensor:
    """What is added to attention scores so that padding gets no weight.

    Args:
        attention_mask: INT64 `[batch, length]`, 1 for tokens and 0 for padding.

    Returns:
        FP32 `[batch, 1, 1, length]`: 0 for tokens, `MASKED` for padding.
    """
    return (1.0 - attention_mask[:, None, None, :].float()) * MASKED


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float) -> Tensor:
    """softmax(query · keyᵀ / √head_size + bias) · value.

    Args:
        query, key, value: `[batch, heads, length, head_size]`.
        bias: FP32 `[batch, 1, 1, length]`.
        dropout: rate at which attention probabilities are dropped; 0 outside training.

    Returns:
        `[batch, heads, length, head_size]` in the type the matrix products run in.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
    probabilities = torch.softmax(scores.float() + bias, dim=-1)
    if dropout:
        probabilities = F.dropout(probabilities, dropout)
    return torch.matmul(probabilities, value)
