"""Makes a version's golden requests when it is deployed: the bundle's FP32 graph says what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bertmp.data.batches import pad_batch
from bertmp.export.answers import Classes, Embedding, LabelSet, Value, decoder_of, normalised
from bertmp.export.bundle import FP32_GRAPH, Bundle
from bertmp.export.graph.ort_sessions import open_session
from bertmp.export.parity.cpu_bf16_stage import CPU_BF16
from bertmp.export.parity.gates import DEFAULTS
from bertmp.serve.golden import LARGEST, PROBABILITY_BOUND, GoldenCase, Tensor, any_request, leads_clearly
from bertmp.serve.model_config import INPUTS
from bertmp.serve.model_signature import read_model_config
from bertmp.serve.repository import ModelFolders
from bertmp.serve.served_tasks import labels_of


def golden_cases(
    bundle: Bundle, folders: ModelFolders, pooling: str, low_precision: bool = False
) -> list[GoldenCase]:
    """The golden requests of a bundle's text model and its encoder.

    Where ONNX Runtime is not installed or does not run the graph, there are only requests, and any finite
    answer will do: whether the graph is sound is for others to judge.

    Args:
        folders: the models', with their configurations.
        pooling: how an encoder's states become an embedding.
        low_precision: whether the version's graph runs in BF16 on a CPU: whatever parity lets pass there is
            right here.
    """
    configs = [
        read_model_config(model / "configs" / "cpu.pbtxt") for model in (folders.text, folders.encoder)
    ]
    asked = any_request(_as_json(configs[0]))
    if asked is None:
        return []
    texts = {tensor.name: tensor.data[0] for tensor in asked.inputs}
    second = [texts["TEXT_PAIR"]] if "TEXT_PAIR" in texts else None
    encoded = bundle.tokenizer.encode([texts["TEXT"]], second)
    feed = pad_batch(encoded, bundle.tokenizer.pad_id)
    outputs = _run(bundle, feed)
    ids = encoded[0].input_ids
    answers = _text_outputs(bundle, asked, outputs, ids, pooling)
    cases = [replace(asked, outputs=answers)]
    served = {output.name for output in configs[1].output}
    fitting = {name: one for name, one in outputs.items() if name in served and one.size <= LARGEST}
    if fitting:
        inputs = tuple(_tensor(name, "INT64", feed[name]) for name in INPUTS)
        answer = tuple(_tensor(name, "FP32", one) for name, one in fitting.items())
        cases.append(GoldenCase(folders.encoder.name, inputs, answer))
    return (
        [replace(case, outputs=tuple(map(_widened, case.outputs))) for case in cases]
        if low_precision
        else cases
    )


def _widened(tensor: Tensor) -> Tensor:
    """The tensor with at least the bound that parity has for BF16: of a probability, half of a logit's."""
    if tensor.datatype != "FP32" or tensor.name == "EMBEDDING":
        return tensor
    error = DEFAULTS[CPU_BF16].max_error or 0.0
    least = error / 2 if tensor.name == "PROBABILITIES" else error
    return replace(tensor, bound=max(tensor.usual_bound, least))


def _run(bundle: Bundle, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The finite outputs of the FP32 graph; none where it cannot be run."""
    try:
        session = open_session(bundle.folder / FP32_GRAPH)
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(names, feed), strict=True))
    except Exception:  # the runtime's own exceptions share no other base
        return {}
    return {name: array for name, array in found.items() if np.isfinite(array).all()}


def _text_outputs(
    bundle: Bundle, asked: GoldenCase, outputs: dict[str, np.ndarray], ids: Sequence[int], pooling: str
) -> tuple[Tensor, ...]:
    """What the text model should answer in any precision: numbers, and a label that leads clearly."""
    labels = labels_of(bundle.task, bundle.labels)
    decoder = decoder_of(bundle.task, labels=labels, pooling=pooling)
    if not isinstance(decoder, (Classes, LabelSet, Value, Embedding)) or not set(decoder.outputs) <= set(
        outputs
    ):
        return ()
    scores = decoder.scores(outputs, 0, ids)
    if isinstance(decoder, Value):
        return (_tensor("VALUE", "FP32", scores[None]),)
    if isinstance(decoder, Embedding):
        return (_tensor("EMBEDDING", "FP32", normalised(scores)[None]),)
    found = [_tensor("PROBABILITIES", "FP32", scores[None], PROBABILITY_BOUND)]
    if isinstance(decoder, Classes) and leads_clearly(scores.tolist()):
        found.append(Tensor("LABEL", "BYTES", (1, 1), (labels[int(scores.argmax())],)))
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
