"""Versions are swapped while clients ask: what they notice of it."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.systems import MODEL, Prepared, SystemFailed, serve_bertmp
from benchmarks.subprocess_runner import REPOSITORY, run_child

Answered = tuple[float, float, int, str]
"""When a request was sent and answered (monotonic seconds), by which version, and why it failed if it did."""


def swap_versions(
    prepared: Prepared, other: Path, texts: Sequence[str], swaps: int, seconds: float, clients: int
) -> dict[str, Any]:
    """Deploys two bundles in turn into a running server that `clients` ask without a pause.

    Args:
        other: a bundle with other weights than the deployed one.
        seconds: how long the clients ask before the first swap, to compare with.

    Raises:
        SystemFailed: the server did not start, or a version was refused.
        ChildFailed: the clients' process failed.
    """
    repository = Path(shutil.copytree(prepared.repositories["fp32"], prepared.scratch / "swapped"))
    done: list[tuple[float, float, int]] = []
    with serve_bertmp(repository, prepared) as endpoint, tempfile.TemporaryDirectory() as folder:
        stop = Path(folder) / "stop"
        arguments = {
            "address": endpoint.address,
            "path": endpoint.path,
            "bodies": [json.dumps(endpoint.payload(text)) for text in texts],
            "clients": clients,
            "stop": str(stop),
        }
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(run_child, "benchmarks.serving.swaps", arguments, 1)
            try:
                threading.Event().wait(seconds)
                for number in range(swaps):
                    began = time.monotonic()
                    version = _deploy((other, prepared.bundle)[number % 2], repository, endpoint.address)
                    done.append((began, time.monotonic(), version))
            finally:
                stop.touch()
            answered = asking.result()["answered"]
    return _figures([(*one,) for one in answered], done, clients)


def _deploy(bundle: Path, repository: Path, address: str) -> int:
    """Runs `bertmp deploy`; the version that answers then."""
    options = {"name": MODEL, "repository": repository, "server": f"http://{address}", "keep": 2}
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "bertmp", "deploy", str(bundle), *given, "--allow-unverified", "--json"]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemFailed(found.stderr[-2000:])
    return int(json.loads(found.stdout)["version"])


def _figures(
    answered: Sequence[Answered], done: Sequence[tuple[float, float, int]], clients: int
) -> dict[str, Any]:
    first, last = done[0][0], done[-1][1]
    before = [end - sent for sent, end, *_ in answered if end < first]
    during = [end - sent for sent, end, *_ in answered if end >= first and sent <= last]
    stale = [
        version for sent, _, version, failure in answered
        if not failure and version < max((new for _, end, new in done if end <= sent), default=0)
    ]  # fmt: skip
    failures = [failure for *_, failure in answered if failure]
    return {
        "clients": clients,
        "swaps": len(done),
        "seconds_per_swap": float(np.median([end - began for began, end, _ in done])),
        "requests": len(answered),
        "failures": len(failures),
        "failure": next(iter(failures), None),
        "answers_of_the_old_version": len(stale),
        "usual": _latencies(before),
        "while_swapping": _latencies(during),
        "longest_ms_above": 1000 * (max(during) - max(before)),
        "goal": 100.0,
    }


def _latencies(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, (50, 99))
    return {"p50_ms": 1000 * p50, "p99_ms": 1000 * p99, "longest_ms": 1000 * max(seconds)}


def measure(address: str, path: str, bodies: list[str], clients: int, stop: str) -> dict[str, Any]:
    """Asks without a pause, each client on its own connection, until the file `stop` is there."""

    def ask(number: int) -> list[Answered]:
        found: list[Answered] = []
        connection = http.client.HTTPConnection(address, timeout=60)
        while not Path(stop).exists():
            body = bodies[(number + clients * len(found)) % len(bodies)]
            sent = time.monotonic()
            version, failure = 0, ""
            try:
                connection.request("POST", f"/{path}", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = json.loads(response.read())
                if response.status == 200:
                    version = int(answer["model_version"])
                else:
                    failure = f"{response.status}: {answer.get('error')}"
            except (OSError, ValueError, http.client.HTTPException) as error:
                failure = repr(error)
                connection.close()
            found.append((sent, time.monotonic(), version, failure))
        return found

    with ThreadPoolExecutor(clients) as pool:
        answered = [one for part in pool.map(ask, range(clients)) for one in part]
    return {"answered": answered}
