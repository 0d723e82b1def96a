"""What is asked of a text model and what its answers mean, without a connection."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertmp.core.errors import InputError
from bertmp.serve.served_tasks import COMMON, FILES, SETTINGS, TASKS

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ServedModel:
    """What a text model says about itself.

    Attributes:
        task: what it answers, one of `TASKS`.
        pairs: whether it takes pairs of texts.
        max_batch: the largest batch of one request.
        outputs: the names of its outputs.
        classes: how many probabilities it gives for a text; 0 for a task without.
    """

    task: str
    pairs: bool
    max_batch: int
    outputs: tuple[str, ...]
    classes: int = 0

    @classmethod
    def of_config(cls, model: str, config: Mapping[str, Any], address: str) -> ServedModel:
        """What its configuration says.

        Raises:
            InputError: not a text model.
        """
        inputs, outputs = ({e["name"]: e for e in config.get(k, ())} for k in ("input", "output"))
        if "TEXT" not in inputs:
            raise InputError(f"'{model}' is not a text model", address, "name the model, not its encoder")
        # Those of 0.1 have no such parameter: they are classifiers.
        task = config.get("parameters", {}).get("task", {}).get("string_value") or "classification"
        classes = int(outputs["PROBABILITIES"]["dims"][0]) if "PROBABILITIES" in outputs else 0
        return cls(task, "TEXT_PAIR" in inputs, largest_batch(config), tuple(outputs), classes)

    @property
    def answer_outputs(self) -> list[str]:
        """The outputs that make an answer."""
        names = [name for name in (*TASKS[self.task].answers, *COMMON) if name not in (FILES, SETTINGS)]
        return [name for name in names if name in self.outputs]

    def require_fit(
        self, model: str, texts: Sequence[str], pairs: Sequence[str] | None, address: str
    ) -> None:
        """Checks what is asked.

        Raises:
            InputError: no texts, or single texts for a model of pairs or the reverse.
        """
        if not texts:
            raise InputError("no texts", "", "give at least one")
        if pairs is not None and len(pairs) != len(texts):
            raise InputError(f"{len(texts)} texts and {len(pairs)} second texts", "", "give one for each")
        self.require_pairs(model, pairs is not None, address)

    def require_pairs(self, model: str, pairs: bool, address: str) -> None:
        """Checks whether pairs are asked.

        Raises:
            InputError: single texts for a model of pairs, or the reverse.
        """
        if self.pairs and not pairs:
            raise InputError(f"'{model}' takes pairs of texts", address, "give the second text, too")
        if pairs and not self.pairs:
            raise InputError(f"'{model}' takes single texts", address, "leave the second text out")


def largest_batch(config: Mapping[str, Any]) -> int:
    """The largest batch of one request that a model's configuration allows."""
    return max(1, int(config.get("max_batch_size", 0)))


def batches(
    texts: Sequence[str], pairs: Sequence[str] | None, size: int
) -> Iterator[tuple[Sequence[str], Sequence[str] | None]]:
    """The texts of each request."""
    for start in range(0, len(texts), size):
        rows = slice(start, start + size)
        yield texts[rows], None if pairs is None else pairs[rows]


def text_inputs(texts: Sequence[str], pairs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Texts, or pairs of texts, as a text model's inputs."""
    inputs = {"TEXT": _bytes_tensor(texts)}
    return inputs if pairs is None else {**inputs, "TEXT_PAIR": _bytes_tensor(pairs)}


def _bytes_tensor(texts: Sequence[str]) -> np.ndarray:
    """Texts as BYTES `[batch, 1]`."""
    # A lone surrogate (an undecodable byte of the command line) is passed on: the server refuses it.
    rows = [text.encode("utf-8", errors="surrogateescape") for text in texts]
    return np.array(rows, dtype=object).reshape(-1, 1)


def class_names(outputs: Outputs) -> list[str]:
    """The classes in the order of the probabilities, from Triton's `value:index:label` strings."""
    entries = [value.decode().split(":", 2) for value in outputs["PROBABILITIES"].reshape(-1)]
    return [label for _, label in sorted((int(at), label) for _, at, label in entries)]


def json_of(outputs: Outputs, name: str) -> dict[str, Any]:
    """What a version says about itself in an output, with the first answer; empty where it has none."""
    values = outputs.get(name)
    return {} if values is None else dict(json.loads(values.reshape(-1)[0]))


def told_labels(outputs: Outputs) -> list[str] | None:
    """The classes in the order of the probabilities, where the version was asked for its settings.

    Unlike Triton's classification strings they do not need the version to be the live one still when its
    answer is complete.
    """
    return json_of(outputs, SETTINGS).get("labels")
