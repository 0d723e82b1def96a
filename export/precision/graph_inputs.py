"""A graph's inputs by their roles, and batches of encoded texts as tensors for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from bertmp.core.errors import InputError
from bertmp.core.io import read_json
from bertmp.data.batches import pad_batch
from bertmp.data.tokenizer import Encoded
from bertmp.export.graph.ort_sessions import Feed

LONGEST = 4096
"""A tokenizer that gives a greater length does not know the model's."""

Rows = Sequence[Encoded]

_ROLES = {
    "ids": ("input_ids", "ids", "input_word_ids", "input_token", "input", "tokens"),
    "mask": ("attention_mask", "input_mask", "mask", "padding_mask"),
    "types": ("token_type_ids", "segment_ids", "input_type_ids", "input_segment", "segments"),
    "positions": ("position_ids", "input_position", "positions"),
}
"""The role of an input → its names in graphs of PyTorch, TensorFlow and Keras, without their endings."""

_ENDING = re.compile(r"([:.]\d+|___\d+)+$")
"""What exporters append to a name: TensorFlow's `:0`, PyTorch's `.1`."""


_FIRST_POSITION_AFTER_PADDING = ("roberta", "camembert", "mpnet", "longformer", "data2vec-text", "luke")
"""Model types, or their ends, whose positions count from the padding token's id + 1."""


class UnknownInput(InputError):
    """An input of the graph has no role that its name tells."""


@dataclass(frozen=True)
class GraphInputs:
    """A graph's inputs.

    Attributes:
        roles: role → (name, numpy type).
        others: inputs `[batch]` that identify the examples: name → numpy type.
        batch, length: where they are fixed.
    """

    roles: Mapping[str, tuple[str, np.dtype[Any]]]
    others: Mapping[str, np.dtype[Any]]
    batch: int | None
    length: int | None

    def feeds(self, batches: Iterable[tuple[Rows, int]], pad_id: int) -> tuple[list[Feed], list[np.ndarray]]:
        """Batches as tensors, and for each which tokens are not padding, BOOL `[batch, length]`.

        Args:
            batches: rows and the length to which they are padded, unless the graph has one of its own.
            pad_id: id of the padding token.
        """
        made = [
            self._feed(part, self.length or length, pad_id)
            for rows, length in batches
            for part in _in_batches(rows, self.batch)
        ]
        return [feed for feed, _ in made], [mask for _, mask in made]

    def _feed(self, rows: Rows, length: int, pad_id: int) -> tuple[Feed, np.ndarray]:
        size = (len(rows), length)
        padded = pad_batch(rows, pad_id, size)
        values = {
            "ids": padded["input_ids"],
            "mask": padded["attention_mask"],
            "types": padded["token_type_ids"],
            "positions": np.broadcast_to(np.arange(length), size),
        }
        feed = {name: values[role].astype(kind) for role, (name, kind) in self.roles.items()}
        feed.update({name: np.arange(len(rows)).astype(kind) for name, kind in self.others.items()})
        return feed, values["mask"].astype(bool)


def _in_batches(rows: Rows, size: int | None) -> list[Rows]:
    """Rows in batches of the one size that the graph takes; the last row fills the last batch."""
    if size is None:
        return [rows]
    parts = [list(rows[start : start + size]) for start in range(0, len(rows), size)]
    return [part + part[-1:] * (size - len(part)) for part in parts]


def graph_inputs(graph: ModelProto, where: str | Path, names: Sequence[str] = ()) -> GraphInputs:
    """Finds the role of every input of a text encoder's graph.

    Args:
        graph: takes token ids, and any of attention mask, token types and positions, all `[batch, length]`.
        where: what is to be fed to it, for messages.
        names: inputs that their names do not tell, as `ROLE=NAME`; the roles are ids, mask, types, positions.

    Raises:
        UnknownInput: an input is not a text encoder's by its name, or there are no token ids.
        InputError: `names` are not roles and inputs.
    """
    named = _named_roles(names)
    weights = {tensor.name for tensor in graph.graph.initializer}
    roles: dict[str, tuple[str, np.dtype[Any]]] = {}
    others: dict[str, np.dtype[Any]] = {}
    fixed: list[int | None] = [None, None]
    given = [value for value in graph.graph.input if value.name not in weights]
    if missing := set(named) - {value.name for value in given}:
        known = ", ".join(value.name for value in given)
        raise InputError(f"the graph has no input '{min(missing)}'", "--input", f"it has {known}")
    for value in given:
        kind, dims = value.type.tensor_type, value.type.tensor_type.shape.dim
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        role = named.get(value.name) or role_of(value.name)
        if role is None and len(dims) == 1 and dtype.kind == "i":
            others[value.name] = dtype
            continue
        if role is None or role in roles or len(dims) != 2:
            what = f"the graph's input '{value.name}' is not a text encoder's by its name"
            raise UnknownInput(what, where, f"name its role with --input ROLE={value.name}")
        roles[role] = (value.name, dtype)
        fixed = [dim.dim_value or known for dim, known in zip(dims, fixed, strict=True)]
    if "ids" not in roles:
        raise UnknownInput("the graph takes no token ids", where, "name them with --input ids=NAME")
    return GraphInputs(roles, others, *fixed)


def _named_roles(names: Sequence[str]) -> dict[str, str]:
    """Name of an input → its role, as the user gives them."""
    found = {}
    for text in names:
        role, mark, name = text.partition("=")
        if not mark or not name or role not in _ROLES:
            raise InputError(
                f"'{text}' names no input", "--input", f"write ROLE=NAME, ROLE one of {', '.join(_ROLES)}"
            )
        found[name] = role
    return found


def role_of(name: str) -> str | None:
    """The role that an input's name tells: `ids`, `mask`, `types` or `positions`; None for others."""
    plain = _ENDING.sub("", name).lower().replace("-", "_")
    return next((role for role, names in _ROLES.items() if plain in names), None)


def greatest_length(folder: Path) -> int | None:
    """The most tokens that a folder's model takes, by `config.json` and the tokenizer's settings."""
    model, tokenizer = (_settings(folder / name) for name in ("config.json", "tokenizer_config.json"))
    positions, length = model.get("max_position_embeddings"), tokenizer.get("model_max_length")
    if isinstance(positions, int) and str(model.get("model_type")).endswith(_FIRST_POSITION_AFTER_PADDING):
        padding = model.get("pad_token_id")
        positions -= 1 + (padding if isinstance(padding, int) else 1)
    known = [value for value in (positions, length) if isinstance(value, int) and 2 < value <= LONGEST]
    return min(known, default=None)


def _settings(file: Path) -> Mapping[str, Any]:
    found = read_json(file) if file.is_file() else None
    return found if isinstance(found, dict) else {}
