"""Runs a build job in a process of its own and turns whatever becomes of it into a result or one line."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import bertmp
from bertmp.core.errors import BertmpError, BuildFailed
from bertmp.export.engine.job import Job, error_from

GRACE_SECONDS = 10
"""How long an interrupted builder may take to reach its next step before it is killed."""

PATIENCE_SECONDS = 60
"""How long a builder may neither speak nor use the processor: NVIDIA's can lock up when memory runs out."""

Message = Mapping[str, Any]


def run_job(
    job: Job, watch: Callable[[Message], None] = lambda message: None, patience: float = PATIENCE_SECONDS
) -> dict[str, Any]:
    """Builds in a child process.

    Args:
        watch: gets every message as it comes: `toolchain`, `log`, and the progress monitor's `phase`,
            `step` and `finish`.
        patience: seconds without a message and without work after which the child counts as locked up.

    Returns: the child's result, see `worker.build`.

    Errors: what the child found wrong; BuildFailed where it crashed, was killed or fell silent.
    """
    result: dict[str, Any] | None = None
    failure: BertmpError | None = None
    last_words = ""
    with tempfile.TemporaryFile() as noise, _child(job, noise) as (child, reading):
        for line in _lines(child, reading, patience):
            message = json.loads(line)
            if message["kind"] == "result":
                result = message
            elif message["kind"] == "error":
                failure = error_from(message)
            else:
                last_words = _words(message) or last_words
                watch(message)
        locked_up = child.poll() is None
        if locked_up:
            child.kill()
        code = child.wait()
        if failure is not None:
            raise failure
        if locked_up:
            raise _death(f"locked up and did nothing for {patience:g} s", job, last_words, signal.SIGKILL)
        if result is None or code != 0:
            raise _death(_fate(code), job, _last_line(noise) or last_words, -code)
    return result


@contextmanager
def _child(job: Job, noise: IO[bytes]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The running builder process and the pipe of its messages; it is gone when the block ends, however."""
    reading, writing = os.pipe()
    # A session of its own: the terminal's Ctrl-C reaches the command alone, which then stops the build.
    child = subprocess.Popen(
        [sys.executable, "-m", "bertmp.export.engine.worker", str(writing)],
        stdin=subprocess.PIPE, stdout=noise, stderr=noise,
        pass_fds=(writing,), env=_environment(), start_new_session=True,
    )  # fmt: skip
    os.close(writing)
    try:
        assert child.stdin is not None
        with suppress(BrokenPipeError):  # it died at once; its exit status says how
            child.stdin.write(job.to_line())
            child.stdin.flush()
        yield child, reading
    except BaseException:
        # The end of its input tells the child to stop at the builder's next step.
        with suppress(BrokenPipeError):
            if child.stdin is not None:
                child.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=GRACE_SECONDS)
        raise
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        os.close(reading)
        with suppress(BrokenPipeError):
            if child.stdin is not None:
                child.stdin.close()


def _lines(child: subprocess.Popen[bytes], reading: int, patience: float) -> Iterator[bytes]:
    """The child's messages until it ends, or has neither spoken nor worked for `patience` seconds."""
    rest, quiet_since, worked = b"", time.monotonic(), _seconds_worked(child)
    while True:
        if select.select([reading], [], [], min(1.0, patience))[0]:
            block = os.read(reading, 1 << 16)
            if not block:
                # The pipe closes a moment before the process is gone.
                with suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=patience)
                return
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
            quiet_since = time.monotonic()
        elif (now := _seconds_worked(child)) != worked:
            worked, quiet_since = now, time.monotonic()
        elif time.monotonic() - quiet_since > patience:
            return


def _seconds_worked(child: subprocess.Popen[bytes]) -> float:
    """Processor time that the child has used, in seconds; 0 once it is gone."""
    import psutil

    try:
        times = psutil.Process(child.pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _environment() -> dict[str, str]:
    """Ours, with the folder that this very `bertmp` was imported from on the child's path."""
    root = str(Path(bertmp.__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    # numpy, which onnx brings along, would start a BLAS thread a core: memory that the builder can use.
    return {"OPENBLAS_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _words(message: Message) -> str:
    """What a message says, for the line about a death."""
    if message["kind"] == "log":
        return str(message["text"])
    return f"{message['name']} …" if message["kind"] == "phase" else ""


def _last_line(noise: IO[bytes]) -> str:
    noise.seek(0)
    lines = [line for line in noise.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _fate(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _death(how: str, job: Job, last_words: str, number: int) -> BuildFailed:
    todo = "build again, and report it to NVIDIA where it stays so"
    if number == signal.SIGKILL:
        todo = "was it short of memory? free some, or build fewer or smaller profiles"
    said = f"; its last message: {last_words}" if last_words else ""
    return BuildFailed(f"the builder process {how}{said}", job.graph, todo)
