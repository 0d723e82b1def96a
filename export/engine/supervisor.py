"""Runs a build job in a child process and turns its outcome into a result or a one-line error."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import bertmp
from bertmp.core import errors
from bertmp.core.errors import BertmpError, BuildFailed
from bertmp.export.engine.engine_options import EngineOptions

GRACE_SECONDS = 10
"""How long an interrupted builder may take to reach its next step before it is killed."""

STALL_TIMEOUT_SECONDS = 60
"""How long a builder may neither send a message nor use the processor: NVIDIA's can hang when memory runs
out."""

Message = Mapping[str, Any]


def run_job(
    job: Job,
    on_message: Callable[[Message], None] = lambda message: None,
    stall_timeout: float = STALL_TIMEOUT_SECONDS,
) -> dict[str, Any]:
    """Builds in a child process.

    Args:
        on_message: called with every message as it comes: `toolchain`, `log`, and the progress monitor's
            `phase`, `step` and `finish`.
        stall_timeout: seconds without a message and without work after which the child counts as hung.

    Returns:
        The child's result, see `worker.build`.

    Raises:
        BertmpError: what the child found wrong.
        BuildFailed: the child crashed, was killed or hung.
    """
    result: dict[str, Any] | None = None
    failure: BertmpError | None = None
    last_message = ""
    with tempfile.TemporaryFile() as noise, _builder_process(job, noise) as (child, reading):
        for line in _lines(child, reading, stall_timeout):
            message = json.loads(line)
            if message["kind"] == "result":
                result = message
            elif message["kind"] == "error":
                failure = error_from(message)
            else:
                last_message = _message_text(message) or last_message
                on_message(message)
        hung = child.poll() is None
        if hung:
            child.kill()
        code = child.wait()
        if failure is not None:
            raise failure
        if hung:
            how = f"hung and did nothing for {stall_timeout:g} s"
            raise build_failure(how, job, last_message, signal.SIGKILL)
        if result is None or code != 0:
            raise build_failure(describe_exit(code), job, _last_line(noise) or last_message, -code)
    return result


@contextmanager
def _builder_process(job: Job, noise: IO[bytes]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The running builder process and the pipe of its messages; it has ended when the block ends."""
    reading, writing = os.pipe()
    # A session of its own: the terminal's Ctrl-C reaches the command alone, which then stops the build.
    child = subprocess.Popen(
        [sys.executable, "-m", "bertmp.export.engine.worker", str(writing)],
        stdin=subprocess.PIPE, stdout=noise, stderr=noise,
        pass_fds=(writing,), env=_environment(), start_new_session=True,
    )  # fmt: skip
    os.close(writing)
    assert child.stdin is not None
    try:
        with suppress(BrokenPipeError):  # it ended at once; its exit status is read below
            child.stdin.write(job.to_line())
            child.stdin.flush()
        yield child, reading
    except BaseException:
        # At the end of its input the child stops, at the builder's next step.
        with suppress(BrokenPipeError):
            child.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=GRACE_SECONDS)
        raise
    finally:
        child.kill()  # nothing happens where it has ended
        child.wait()
        os.close(reading)
        with suppress(BrokenPipeError):
            child.stdin.close()


def _lines(child: subprocess.Popen[bytes], reading: int, stall_timeout: float) -> Iterator[bytes]:
    """The child's messages until it ends, or has neither spoken nor worked for `stall_timeout` seconds."""
    rest, quiet_since, worked = b"", time.monotonic(), _seconds_worked(child)
    while True:
        if select.select([reading], [], [], min(1.0, stall_timeout))[0]:
            block = os.read(reading, 1 << 16)
            if not block:
                # The pipe closes a moment before the process is gone.
                with suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=stall_timeout)
                return
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
            quiet_since = time.monotonic()
        elif (now := _seconds_worked(child)) != worked:
            worked, quiet_since = now, time.monotonic()
        elif time.monotonic() - quiet_since > stall_timeout:
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
    """This process's environment, with the folder that `bertmp` was imported from on `PYTHONPATH`."""
    paths = (str(Path(bertmp.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH"))
    # numpy, which onnx imports, would start one BLAS thread per core: memory that the builder can use.
    return {"OPENBLAS_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _message_text(message: Message) -> str:
    """A message as text, for the error about a failed build."""
    if message["kind"] == "log":
        return str(message["text"])
    return f"{message['name']} …" if message["kind"] == "phase" else ""


def _last_line(noise: IO[bytes]) -> str:
    noise.seek(0)
    lines = noise.read().decode(errors="replace").rstrip().splitlines()
    return lines[-1].strip() if lines else ""


def describe_exit(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def build_failure(how: str, job: Job, last_message: str, number: int) -> BuildFailed:
    todo = "build again, and report it to NVIDIA if it happens again"
    if number == signal.SIGKILL:
        todo = "if memory ran out, free some, or build fewer or smaller profiles"
    message = f"; its last message: {last_message}" if last_message else ""
    return BuildFailed(f"the builder process {how}{message}", job.graph, todo)


@dataclass(frozen=True)
class Job:
    """One build.

    Attributes:
        graph: the FP16 ONNX file.
        plan: its precision plan; None for a graph without one.
        folder: an empty folder that takes `model.plan` and `network.json`.
        options: of the build.
        positions: the model's positions, where they are known.
    """

    graph: str
    plan: str | None
    folder: str
    options: EngineOptions
    positions: int | None = None

    def to_line(self) -> bytes:
        return json.dumps({**vars(self), "options": self.options.to_json(EngineOptions)}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Job:
        data = json.loads(line)
        return cls(**{**data, "options": EngineOptions(**data["options"])})


class Messages:
    """The builder process's end: sends messages, and hears when it should stop."""

    def __init__(self, descriptor: int, control: int) -> None:
        self._descriptor, self._control = descriptor, control
        self._lock = threading.Lock()
        self._heard = True

    def send(self, kind: str, **content: Any) -> None:
        """Sends one message. Threads of the builder may call it at the same time.

        Nothing is raised where the command is gone: this is called from inside native code, and
        `stop_wanted` then ends the build.
        """
        line = json.dumps({"kind": kind, **content}).encode() + b"\n"
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except BrokenPipeError:
                self._heard = False

    def stop_wanted(self) -> bool:
        """Whether the command closed our standard input: it was interrupted, or is no longer there."""
        # Nothing but the job is ever written to it, so readable means that it has ended.
        return not self._heard or bool(select.select([self._control], [], [], 0)[0])


def error_message(error: errors.BertmpError) -> dict[str, str]:
    """An error as a message's content."""
    return {"error": type(error).__name__, **vars(error)}


def error_from(message: dict[str, Any]) -> errors.BertmpError:
    """The error that a message of kind `error` carries."""
    kind: type[errors.BertmpError] = getattr(errors, message["error"])
    return kind(message["what"], message["where"], message["todo"])
