"""One system under one load after the other, and whether its answers are right."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.serving.systems import Endpoint, SystemFailed
from bertmp.core.errors import MissingComponent
from bertmp.environment.perf_analyzer import PerfAnalyzer, find_perf_analyzer
from bertmp.serve.load_test.figures import LoadPoint, load_point
from bertmp.serve.load_test.load import Load, Recording
from bertmp.serve.load_test.perf_analyzer import RequestFailed, Target, measure


@dataclass(frozen=True)
class Questions:
    """What every system is asked.

    Attributes:
        texts: asked in turn.
        labels: the right answer to each: that of the same weights in FP32, in process.
    """

    texts: Sequence[str]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Measured:
    """A system under one load.

    Attributes:
        point: the figures; None where a request failed, which ends the load.
        failure: why there are none; empty where there are.
        wrong: answers of the load that were not the expected label.
        answers: all that were looked at.
    """

    point: LoadPoint | None
    failure: str = ""
    wrong: int = 0
    answers: int = 0

    @property
    def failures(self) -> int:
        return self.point.failures if self.point is not None else 1


def load_generator() -> PerfAnalyzer:
    """Triton's own.

    Raises:
        MissingComponent: it is not installed.
    """
    tool = find_perf_analyzer()
    if tool is None:
        raise MissingComponent("perf_analyzer is not installed", "", "run 'bertmp setup triton'")
    return tool


COMPARED = 32
"""Texts that a system answers before it is measured."""
MOST_WRONG = 2
"""More labels that differ than rounding explains: the system serves something else."""


def compare_first(system: Endpoint, questions: Questions) -> None:
    """Asks a system that has just started for some labels, which also warms it up.

    Raises:
        SystemFailed: its labels are not those of the same weights in process.
    """
    connection = http.client.HTTPConnection(system.address, timeout=60)
    wrong = []
    for text in questions.texts[:COMPARED]:
        body = json.dumps(system.payload(text)).encode()
        connection.request("POST", f"/{system.path}", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        if (label := system.label(answer)) != questions.labels[text]:
            wrong.append(f"{label} in place of {questions.labels[text]} for {text!r}")
    connection.close()
    if len(wrong) > MOST_WRONG:
        raise SystemFailed(f"{len(wrong)} of the first {COMPARED} labels differ: {wrong[0]}")


def put_load(tool: PerfAnalyzer, system: Endpoint, questions: Questions, load: Load) -> Measured:
    """Puts one load on a running system: POST of JSON over HTTP, text in, label and probabilities out."""
    payloads = [system.payload(text) for text in questions.texts]
    try:
        seen = measure(tool, json_target(system.address, system.path, payloads), load)
    except RequestFailed as error:
        return Measured(None, str(error))
    return Measured(
        load_point(load, seen), wrong=_wrong(system, payloads, questions, seen), answers=len(seen.outputs)
    )


def json_target(address: str, path: str, payloads: Sequence[Any]) -> Target:
    """Any HTTP server that takes a POST of JSON and answers with 200 and JSON.

    Args:
        path: of the address, without the first slash.
    """
    arguments = ("-m", "any", "-u", address, "--service-kind", "openai", "--endpoint", path, "--async")
    return Target(arguments, [{"payload": [payload]} for payload in payloads])


def _wrong(system: Endpoint, payloads: Sequence[Any], questions: Questions, seen: Recording) -> int:
    """How many answers are not the label that was expected for what was asked."""
    keys = (json.dumps(payload, sort_keys=True) for payload in payloads)
    expected = dict(zip(keys, (questions.labels[text] for text in questions.texts), strict=True))
    asked = (json.dumps(json.loads(row["payload"]), sort_keys=True) for row in seen.inputs)
    answers = (system.label(json.loads(row["response"])) for row in seen.outputs)
    return sum(expected[key] != label for key, label in zip(asked, answers, strict=True))
