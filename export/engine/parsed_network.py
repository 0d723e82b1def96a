"""The network as the builder's parser made it from the ONNX graph, as plain data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

FLOATS = ("FLOAT", "HALF", "BF16", "FP8", "FP4", "E8M0")
"""TensorRT's floating-point types by name."""

_ORIGIN = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:\[|$))")


@dataclass(frozen=True)
class LayerTensor:
    """An input or output of a layer.

    Attributes:
        name: the tensor's name.
        dtype: TensorRT's name for its type, e.g. `HALF`, `FLOAT`, `INT64`.
        shape: its dimensions, −1 where dynamic.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ParsedLayer:
    """One layer of the parsed network.

    Attributes:
        name: TensorRT's name for it.
        type: TensorRT's layer type, e.g. `MATRIX_MULTIPLY`.
        node: the ONNX node it came from; empty where the parser added it of itself.
        inputs, outputs: its tensors.
    """

    name: str
    type: str
    node: str
    inputs: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]

    @property
    def floats(self) -> tuple[tuple[str, LayerTensor], ...]:
        """The floating-point tensors whose values it reads or writes, each with its place (`input 0`)."""
        # A SHAPE layer looks at its input's dimensions, never at its values.
        read = () if self.type == "SHAPE" else self.inputs
        placed = [
            *((f"input {index}", tensor) for index, tensor in enumerate(read)),
            *((f"output {index}", tensor) for index, tensor in enumerate(self.outputs)),
        ]
        return tuple((place, tensor) for place, tensor in placed if tensor.dtype in FLOATS)

    @property
    def precision(self) -> str:
        """The one type of its floating-point tensors, `A/B` where they differ, else its output's type."""
        kinds = dict.fromkeys(tensor.dtype for _, tensor in self.floats)
        if kinds:
            return "/".join(kinds)
        return self.outputs[0].dtype if self.outputs else "NONE"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "type": self.type, "precision": self.precision, "node": self.node,
                "inputs": [asdict(tensor) for tensor in self.inputs],
                "outputs": [asdict(tensor) for tensor in self.outputs]}  # fmt: skip


def origin(metadata: str) -> str:
    """The ONNX node's name in a layer's metadata, which reads `[ONNX Layer: NAME]`; empty without one."""
    match = _ORIGIN.search(metadata or "")
    return match[1] if match else ""


def read_network(network: Any) -> list[ParsedLayer]:
    """All layers of a TensorRT `INetworkDefinition`, in its order."""
    return [_read_layer(network.get_layer(index)) for index in range(network.num_layers)]


def _read_layer(layer: Any) -> ParsedLayer:
    return ParsedLayer(
        name=layer.name,
        type=_bare(layer.type),
        node=origin(layer.metadata),
        inputs=_tensors(layer.get_input(index) for index in range(layer.num_inputs)),
        outputs=_tensors(layer.get_output(index) for index in range(layer.num_outputs)),
    )


def _tensors(tensors: Any) -> tuple[LayerTensor, ...]:
    # An optional input that is not connected is None.
    return tuple(
        LayerTensor(tensor.name, _bare(tensor.dtype), _dims(tensor.shape))
        for tensor in tensors
        if tensor is not None
    )


def _dims(shape: Any) -> tuple[int, ...]:
    try:
        return tuple(int(dim) for dim in shape)
    except ValueError:  # TensorRT's Dims of an unknown rank has a negative length
        return ()


def _bare(value: Any) -> str:
    """`DataType.HALF` → `HALF`."""
    return str(value).rsplit(".", 1)[-1]


def summarise(layers: Sequence[ParsedLayer]) -> dict[str, dict[str, int]]:
    """Layer type → precision → how many layers, e.g. `{"NORMALIZATION": {"FLOAT": 13}}`."""
    counts: dict[str, dict[str, int]] = {}
    for layer in layers:
        kinds = counts.setdefault(layer.type, {})
        kinds[layer.precision] = kinds.get(layer.precision, 0) + 1
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}
