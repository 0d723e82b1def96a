"""BERT: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers", from attention upwards.

Module names are Hugging Face's, so that a checkpoint's keys are this model's keys. Under autocast the
matrix products run in low precision; LayerNorm, softmax and the pooler's tanh run in FP32, and the
residual stream between them stays FP32. The softmax's input is converted explicitly because autocast on the
CPU, unlike on CUDA, does not promote softmax.

Scaled dot-product attention (Vaswani et al. 2017, section 3.2) runs over padded batches and over packed ones.
All other operations of BERT work on one token at a time. Only attention, the positions and the selection of
`[CLS]` depend on how the tokens of a batch are laid out; a `Layout` provides these three.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertmp.model.config import BertConfig

Dropout = Callable[[Tensor], Tensor] | None
"""Applied to the attention probabilities; None outside training."""

MASK_BIAS = -10000.0
"""Added to the attention scores of padding. exp(-1e4) is 0 in FP32, and the sum stays finite in FP16 for
scores down to -5e4. The usual constants (-3.4e38, -65504) overflow FP16 with any negative score."""


class Layout:
    """How the tokens of a batch are laid out; `…` below is `[batch, length]` or `[tokens]`.

    Attributes:
        positions: INT64, broadcastable to `…`: each token's position in its sequence.
    """

    positions: Tensor

    def attend(self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: Dropout) -> Tensor:
        """Attention within each sequence; `[…, hidden]` each → `[…, hidden]`."""
        raise NotImplementedError

    def first(self, hidden: Tensor) -> Tensor:
        """`[…, hidden]` → the first token of each sequence, `[batch, hidden]`."""
        raise NotImplementedError

    def select_queries(self, hidden: Tensor) -> Tensor:
        """`[…, hidden]` → the tokens whose output a block computes: the queries of `attend`; here all."""
        return hidden

    def pad(self, ids: Tensor) -> Tensor:
        """INT64 `…`, with padding tokens added where the layout wants a fixed set of sizes."""
        return ids

    def unpad(self, hidden: Tensor) -> Tensor:
        """`[…, hidden]` without the tokens that `pad` added."""
        return hidden


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: Dropout) -> Tensor:
    """softmax(query · keyᵀ / √head_size + bias) · value.

    Args:
        query, key, value: `[batch, heads, length, head_size]`.
        bias: FP32 `[batch, 1, 1, length]`, or None where there is no padding.
        dropout: applied to the attention probabilities; None outside training.

    Returns:
        `[batch, heads, length, head_size]` in the dtype of the matrix products.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
    scores = scores.float()
    probabilities = torch.softmax(scores if bias is None else scores + bias, dim=-1)
    if dropout is not None:
        probabilities = dropout(probabilities)
    return torch.matmul(probabilities, value)


def split_heads(x: Tensor, head_size: int) -> Tensor:
    """`[batch, length, hidden]` → `[batch, heads, length, head_size]`."""
    return x.unflatten(-1, (-1, head_size)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """`[batch, heads, length, head_size]` → `[batch, length, hidden]`."""
    return x.transpose(1, 2).flatten(-2)


@dataclass(frozen=True)
class Padded(Layout):
    """Sequences padded to one length, as in the exported graph and in Hugging Face's models.

    Attributes:
        attention_mask: INT64 `[batch, length]`, 1 for tokens and 0 for padding.
        positions: INT64 `[1, length]`.
        bias: FP32 `[batch, 1, 1, length]`: 0 for tokens, `MASK_BIAS` for padding.
    """

    attention_mask: Tensor
    positions: Tensor
    bias: Tensor

    @classmethod
    def of(cls, attention_mask: Tensor) -> Padded:
        """The layout of an attention mask, INT64 `[batch, length]`."""
        positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)[None, :]
        bias = (1.0 - attention_mask[:, None, None, :].float()) * MASK_BIAS
        return cls(attention_mask, positions, bias)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: Dropout) -> Tensor:
        query, key, value = (split_heads(x, head_size) for x in (query, key, value))
        return merge_heads(attend(query, key, value, self.bias, dropout))

    def first(self, hidden: Tensor) -> Tensor:
        return hidden[:, 0]


def _gelu_new(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "gelu_python": F.gelu, "gelu_new": _gelu_new, "gelu_fast": _gelu_new,
    "gelu_pytorch_tanh": _gelu_new, "quick_gelu": _quick_gelu,
    "relu": F.relu, "silu": F.silu, "swish": F.silu, "tanh": torch.tanh,
}  # fmt: skip


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in FP32 (Ba et al. 2016); `[…, hidden]` of any dtype → FP32 of the same shape."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input.float(), self.normalized_shape, self.weight, self.bias, self.eps)


class Embeddings(nn.Module):
    """The sum of token, position and segment embeddings, normalised (section 3, figure 2)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, positions: Tensor) -> Tensor:
        """INT64 `[…]` each (positions broadcastable to it) → FP32 `[…, hidden]`."""
        words, segments = self.word_embeddings(input_ids), self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(words + segments + self.position_embeddings(positions)))


class SelfAttention(nn.Module):
    """Multi-head self-attention within each sequence."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.dropout_rate = config.attention_probs_dropout_prob
        self.drop: Callable[..., Tensor] = F.dropout
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """`[…, hidden]` → `[…, hidden]` of the layout's queries."""
        hidden = _to_autocast_dtype(hidden)
        query, key, value = self.query(layout.select_queries(hidden)), self.key(hidden), self.value(hidden)
        dropout = partial(self.drop, p=self.dropout_rate) if self.training and self.dropout_rate else None
        return layout.attend(query, key, value, self.head_size, dropout)


def _to_autocast_dtype(x: Tensor) -> Tensor:
    """`x` in the dtype of autocast's matrix products: cast once, since three projections read it."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class AddNorm(nn.Module):
    """Projection, dropout, residual connection, LayerNorm: the end of both sublayers of a block."""

    def __init__(self, width_in: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """`[…, width_in]` and FP32 `[…, hidden]` → FP32 `[…, hidden]`."""
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class Attention(nn.Module):
    """The attention sublayer of a block."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = AddNorm(config.hidden_size, config)

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        return self.output(self.self(hidden, layout), layout.select_queries(hidden))


class Intermediate(nn.Module):
    """The feed-forward network's wide layer and its activation."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATION[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden))


class Block(nn.Module):
    """One transformer block: attention, then the feed-forward network."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = AddNorm(config.intermediate_size, config)

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        hidden = self.attention(hidden, layout)
        return self.output(self.intermediate(hidden), hidden)


class Encoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor, layout: Layout, last: Layout) -> Tensor:
        """`[…, hidden]` → `[…, hidden]`; `last` is the last block's layout."""
        *blocks, top = self.layer
        for block in blocks:
            hidden = block(hidden, layout)
        return top(hidden, last)


class Pooler(nn.Module):
    """A dense layer and tanh over the first token's state: the representation of the sequence."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        """`[batch, hidden]` → FP32 `[batch, hidden]`."""
        return torch.tanh(self.dense(first).float())


class Bert(nn.Module):
    """Embeddings, encoder, pooler.

    Args:
        pooling: whether there is a pooler; token-level heads have none.

    Attributes:
        all_positions: whether the last block computes every token even if the head reads only a few of them.
            The exported graph does, so activation ranges and FLOPs for it are measured this way.
    """

    def __init__(self, config: BertConfig, pooling: bool = True) -> None:
        super().__init__()
        self.config = config
        self.all_positions = False
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config) if pooling else None

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Encodes and pools a padded batch.

        Args:
            input_ids, attention_mask, token_type_ids: INT64 `[batch, length]`.

        Returns:
            Last hidden states and pooled states, FP32 `[batch, length, hidden]` and `[batch, hidden]`.
        """
        layout = Padded.of(attention_mask)
        hidden = self.encode(input_ids, token_type_ids, layout)
        return hidden, self.pool(layout.first(hidden))

    def encode(
        self, input_ids: Tensor, token_type_ids: Tensor, layout: Layout, last: Layout | None = None
    ) -> Tensor:
        """Encodes a batch in any layout, without pooling: INT64 `[…]` each → FP32 `[…, hidden]`.

        Args:
            last: the last block's layout, a `QuerySubset` if only some tokens' states are needed.
        """
        last = last or layout
        input_ids, token_type_ids = layout.pad(input_ids), layout.pad(token_type_ids)
        hidden = self.embeddings(input_ids, token_type_ids, layout.positions)
        return last.unpad(self.encoder(hidden, layout, last))

    def pool(self, first: Tensor) -> Tensor:
        """The first tokens' states → the pooled states, FP32 `[batch, hidden]` both."""
        assert self.pooler is not None, "a BERT without a pooler only encodes"
        return self.pooler(first)


def initialise(module: nn.Module, config: BertConfig, generator: torch.Generator | None = None) -> None:
    """Initialises as the paper's code does: normal of `initializer_range`, biases 0, LayerNorm 1."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=config.initializer_range, generator=generator)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            with torch.no_grad():
                part.weight[part.padding_idx].zero_()
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
