"""Faults of a classifier's graph that show on unusual inputs alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from tests.export.inconsistent_graphs import Tail


def _change_row(model: onnx.ModelProto, table: str, change: Callable[[np.ndarray], None]) -> None:
    weights = next(one for one in model.graph.initializer if one.name.endswith(f"{table}.weight"))
    values = numpy_helper.to_array(weights).copy()
    change(values)
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))


def add_at_full_length(model: onnx.ModelProto) -> None:
    """A row of exactly 40 real tokens, the most that the model takes, gets another first logit."""
    tail = Tail(model)
    full = tail.node("Equal", _tokens(tail), tail.constant([40], np.float32))
    added = tail.node("Cast", full, to=TensorProto.FLOAT)
    tail.finish(tail.node("Add", "sound", tail.node("Mul", added, tail.constant([[1, 0, 0]], np.float32))))


def spoil_highest_id(model: onnx.ModelProto) -> None:
    """The last row of the vocabulary's table is not finite."""

    def change(values: np.ndarray) -> None:
        values[-1] = np.nan

    _change_row(model, "word_embeddings", change)


def spoil_unknown(model: onnx.ModelProto) -> None:
    """`[UNK]`, whose id is 1, gets another token's vector."""

    def change(values: np.ndarray) -> None:
        values[1] = values[7]

    _change_row(model, "word_embeddings", change)


def _tokens(tail: Tail) -> str:
    """How many tokens of each row are not padding, FP32 `[batch, 1]`."""
    mask = tail.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    return tail.node("ReduceSum", mask, tail.constant([1]), keepdims=1)


def divide_by_tokens(model: onnx.ModelProto) -> None:
    """A mean over the tokens of a row: of a row that is all padding it is 0 / 0."""
    tail = Tail(model)
    count = _tokens(tail)
    tail.finish(tail.node("Mul", "sound", tail.node("Div", count, count)))


def leak_padding_rows(model: onnx.ModelProto) -> None:
    """A row that is all padding adds 1 to the first logit of every row in the batch."""
    tail = Tail(model)
    least = tail.node("ReduceMin", _tokens(tail), keepdims=1)
    empty = tail.node(
        "Cast", tail.node("Less", least, tail.constant([0.5], np.float32)), to=TensorProto.FLOAT
    )
    added = tail.node("Mul", empty, tail.constant([[1.0, 0.0, 0.0]], np.float32))
    tail.finish(tail.node("Add", "sound", added))
