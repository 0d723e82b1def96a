"""Makes a version's golden requests when it is deployed: the bundle's FP32 graph says what is right."""

from __future__ import annotations

from typing import Any

import numpy as np

from bertmp.data.batches import pad_batch
from bertmp.export.answers import softmax
from bertmp.export.bundle import FP32_GRAPH, Bundle
from bertmp.export.graph.ort_sessions import open_session
from bertmp.serve.golden import LARGEST, GoldenCase, Tensor, any_request
from bertmp.serve.model_config import INPUTS
from bertmp.serve.model_signature import read_model_config
from bertmp.serve.repository import ModelFolders

_PROBABILITY_BOUND = 0.1
_CLEAR_MARGIN = 3 * _PROBABILITY_BOUND
"""By how much the best class must lead for its label to be part of what is right."""


def golden_cases(bundle: Bundle, folders: ModelFolders) -> list[GoldenCase]:
    """The golden requests of a bundle's text model and its encoder.

    Where ONNX Runtime is not installed or does not run the graph, there are only requests, and any finite
    answer will do: whether the graph is sound is for others to judge.

    Args:
        folders: the models', with their configurations.
    """
    text_config = read_model_config(folders.text / "configs" / "cpu.pbtxt")
    asked = any_request(_as_json(text_config))
    if asked is None:
        return []
    texts = {tensor.name: tensor.data[0] for tensor in asked.inputs}
    second = [texts["TEXT_PAIR"]] if "TEXT_PAIR" in texts else None
    encoded = bundle.tokenizer.encode([texts["TEXT"]], second)
    feed = pad_batch(encoded, bundle.tokenizer.pad_id)
    ids = [_tensor(name, "INT64", feed[name]) for name in INPUTS]
    outputs = _run(bundle, feed)
    fitting = tuple(_tensor(name, "FP32", one) for name, one in outputs.items() if one.size <= LARGEST)
    cases = [GoldenCase(asked.model, asked.inputs, _text_outputs(bundle, asked, outputs), asked.wanted)]
    return [*cases, GoldenCase(folders.encoder.name, tuple(ids), fitting)] if fitting else cases


def _run(bundle: Bundle, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of the FP32 graph; none where it cannot be run or its numbers are not finite."""
    try:
        session = open_session(bundle.folder / FP32_GRAPH)
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(names, feed), strict=True))
    except Exception:  # the runtime's own exceptions share no other base
        return {}
    return found if all(np.isfinite(array).all() for array in found.values()) else {}


def _text_outputs(bundle: Bundle, asked: GoldenCase, outputs: dict[str, np.ndarray]) -> tuple[Tensor, ...]:
    """What the text model should answer, where that follows from the logits alone."""
    logits = outputs.get("logits")
    if logits is None or logits.ndim != 2:
        return ()
    if "VALUE" in asked.wanted:
        return (_tensor("VALUE", "FP32", logits),)
    if "LABEL" not in asked.wanted:
        return ()
    probabilities = softmax(logits)
    found = [_tensor("PROBABILITIES", "FP32", probabilities, _PROBABILITY_BOUND)]
    *_, second, first = np.sort(probabilities[0])
    if first - second > _CLEAR_MARGIN:
        label = bundle.labels[int(probabilities[0].argmax())]
        found.append(Tensor("LABEL", "BYTES", (1, 1), (label,)))
    return tuple(found)


def _tensor(name: str, datatype: str, array: np.ndarray, bound: float = 0.0) -> Tensor:
    return Tensor(name, datatype, array.shape, tuple(array.reshape(-1).tolist()), bound)


def _as_json(config: Any) -> dict[str, Any]:
    """What `any_request` reads of a configuration message, in Triton's JSON form."""
    tensors = {
        kind: [{"name": one.name, "dims": list(one.dims)} for one in getattr(config, kind)]
        for kind in ("input", "output")
    }
    return {"name": config.name, **tensors}
