"""`bertmp bench`: a closed-loop load test; each client sends its next request as soon as it has an answer."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bertmp.core.errors import BertmpError
from bertmp.core.options import keywords_of
from bertmp.serve.client import Client, text_inputs
from bertmp.serve.served_tasks import TASKS
from bertmp.serve.serving_options import BenchOptions

WARM_UP_SHARE = 0.2
"""The clients run uncounted for this share of the measured time first; at most WARM_UP_SECONDS."""
WARM_UP_SECONDS = 2.0
_SHOWN_ERRORS = 3


@dataclass(frozen=True)
class LoadPoint:
    """What was measured at one number of clients.

    Attributes:
        concurrency: clients that ask at the same time, one text per request.
        seconds: the measured time.
        requests: answered in it.
        failures: refused or lost in it.
        requests_per_second, texts_per_second, tokens_per_second: of the answered ones; tokens as the server
            counted them, special tokens included and padding not.
        p50_ms, p90_ms, p99_ms: latency as the client sees it; None where nothing was answered.
        errors: the most frequent messages of failures, with their counts.
    """

    concurrency: int
    seconds: float
    requests: int
    failures: int
    requests_per_second: float
    texts_per_second: float
    tokens_per_second: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    errors: dict[str, int]


@dataclass(frozen=True)
class BenchResult:
    """A load test.

    Attributes:
        model: the text model that was asked.
        protocol, address: how and where.
        levels: one per number of clients.
    """

    model: str
    protocol: str
    address: str
    levels: tuple[LoadPoint, ...]

    @property
    def failures(self) -> int:
        return sum(level.failures for level in self.levels)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "failures": self.failures}


@dataclass
class _ClientLog:
    """What one client saw; only its own thread writes it."""

    latencies: list[float] = field(default_factory=list)
    tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)


@keywords_of(BenchOptions)
def bench(options: BenchOptions) -> BenchResult:
    """Measures a served text model under load.

    Raises:
        InputError: a data file that cannot be read, an unknown model or a dead server.
    """
    texts, pairs = options.texts
    with Client(options.url, options.protocol) as client:
        # An unknown model or a dead server is an error here, not a failed request of the test.
        client.ask(options.name, texts[:1], pairs and pairs[:1])
        address = client.address
        answers = TASKS[client.describe(options.name).task].answers
    load = Load(options.name, texts, pairs, (*answers, "TOKENS"))
    levels = []
    for clients in options.clients:
        options.progress(f"concurrency {clients}")
        levels.append(_measure(options, load, clients))
    return BenchResult(options.name, options.protocol, address, tuple(levels))


@dataclass(frozen=True)
class Load:
    """What the clients ask.

    Attributes:
        model: the text model.
        texts, pairs: asked in turn; `pairs` has the second text of each, or is None.
        outputs: what each request asks for.
    """

    model: str
    texts: Sequence[str]
    pairs: Sequence[str] | None
    outputs: Sequence[str]

    def ask(self, client: Client, number: int) -> int:
        """One request; the number of tokens that were read."""
        at = number % len(self.texts)
        inputs = text_inputs([self.texts[at]], None if self.pairs is None else [self.pairs[at]])
        found, _ = client.infer(self.model, inputs, self.outputs)
        return int(found["TOKENS"].sum())


def _measure(options: BenchOptions, load: Load, clients: int) -> LoadPoint:
    next_text = itertools.count()  # shared by the threads: taking the next number is atomic
    begin = time.perf_counter() + min(WARM_UP_SECONDS, options.seconds * WARM_UP_SHARE)
    end = begin + options.seconds
    stop = threading.Event()

    def run_client(log: _ClientLog) -> _ClientLog:
        with Client(options.url, options.protocol) as client:
            while not stop.is_set() and time.perf_counter() < end:
                _ask(client, load, next(next_text), log, begin, end)
        return log

    with ThreadPoolExecutor(clients) as pool:
        try:
            logs = list(pool.map(run_client, [_ClientLog() for _ in range(clients)]))
        finally:  # after Ctrl-C each client finishes its current request
            stop.set()
    return _load_point(logs, options.seconds)


def _ask(client: Client, load: Load, number: int, log: _ClientLog, begin: float, end: float) -> None:
    started = time.perf_counter()
    try:
        tokens = load.ask(client, number)
    except BertmpError as error:
        if begin <= started:
            log.errors[str(error)] += 1
        return
    done = time.perf_counter()
    if begin <= started and done <= end:
        log.latencies.append(done - started)
        log.tokens += tokens


def _load_point(logs: Sequence[_ClientLog], seconds: float) -> LoadPoint:
    latencies_ms = 1000 * np.array([value for log in logs for value in log.latencies])
    errors: Counter[str] = sum((log.errors for log in logs), Counter())
    rate = len(latencies_ms) / seconds
    p50, p90, p99 = np.percentile(latencies_ms, (50, 90, 99)).tolist() if len(latencies_ms) else (None,) * 3
    return LoadPoint(
        concurrency=len(logs),
        seconds=seconds,
        requests=len(latencies_ms),
        failures=errors.total(),
        requests_per_second=rate,
        texts_per_second=rate,
        tokens_per_second=sum(log.tokens for log in logs) / seconds,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        errors=dict(errors.most_common(_SHOWN_ERRORS)),
    )
