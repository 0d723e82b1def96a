"""Stops a Triton process so that every request that it has taken is answered.

On SIGTERM Triton waits for its HTTP connections to close, which clients keep open, and cuts off what is left
when its time is over. An unloaded model refuses new requests at once and finishes the others: so the models
are unloaded first, and the process that has nothing left to do is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

from bertmp.core.progress import ProgressCallback
from bertmp.serve.http_request import Endpoint
from bertmp.serve.workers import Worker, WorkerWatch

_POLL_SECONDS = 0.02
_REPLY_SECONDS = 0.05
"""Between an answer and its last byte on the wire."""


def drain(server: Endpoint, process: int, seconds: float, log: ProgressCallback) -> None:
    """Lets a server finish the requests that it has; new ones are refused from now on.

    Args:
        server: its HTTP port, with the key.
        process: its number.
        seconds: how long that may take.
        log: told what did not finish.
    """
    deadline, watch = time.monotonic() + seconds, WorkerWatch(process)
    loaded, workers = _loaded(server), watch.look()
    # A text model may call its encoder: that goes on until the text models have finished.
    encoders = [model for model in loaded if model.endswith("_encoder")]
    for models in ([model for model in loaded if model not in encoders], encoders):
        for model in models:
            server.post(f"/v2/repository/models/{model}/unload")
        while busy := _busy(models, _loaded(server), _ended(workers, watch.look(), loaded)):
            if time.monotonic() > deadline:
                log(f"warning: {', '.join(busy)} did not finish within {seconds:g} s: requests are cut off")
                return
            time.sleep(_POLL_SECONDS)
    time.sleep(_REPLY_SECONDS)


def _loaded(server: Endpoint) -> list[str]:
    """The models that are loaded, or being unloaded; none where the server does not say."""
    reply = server.post("/v2/repository/index", timeout=2.0)
    states = ("READY", "UNLOADING")
    return sorted({one["name"] for one in reply.json() if one.get("state") in states}) if reply.ok else []


def _ended(before: Sequence[Worker], now: Sequence[Worker], models: Sequence[str]) -> set[str | None]:
    """The models of which a worker has ended."""
    running = {worker.pid for worker in now if worker.state == "running"}
    was_running = [worker for worker in before if worker.state == "running"]
    return {worker.model(models) for worker in was_running if worker.pid not in running}


def _busy(models: Sequence[str], loaded: Sequence[str], ended: set[str | None]) -> list[str]:
    """Those of the models that may still have requests.

    Triton ends a model's workers one after the other when the last request is answered: the first one's end
    is enough. Before each, its Python backend sleeps for a second to see whether the worker is alive
    (`StubLauncher::UpdateHealth`), so that the end of an idle server takes a second for its text models and
    a second for their encoders.
    """
    return [model for model in models if model in loaded and model not in ended]


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kills what is left of a process group, its leader and its leader's children."""
    deadline = time.monotonic() + 5
    with suppress(ProcessLookupError, PermissionError):  # the group is gone
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            if not _is_running(process.pid):
                break
            time.sleep(0.01)
    process.wait()


def _is_running(group: int) -> bool:
    """Whether a process of the group has not ended.

    The leader's children, whom nobody but the system's first process can reap any more, stay zombies for as
    long as that takes: seconds, and in a container for ever.
    """
    for number in psutil.pids():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(number) == group and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
                return True
    return False
