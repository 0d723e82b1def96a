"""`bertmp bench`: a closed-loop load test: so many clients, each asking again as soon as it has an answer."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bertmp.core.errors import BertmpError, InputError
from bertmp.data.readers import read_examples
from bertmp.serve.client import Client

WARM_UP = 0.2
"""The share of the measured time that every level runs before, uncounted; at most WARM_UP_SECONDS."""
WARM_UP_SECONDS = 2.0
_SHOWN_ERRORS = 3


@dataclass(frozen=True)
class Level:
    """What was measured at one number of clients.

    Attributes:
        concurrency: clients that ask at the same time, one text a request.
        seconds: the measured time.
        requests: answered in it.
        failures: refused or lost in it.
        requests_per_second, texts_per_second, tokens_per_second: of the answered ones; tokens are those
            that the server counted, special ones included and padding not.
        p50_ms, p90_ms, p99_ms: latency as the client sees it; None where nothing was answered.
        errors: the most frequent messages of failures, with their numbers.
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
        levels: one a number of clients.
    """

    model: str
    protocol: str
    address: str
    levels: tuple[Level, ...]

    @property
    def failures(self) -> int:
        return sum(level.failures for level in self.levels)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "levels": [asdict(level) for level in self.levels], "failures": self.failures}


@dataclass
class _Tally:
    """What one client saw; only its own thread writes it."""

    latencies: list[float] = field(default_factory=list)
    tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)


def bench(
    name: str,
    texts: Path | str | Sequence[str],
    concurrency: int | Sequence[int] = (1, 4, 16),
    seconds: float = 10.0,
    protocol: str = "grpc",
    url: str | None = None,
    report: Callable[[str], None] = lambda step: None,
) -> BenchResult:
    """Measures a served text model under load.

    Args:
        name: the text model.
        texts: asked in turn, one a request; or the data file that they are in.
        concurrency: number or numbers of clients, measured one after the other.
        seconds: the measured time of each.
        protocol: `grpc` or `http`.
        url: the server's address; the loopback interface where left out.
        report: told of every level as it begins.

    Errors: InputError for no texts, a senseless number, an unknown model or a dead server.
    """
    texts = read_examples(Path(texts)).texts if isinstance(texts, (str, Path)) else texts
    concurrency = [concurrency] if isinstance(concurrency, int) else concurrency
    if not texts:
        raise InputError("no texts", "", "give at least one")
    if not 0 < seconds < math.inf:
        raise InputError(f"{seconds:g} seconds cannot be measured", "--seconds", "use a number above 0")
    if not concurrency or min(concurrency) < 1:
        raise InputError("no clients", "--concurrency", "use numbers of at least 1, such as 1,4,16")
    with Client(url, protocol) as client:
        client.classify(name, [texts[0]])  # an unknown model or a dead server is an error, not a failure
        address = client.transport.address
    levels = []
    for clients in concurrency:
        report(f"{clients} clients")
        levels.append(_measure(name, texts, clients, seconds, protocol, url))
    return BenchResult(name, protocol, address, tuple(levels))


def _measure(
    name: str, texts: Sequence[str], clients: int, seconds: float, protocol: str, url: str | None
) -> Level:
    turn = itertools.count()  # shared: taking the next number is atomic
    begin = time.perf_counter() + min(WARM_UP_SECONDS, seconds * WARM_UP)
    end = begin + seconds
    tallies = [_Tally() for _ in range(clients)]
    stop = threading.Event()

    def work(tally: _Tally) -> None:
        with Client(url, protocol) as client:
            while not stop.is_set() and time.perf_counter() < end:
                _ask(client, name, texts[next(turn) % len(texts)], tally, begin, end)

    threads = [threading.Thread(target=work, args=(tally,)) for tally in tallies]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:  # Ctrl-C: the clients finish the request they are in
        stop.set()
        for thread in threads:
            thread.join()
    return _level(tallies, clients, seconds)


def _ask(client: Client, name: str, text: str, tally: _Tally, begin: float, end: float) -> None:
    started = time.perf_counter()
    try:
        answers = client.classify(name, [text])
    except BertmpError as error:
        if begin <= started:
            tally.errors[str(error)] += 1
        return
    done = time.perf_counter()
    if begin <= started and done <= end:
        tally.latencies.append(done - started)
        tally.tokens += int(answers.tokens.sum())


def _level(tallies: Sequence[_Tally], clients: int, seconds: float) -> Level:
    latencies = np.array([value for tally in tallies for value in tally.latencies])
    errors: Counter[str] = sum((tally.errors for tally in tallies), Counter())
    rate = len(latencies) / seconds
    p50, p90, p99 = (
        float(np.percentile(latencies, q) * 1000) if len(latencies) else None for q in (50, 90, 99)
    )
    return Level(
        concurrency=clients,
        seconds=seconds,
        requests=len(latencies),
        failures=errors.total(),
        requests_per_second=rate,
        texts_per_second=rate,
        tokens_per_second=sum(tally.tokens for tally in tallies) / seconds,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        errors=dict(errors.most_common(_SHOWN_ERRORS)),
    )
