"""A served model's answers compared with each other, over the wire: before a promotion, and in parity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bertmp.export.consistency.check import Comparison, Consistency, Outputs, check_consistency, compare_batch
from bertmp.export.consistency.probe import MANY, SOME, Probe, Size, graph_shapes, profile_shapes
from bertmp.export.consistency.tolerance import FP32, Tolerance
from bertmp.export.engine.engine_options import Profile
from bertmp.export.parity.cpu_bf16_stage import CPU_BF16, TOLERANCE
from bertmp.export.parity.self_check import labels_output
from bertmp.export.parity.tasks import VIEWS
from bertmp.serve.client import Client
from bertmp.serve.model_signature import encoder_name
from bertmp.serve.served_tasks import TASKS, WITH_MASKS
from bertmp.serve.serving_options import Texts
from bertmp.serve.text_requests import text_inputs

TEXTS = (
    "Who ?",
    "What is the capital of France ?",
    "How many of the people who lived on the coast in that year had ever seen a ship , a lighthouse or an "
    "island , and what did they write about it to those who stayed at home ?",
)
"""A short text, a usual one and a long one: what a new version is asked before it counts."""


def served_graph(config: Mapping[str, Any]) -> dict[str, str]:
    """What an encoder's configuration says of the graph that it runs.

    Args:
        config: Triton's model configuration as JSON.

    Returns:
        `platform` and `file`; and where they give its precision away, `precision` and `serves`, the stage
        of the bundle that it is: `engine`, `onnx-fp16`, `onnx-bf16`. Whether a CPU runs the FP32 graph in
        BF16, the configuration does not say: see `running_graph`.
    """
    platform = str(config.get("platform") or config.get("backend") or "")
    file = str(config.get("default_model_filename") or "")
    facts = {"platform": platform, "file": file}
    if platform == "tensorrt_plan":
        return {**facts, "precision": "as the engine's plan", "serves": "engine"}
    for precision in ("fp16", "bf16"):
        if precision in file.split("."):
            return {**facts, "precision": precision, "serves": f"onnx-{precision}"}
    return facts


def running_graph(client: Client, model: str, version: int | None = None) -> dict[str, str]:
    """What a text model's encoder runs, as `served_graph` says it, `cpu-bf16` among what it may serve.

    Args:
        model: the text model's name.
        version: of the model; None for the newest.

    Raises:
        InputError: the server does not answer.
    """
    facts = served_graph(client.config(encoder_name(model)))
    if "serves" in facts:
        return facts
    served = client.describe(model)
    texts, pairs = texts_for(served.task, served.pairs)
    told = client.settings(
        model, texts[0], "" if version is None else str(version), pairs[0] if pairs else None
    )
    return {**facts, "precision": "bf16", "serves": CPU_BF16} if told.get("precision") == "bf16" else facts


def check_encoder(
    client: Client,
    model: str,
    version: int,
    probe: Probe,
    low: Tolerance,
    profiles: Sequence[Profile] = (),
    task: str = "classification",
) -> Consistency:
    """Asks the encoder of a text model for the same rows in many batches and at many lengths.

    Args:
        model: the text model's name.
        low: the bound where the encoder runs the bundle's low-precision graph or engine.
        profiles: those of the bundle's engine, whose shapes are asked where an engine is served.
        task: what the model answers.

    Raises:
        InputError: the server does not answer.
    """
    encoder = encoder_name(model)
    serves, largest = running_graph(client, model, version).get("serves"), client.max_batch(encoder)
    if serves == "engine" and profiles:
        shapes = _accepted(profile_shapes(profiles, probe), (largest, probe.max_length))
    else:
        shapes = graph_shapes(probe, largest)
    outputs = TASKS[task].outputs

    def run(feed: dict[str, np.ndarray]) -> Outputs:
        return client.infer(encoder, feed, outputs, str(version))[0]

    tolerance = {None: FP32, CPU_BF16: TOLERANCE}.get(serves, low)
    return check_consistency(run, probe, shapes, tolerance, labels_output(VIEWS[task]))


def _accepted(shapes: Sequence[Size], largest: Size) -> list[Size]:
    """An engine's shapes within what the server takes: larger batches are cut, longer rows left out."""
    return sorted({(min(batch, largest[0]), length) for batch, length in shapes if length <= largest[1]})


def check_texts(client: Client, model: str, version: int, encoder: Consistency) -> Consistency:
    """Asks a text model for the same texts alone, twice in a batch and in another order.

    Args:
        encoder: what was found for its encoder: probabilities may differ by half of what logits may.

    Returns:
        The encoder's results with the text model's behind them.

    Raises:
        InputError: the server does not answer.
    """
    bound = max((result.bound for result in encoder.results), default=FP32.bound(1)) / 2
    served = client.describe(model)
    texts, _ = texts_for(served.task, served.pairs)
    found = Comparison([repr(text) for text in texts], Tolerance(bound, 0.0, ""), "PROBABILITIES")
    ask = partial(_ask, client, model, version, {})
    alone = {number: ask([number])[0] for number in range(len(texts))}
    for batch in sorted({min(size, client.max_batch(model)) for size in (SOME, MANY)} - {1}):
        compare_batch(ask, alone, batch, found, f"{batch} texts", [1] * len(texts))
    return replace(encoder, results=(*encoder.results, *found.result().results))


def texts_for(task: str, pairs: bool) -> Texts:
    """Texts, or pairs of texts, that a model is asked before it counts."""
    texts = [f"{text} [MASK]" for text in TEXTS] if task in WITH_MASKS else TEXTS
    return texts, TEXTS[::-1] if pairs else None


def _ask(
    client: Client, model: str, version: int, numbered: dict[str, int], numbers: Sequence[int]
) -> list[Outputs]:
    """The answers to some of the texts in one request; words as numbers, which `numbered` keeps."""
    served = client.describe(model)
    texts, pairs = texts_for(served.task, served.pairs)
    inputs = text_inputs([texts[at] for at in numbers], pairs and [pairs[at] for at in numbers])
    names = TASKS[served.task].answers
    found, _ = client.infer(model, inputs, tuple(names), str(version))
    rows: list[Outputs] = []
    for row in range(len(numbers)):
        numeric: dict[str, np.ndarray] = {}
        for name, kind in names.items():
            if kind == "BYTES":
                text = found[name][row].reshape(-1)[0].decode()
                words, scores = (text, []) if name == "LABEL" else _words_and_scores(text)
                numeric[name] = np.array(numbered.setdefault(words, len(numbered)))
                numeric[f"{name} scores"] = np.array(scores, np.float32)
            else:
                numeric[name] = found[name][row]
        rows.append(numeric)
    return rows


def _words_and_scores(text: str) -> tuple[str, list[float]]:
    """An answer's words and, apart from them, its scores; of words for a mask, the best one."""
    words, scores = [], []
    for one in json.loads(text):
        fields = {**one, **one["candidates"][0]} if isinstance(one, dict) and "candidates" in one else one
        if isinstance(fields, dict):
            scores.append(float(fields["score"]))
            fields = [fields.get(name) for name in ("label", "field", "start", "end", "token")]
        words.append(fields)
    return json.dumps(words), scores
