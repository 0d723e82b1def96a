"""A command's wall time, and the most memory that it and everything it starts have resident together."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PERIOD = 0.02
"""Seconds between two looks at the processes."""


@dataclass(frozen=True)
class Measured:
    """One command after its end.

    Attributes:
        seconds: wall time, start of the interpreter included.
        peak_memory_bytes: the largest sum of resident memory over the process and its descendants, looked
            at every 20 ms; at least the most that one of them ever had. Shared pages count once for each.
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
            code = child.wait()
        finally:
            watch.stop()
        seconds = time.monotonic() - started
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
    return Measured(seconds, watch.peak, code, texts[0], texts[1])


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
    """Bytes that the family has resident now, or the most that one of its members ever had."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    now = [0]
    most = 0
    commands: set[tuple[str, ...]] = set()
    for member in family:
        try:
            command = tuple(member.cmdline())
            if command in commands:  # just forked, and still in its parent's memory
                continue
            commands.add(command)
            now.append(member.memory_info().rss)
            most = max(most, _high_water(member.pid))
        except psutil.NoSuchProcess:  # ended between the two questions
            continue
    return max(sum(now), most)


def _high_water(pid: int) -> int:
    """The most that a process had resident since its program began; 0 where the system does not say.

    The kernel's other record, `ru_maxrss`, also counts what the process was forked from.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    match = re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
