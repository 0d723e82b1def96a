"""The load generator beside another compiled one, wrk: the same requests must give the same rate."""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ab_runs import Run, alternate, of_side, say
from benchmarks.serving.load import Questions, put_load
from benchmarks.serving.systems import Endpoint
from bertmp.environment.perf_analyzer import PerfAnalyzer
from bertmp.serve.load_test.load import Load

PEER = "wrk"
GOAL = 0.1
"""By how much the two rates may differ, as a share of wrk's."""
_SCRIPT = """
local bodies = {{{bodies}}}
local at = 0
request = function()
  at = at % #bodies + 1
  return wrk.format("POST", "/{path}", {{["Content-Type"] = "application/json"}}, bodies[at])
end
"""


class GeneratorFailed(Exception):
    """A generator could not ask, or a request of its failed; the message says why."""


def compare_generators(
    tool: PerfAnalyzer, system: Endpoint, questions: Questions, load: Load, rounds: int
) -> dict[str, Any]:
    """Both generators in turn against one running system.

    Returns:
        Medians of the rounds in texts per second, and perf_analyzer's over wrk's; where wrk is not
        installed, `not_run` alone.

    Raises:
        GeneratorFailed: a request failed.
    """
    if shutil.which(PEER) is None:
        say(f"  {PEER} is not installed: the load generator is not compared with it")
        return {"not_run": f"{PEER} is not installed"}

    def ours(seed: int) -> dict[str, Any]:
        measured = put_load(tool, system, questions, load)
        if measured.point is None:
            raise GeneratorFailed(f"perf_analyzer: {measured.failure}")
        return {"texts_per_second": measured.point.texts_per_second}

    def peer(seed: int) -> dict[str, Any]:
        return {"texts_per_second": wrk_rate(system, questions, load)}

    runs = alternate({"perf_analyzer": ours, PEER: peer}, rounds, _show)
    rates = {
        side: statistics.median(of_side(runs, side, "texts_per_second")) for side in ("perf_analyzer", PEER)
    }
    ratio = rates["perf_analyzer"] / rates[PEER]
    return {
        "clients": load.clients,
        "texts_per_second": rates,
        "ratio": ratio,
        "goal": {"ratio_off": GOAL, "met": abs(ratio - 1) <= GOAL},
    }


def _show(run: Run) -> str:
    return f"{run.values['texts_per_second']:.1f}/s"


def wrk_rate(system: Endpoint, questions: Questions, load: Load) -> float:
    """Texts per second of wrk with the same payloads, clients and time.

    Raises:
        GeneratorFailed: it did not run to its end, or a request failed.
    """
    bodies = ",".join(_lua_string(json.dumps(system.payload(text))) for text in questions.texts)
    with tempfile.TemporaryDirectory(prefix="bertmp-bench-") as folder:
        script = Path(folder) / "requests.lua"
        script.write_text(_SCRIPT.format(bodies=bodies, path=system.path), encoding="utf-8")
        seconds = math.ceil(load.seconds)
        command = [
            PEER,
            "-t1",
            f"-c{load.clients}",
            f"-d{seconds}s",
            "-s",
            str(script),
            f"http://{system.address}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    rate = re.search(r"^Requests/sec: +([\d.]+)$", done.stdout, re.M)
    if failed := re.search(r"^ *(Non-2xx.*|Socket errors.*)$", done.stdout, re.M):
        raise GeneratorFailed(f"{PEER}: {failed[1]}")
    if done.returncode or rate is None:
        raise GeneratorFailed(f"{PEER}: {(done.stderr or done.stdout).strip()[-300:]}")
    return float(rate[1])


def _lua_string(text: str) -> str:
    """Between long brackets that do not occur in it."""
    level = 1
    while f"]{'=' * level}]" in text:
        level += 1
    return f"[{'=' * level}[{text}]{'=' * level}]"
