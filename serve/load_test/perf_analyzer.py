"""Load from Triton's own load generator, a compiled program: it takes next to nothing from the server.

It writes down every request with the time it was sent and answered; the figures are made from these, not from
what it prints. It ends at the first request that fails: then others have to measure, who count failures.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertmp.core.errors import BertmpError
from bertmp.environment.perf_analyzer import PerfAnalyzer
from bertmp.serve.load_test.load import Load, Recording, TextRequests
from bertmp.serve.serving_options import Protocol

MOST_ROWS = 20_000
"""It reads all inputs before it starts; more are not asked."""
_WINDOWS = 3
"""It measures this many windows at least, and lets each last 1.2 times as long as it is told."""
_SHORTEST_WINDOW = 1.0
"""In seconds. It gives up where no request ends in a window; then it is run with longer ones."""
_LONGEST_WINDOW = 60.0
_GRACE = 60.0
"""Seconds beyond the load that it may take to start and to end."""
_UNSTABLE_IS_FINE = ("--stability-percentage", "1000000", "--max-trials", str(_WINDOWS))


class RequestFailed(BertmpError):
    """It ended before the load did: a request failed, or it could not start."""


@dataclass(frozen=True)
class Target:
    """What is asked, in its own terms.

    Attributes:
        arguments: of its command line.
        rows: its input data.
    """

    arguments: Sequence[str]
    rows: Sequence[Mapping[str, Any]]


def text_target(address: str, protocol: Protocol, requests: TextRequests) -> Target:
    """A text model of a Triton server, over Triton's protocols."""
    rows = [
        {name: {"content": [text], "shape": [1]} for name, text in zip(requests.inputs, row, strict=True)}
        for row in requests.rows[:MOST_ROWS]
    ]
    return Target(("-m", requests.model, "-u", address, "-i", protocol), rows)


def measure(tool: PerfAnalyzer, target: Target, load: Load) -> Recording:
    """Puts the load on the server.

    Raises:
        RequestFailed: a request failed, or the tool could not ask; nothing was measured.
    """
    window = max(_SHORTEST_WINDOW, (load.warm_up + load.seconds) / _WINDOWS)
    while True:
        try:
            return _run(tool, target, load, window)
        except RequestFailed as error:
            window *= 3
            if "No valid requests" not in str(error) or window > _LONGEST_WINDOW:
                raise


def _run(tool: PerfAnalyzer, target: Target, load: Load, window: float) -> Recording:
    with tempfile.TemporaryDirectory(prefix="bertmp-bench-") as folder:
        data, export = Path(folder) / "data.json", Path(folder) / "export.json"
        data.write_text(json.dumps({"data": list(target.rows)}), encoding="utf-8")
        files = ("--input-data", str(data), "--profile-export-file", str(export))
        command = [
            str(tool.executable),
            *target.arguments,
            *files,
            *_load_arguments(load, window),
            *_UNSTABLE_IS_FINE,
        ]
        try:
            done = subprocess.run(
                command, env=tool.environment(os.environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
                timeout=2 * _WINDOWS * window + _GRACE,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RequestFailed(f"perf_analyzer did not run to its end: {error}") from error
        if done.returncode or not export.is_file():
            raise RequestFailed(_reason(done.stdout))
        return _read(json.loads(export.read_text(encoding="utf-8", errors="replace")), load)


def _load_arguments(load: Load, window: float) -> tuple[str, ...]:
    length = ("--measurement-interval", str(math.ceil(1000 * window)))
    if load.is_open:
        # Asynchronous, from one thread: no answer holds up the next request.
        return ("--request-rate-range", f"{load.rate:g}", "--max-threads", "1", "--async", *length)
    return ("--concurrency-range", str(load.clients), "--max-threads", str(load.clients), *length)


def _reason(output: str) -> str:
    """Its error in a clause: it prints the server's own words behind `had error:`."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for mark in ("had error:", "error:", "Error:"):
        found = [line.partition(mark)[2].strip() for line in lines if mark in line]
        if any(found):
            return next(filter(None, found))[:300]
    return (lines or ["perf_analyzer gave no reason"])[-1][:300]


def _read(export: Mapping[str, Any], load: Load) -> Recording:
    rows = [row for row in export["experiments"][0]["requests"] if row["response_timestamps"]]
    rows.sort(key=lambda row: row["timestamp"])
    sent = np.array([row["timestamp"] for row in rows], dtype=np.int64)
    done = np.array([row["response_timestamps"][-1] for row in rows], dtype=np.int64)
    first = sent[0] if len(sent) else 0
    left, arrived = (sent - first) / 1e9, (done - first) / 1e9
    if load.is_open:  # the clock began where no request was sent too early
        planned = np.arange(len(left)) / load.rate
        arrived -= (left - planned).min(initial=0.0)
        left = planned
    outputs = [(row.get("response_outputs") or [{}])[-1] for row in rows]
    tokens = np.array([int(one.get("TOKENS", 0)) for one in outputs], dtype=np.int64)
    inputs = [row.get("request_inputs", {}) for row in rows]
    return Recording(left, arrived, tokens, inputs=inputs, outputs=outputs)
