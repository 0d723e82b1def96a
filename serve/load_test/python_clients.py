"""Load from this process, by tritonclient in threads, who count failures.

With many clients, the threads take the server's own cores and wait for each other: what they measure is at
most what the server can do.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from bertmp.core.errors import BertmpError
from bertmp.serve.load_test.load import Load, Recording, TextRequests
from bertmp.serve.serving_options import Protocol
from bertmp.serve.text_requests import text_inputs
from bertmp.serve.triton_client import TritonClient

NAME = "Python clients"
OPEN_LOOP_THREADS = 32
"""Requests of an open loop that can be under way; a later one waits, and its wait counts as latency."""


@dataclass
class _ClientLog:
    """What one client saw; only its own thread writes it."""

    sent: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    errors: list[tuple[float, str]] = field(default_factory=list)


class _Clock:
    """Tells each client when to send, from the moment when all of them are connected."""

    def __init__(self, load: Load, clients: int) -> None:
        self.stop = threading.Event()
        self._load = load
        self._numbers = itertools.count()  # taking the next number is atomic
        self._begin = 0.0
        self._connected = threading.Barrier(clients, action=self._start)

    def _start(self) -> None:
        self._begin = time.perf_counter()

    def wait_for_all(self) -> None:
        self._connected.wait()

    def now(self) -> float:
        """Seconds since the begin."""
        return time.perf_counter() - self._begin

    def turns(self) -> Iterator[tuple[int, float]]:
        """The number of each request and when it is sent; waits until then, and ends with the load."""
        for number in self._numbers:
            planned = number / self._load.rate if self._load.is_open else self.now()
            if planned >= self._load.warm_up + self._load.seconds:
                return
            if self.stop.wait(max(0.0, planned - self.now())):
                return
            yield number, planned


def measure(url: str | None, protocol: Protocol, load: Load, requests: TextRequests) -> Recording:
    """Puts the load on the server."""
    threads = OPEN_LOOP_THREADS if load.is_open else load.clients
    clock = _Clock(load, threads)

    def run_client(log: _ClientLog) -> None:
        with TritonClient(url, protocol) as client:
            client.is_live()  # connects
            clock.wait_for_all()
            for number, sent in clock.turns():
                try:
                    outputs, _ = client.infer(requests.model, feed(requests, number), requests.outputs)
                except BertmpError as error:
                    log.errors.append((sent, str(error)))
                    continue
                log.sent.append(sent)
                log.done.append(clock.now())
                log.tokens.append(int(outputs["TOKENS"].sum()))

    logs = [_ClientLog() for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        try:
            list(pool.map(run_client, logs))
        finally:  # after Ctrl-C each client finishes its current request
            clock.stop.set()
    return _recording(logs)


def feed(requests: TextRequests, number: int) -> dict[str, np.ndarray]:
    """The inputs of a request by name, each BYTES `[1, 1]`; after the last row comes the first again."""
    text, *pair = requests.rows[number % len(requests.rows)]
    return text_inputs([text], pair or None)


def _recording(logs: list[_ClientLog]) -> Recording:
    def joined(name: str) -> list[float]:
        return [value for log in logs for value in getattr(log, name)]

    return Recording(
        sent=np.array(joined("sent"), dtype=np.float64),
        done=np.array(joined("done"), dtype=np.float64),
        tokens=np.array(joined("tokens"), dtype=np.int64),
        errors=[error for log in logs for error in log.errors],
    )
