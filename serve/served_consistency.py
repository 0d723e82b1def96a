"""A served model's answers compared with each other, over the wire: before a promotion, and in parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bertmp.export.consistency.check import Comparison, Consistency, Outputs, check_consistency, compare_batch
from bertmp.export.consistency.probe import MANY, SOME, Probe, Size, graph_shapes, profile_shapes
from bertmp.export.consistency.tolerance import FP32, Tolerance
from bertmp.export.engine.engine_options import Profile
from bertmp.serve.client import Client
from bertmp.serve.model_config import encoder_name

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
        of the bundle that it is: `engine`, `onnx-fp16`, `onnx-bf16`.
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


def check_encoder(
    client: Client,
    model: str,
    version: int,
    probe: Probe,
    low: Tolerance,
    profiles: Sequence[Profile] = (),
) -> Consistency:
    """Asks the encoder of a text model for the same rows in many batches and at many lengths.

    Args:
        model: the text model's name.
        low: the bound where the encoder runs in 16 bits; else it is FP32's.
        profiles: those of the bundle's engine, whose shapes are asked where an engine is served.

    Raises:
        InputError: the server does not answer.
    """
    encoder = encoder_name(model)
    serves, largest = served_graph(client.config(encoder)).get("serves"), client.max_batch(encoder)
    if serves == "engine" and profiles:
        shapes = _accepted(profile_shapes(profiles, probe), (largest, probe.max_length))
    else:
        shapes = graph_shapes(probe, largest)

    def run(feed: dict[str, np.ndarray]) -> Outputs:
        return {"logits": client.encode(encoder, feed, str(version))}

    return check_consistency(run, probe, shapes, low if serves else FP32)


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
    found = Comparison([repr(text) for text in TEXTS], Tolerance(bound, 0.0, ""), "PROBABILITIES")
    ask = partial(_classify, client, model, version, {})
    alone = {number: ask([number])[0] for number in range(len(TEXTS))}
    for batch in sorted({min(size, client.max_batch(model)) for size in (SOME, MANY)} - {1}):
        compare_batch(ask, alone, batch, found, f"{batch} texts", [1] * len(TEXTS))
    return replace(encoder, results=(*encoder.results, *found.result().results))


def _classify(
    client: Client, model: str, version: int, numbered: dict[str, int], numbers: Sequence[int]
) -> list[Outputs]:
    """The answers to some of `TEXTS` in one request; labels as numbers, which `numbered` keeps."""
    found = client.classify(model, [TEXTS[number] for number in numbers], str(version))
    labels = [numbered.setdefault(label, len(numbered)) for label in found.labels]
    rows = zip(found.probabilities, labels, strict=True)
    return [{"PROBABILITIES": row, "LABEL": np.array(label)} for row, label in rows]
