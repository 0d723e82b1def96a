"""A command's wall time, and the most memory that it and everything it starts have resident together."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

PERIOD = 0.02
"""Seconds between two looks at the processes."""


@dataclass(frozen=True)
class Measured:
    """One command after its end.

    Attributes:
        seconds: wall time, start of the interpreter included.
        peak_memory_bytes: the largest sum of resident memory over the process and its descendants. Pages
            that they share count once for each, so it is never too small for what was seen.
        code: the exit status.
        stdout, stderr: what it printed.
    """

    seconds: float
    peak_memory_bytes: int
    code: int
    stdout: str
    stderr: str


def run_measured(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Measured:
    """Runs a command to its end and watches its memory."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.monotonic()
        child = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        watch = _Watch(child.pid)
        watch.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        finally:
            watch.stop()
        seconds = time.monotonic() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
    # The kernel's own record is exact for the process itself, and catches what lies between two looks.
    peak = max(watch.peak, usage.ru_maxrss * 1024)
    return Measured(seconds, peak, child.returncode, texts[0], texts[1])


class _Watch(threading.Thread):
    """Adds up the resident memory of a process and its descendants again and again."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._pid = pid
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(PERIOD):
            self.peak = max(self.peak, _resident(self._pid))

    def stop(self) -> None:
        self._ended.set()
        self.join()


def _resident(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:  # ended between the two questions
            continue
    return total
