"""Golden requests: what a healthy model is known to answer, and whether an answer agrees with it.

`golden.json` in a text model's version holds a request to it and one to its encoder, as raw tensors of the
Open Inference Protocol, with what the bundle's FP32 graph answers. The bounds are wide: they tell a broken
model from a sound one in any precision; parity tells precisions apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, write_json
from bertmp.serve.http_request import Reply
from bertmp.serve.model_config import INPUTS
from bertmp.serve.model_signature import encoder_name
from bertmp.serve.repository import version_folder

GOLDEN, FORMAT = "golden.json", 1
SHARE = 0.05
"""How far a number may be from the recorded one where the tensor names no bound: a share of the tensor's
largest magnitude."""
LEAST_MAGNITUDE = 1 / 16
"""What that largest magnitude counts as at least."""
PROBABILITY_BOUND = 0.1
"""How far a probability may be off."""
_SHORT = 16
LARGEST = 1 << 16
"""The most numbers of an output that is asked for: logits over a vocabulary are not."""

TEXT = "What is the capital of France ?"
MASKED_TEXT = "The capital of France is [MASK] ."
SECOND_TEXT = "Paris is the capital of France ."


@dataclass(frozen=True)
class Tensor:
    """A named array of the protocol.

    Attributes:
        name: the tensor's name.
        datatype: the protocol's, such as `FP32` or `BYTES`.
        shape: with the batch.
        data: its elements in a row: numbers, truth values or text.
        bound: how far a number of an answer may be off it; 0 for a share of the largest.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: tuple[Any, ...]
    bound: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As the protocol writes it."""
        shape, data = list(self.shape), list(self.data)
        return {"name": self.name, "datatype": self.datatype, "shape": shape, "data": data}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tensor:
        shape, data = tuple(map(int, value["shape"])), tuple(value["data"])
        return cls(str(value["name"]), str(value["datatype"]), shape, data, float(value.get("bound", 0.0)))

    @property
    def usual_bound(self) -> float:
        """Its bound, or the share of its largest magnitude where it has none."""
        return self.bound or SHARE * max([LEAST_MAGNITUDE, *map(abs, _numbers(self.data))])

    def difference(self, found: Tensor) -> str:
        """How `found` is off this tensor, in words; empty where it is not."""
        if (self.datatype, self.shape) != (found.datatype, found.shape):
            return (
                f"{self.name} is {found.datatype} {list(found.shape)}, not {self.datatype} {list(self.shape)}"
            )
        bound = self.usual_bound
        for expected, given in zip(self.data, found.data, strict=True):
            if not _agree(expected, given, bound):
                return f"{self.name} is {_short(given)}, not {_short(expected)}"
        return ""


@dataclass(frozen=True)
class GoldenCase:
    """A request to one model, and what it should answer.

    Attributes:
        model: the model's name.
        inputs: the request.
        outputs: the answer; where there are none, any finite one is right.
        wanted: the names of the outputs to ask for; all of them where empty.
    """

    model: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...] = ()
    wanted: tuple[str, ...] = ()

    @property
    def request(self) -> dict[str, Any]:
        """The body of the request."""
        names = [tensor.name for tensor in self.outputs] or list(self.wanted)
        asked = {"outputs": [{"name": name} for name in names]} if names else {}
        return {"inputs": [tensor.to_json() for tensor in self.inputs], **asked}

    def fault(self, reply: Reply) -> str:
        """What is wrong with an answer, in words; empty where it is right."""
        if not reply.ok:
            return reply.reason
        answered = {tensor.name: tensor for tensor in answers(reply)}
        if not answered:
            return "the answer holds no tensors"
        for tensor in answered.values():
            if not all(value < math.inf for value in _numbers(tensor.data)):
                return f"{tensor.name} is not a finite number"  # minus infinity switches a class off
        for expected in self.outputs:
            if expected.name not in answered:
                return f"the answer lacks {expected.name}"
            if difference := expected.difference(answered[expected.name]):
                return difference
        return ""

    def expecting(self, reply: Reply) -> GoldenCase:
        """The case with an answer as the expected one: its numbers, and a label that leads clearly.

        Other texts of an answer may change in another batch, where two candidates are close.
        """
        found = {tensor.name: tensor for tensor in answers(reply)}
        kept = [tensor for tensor in found.values() if tensor.datatype == "FP32"]
        if "PROBABILITIES" in found:
            at = kept.index(found["PROBABILITIES"])
            kept[at] = replace(kept[at], bound=PROBABILITY_BOUND)
            if "LABEL" in found and leads_clearly(found["PROBABILITIES"].data):
                kept.append(found["LABEL"])
        return replace(self, outputs=tuple(kept))


def leads_clearly(probabilities: Sequence[float]) -> bool:
    """Whether the best class stays the best one within the bounds."""
    second, first = sorted(probabilities)[-2:]
    return first - second > 3 * PROBABILITY_BOUND


def answers(reply: Reply) -> list[Tensor]:
    """The tensors of an answer; none where it holds none."""
    try:
        return [Tensor.from_json(value) for value in reply.json()["outputs"]]
    except (KeyError, TypeError, ValueError):
        return []


def _numbers(values: Sequence[Any]) -> list[float]:
    return [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]


def _agree(expected: Any, given: Any, bound: float) -> bool:
    if isinstance(expected, float) and isinstance(given, (int, float)):
        return expected == given or abs(expected - given) <= bound
    return bool(expected == given)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)[:60]


def write_golden(version: Path, cases: Sequence[GoldenCase]) -> None:
    """Writes the golden requests of a text model's version into its folder."""
    entries = [
        {
            "model": case.model,
            "inputs": [tensor.to_json() for tensor in case.inputs],
            "outputs": [{**tensor.to_json(), "bound": tensor.bound} for tensor in case.outputs],
            "wanted": list(case.wanted),
        }
        for case in cases
    ]
    write_json(version / GOLDEN, {"format": FORMAT, "cases": entries})


def read_golden(repository: Path, model: str, version: int) -> GoldenCase | None:
    """The golden request of a model's version; None where it has none.

    Raises:
        InputError: the file is damaged or of another format.
    """
    texts = [name for name in (model, model.removesuffix("_encoder")) if model in (name, encoder_name(name))]
    for name in texts:
        # One that is being rolled back may still answer.
        path = version_folder(repository / name, version) / GOLDEN
        if not path.is_file():
            continue
        data = read_json(path)
        try:
            if data["format"] != FORMAT:
                raise KeyError("format")
            for entry in data["cases"]:
                if entry["model"] == model:
                    return _case(entry)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("not a file of golden requests", path, "deploy the model again") from error
    return None


def _case(entry: Mapping[str, Any]) -> GoldenCase:
    inputs, outputs = (tuple(map(Tensor.from_json, entry[name])) for name in ("inputs", "outputs"))
    return GoldenCase(str(entry["model"]), inputs, outputs, tuple(entry.get("wanted", ())))


def _size(dims: Sequence[int]) -> int:
    """How many numbers an output has for a short text; the configuration leaves the length open."""
    return math.prod(_SHORT if size < 0 else size for size in dims)


def any_request(config: Mapping[str, Any]) -> GoldenCase | None:
    """A request that a model of ours answers, by its configuration; None where it is another's.

    Args:
        config: the model's configuration in Triton's JSON form.
    """
    names = {entry["name"] for entry in config.get("input", ())}
    outputs = {entry["name"]: [int(size) for size in entry["dims"]] for entry in config.get("output", ())}
    asked = tuple(name for name, dims in outputs.items() if _size(dims) <= LARGEST)
    if not asked:
        return None
    if names in ({"TEXT"}, {"TEXT", "TEXT_PAIR"}):
        text = MASKED_TEXT if "FILLS" in outputs else TEXT
        values = {"TEXT": text, "TEXT_PAIR": SECOND_TEXT}
        inputs = [Tensor(name, "BYTES", (1, 1), (values[name],)) for name in sorted(names)]
    elif names == set(INPUTS):
        ids = {"input_ids": (0, 1, 2, 3), "attention_mask": (1, 1, 1, 1), "token_type_ids": (0, 0, 0, 0)}
        inputs = [Tensor(name, "INT64", (1, 4), ids[name]) for name in INPUTS]
    else:
        return None
    return GoldenCase(str(config["name"]), tuple(inputs), wanted=asked)
