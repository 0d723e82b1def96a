"""Whether a bundle is what `export` makes of its checkpoint: labels, configuration, tokenizer, weights.

Every stage gets its token ids from the bundle's tokenizer and its labels from the bundle: a fault in one of
these is in all stages alike, so that no answer shows it. A wrong weight that no example uses shows in none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from bertmp.core.errors import InputError
from bertmp.export.bundle import CONFIG, FP32_GRAPH, LABELS, Bundle
from bertmp.export.graph.loading import load_graph
from bertmp.export.graph.weights import tensor_values

_TRANSPOSED = "/transposed"
"""What follows a parameter's name where the graph has it the other way round."""


def check_as_exported(bundle: Bundle, checkpoint: Path) -> tuple[str, str | None]:
    """The first difference between a bundle and its checkpoint.

    Args:
        checkpoint: the folder that was exported; its weights' fingerprint is checked already.

    Returns:
        That of the labels, the configuration or the tokenizer, and that of the FP32 graph's weights: empty
        where there is none, None for a graph that cannot be read.

    Raises:
        InputError: the checkpoint is damaged.
    """
    from bertmp.model.checkpoint import load_checkpoint

    loaded = load_checkpoint(checkpoint, bundle.task)
    differences = next(_differences(bundle, loaded), "")
    try:
        graph = load_graph(bundle.folder / FP32_GRAPH)
    except InputError:
        return differences, None  # its own stage fails on it
    return differences, next(_weight_differences(graph, loaded.model), "")


def _differences(bundle: Bundle, loaded: Any) -> Iterator[str]:
    if loaded.model.classes and list(loaded.labels) != list(bundle.labels):
        yield f"{LABELS} has {', '.join(bundle.labels)} where the checkpoint has {', '.join(loaded.labels)}"
    config = loaded.config.to_dict(loaded.model.architecture, loaded.model.problem)
    for key, value in config.items():
        # A bundle of an earlier version may lack a key; one with another value is wrong.
        if key in bundle.config and bundle.config[key] != value:
            yield f"{CONFIG} has the {key} {bundle.config[key]} where the checkpoint has {value}"
    if difference := bundle.tokenizer.difference(loaded.tokenizer):
        yield f"the tokenizer has another {difference} than the checkpoint's"


def _weight_differences(graph: ModelProto, model: Any) -> Iterator[str]:
    """The FP32 graph's weights that are not the checkpoint's, but for those that have other names there."""
    parameters = model.state_dict()
    for tensor in graph.graph.initializer:
        name = tensor.name.removesuffix(_TRANSPOSED)
        if name not in parameters:
            continue
        wanted, found = parameters[name].numpy(), tensor_values(tensor)
        wanted = wanted.T if tensor.name.endswith(_TRANSPOSED) else wanted
        if wanted.shape != found.shape or not np.array_equal(wanted, found):
            yield f"{FP32_GRAPH} has another {name} than the checkpoint"
