"""Figures of a load test: rates and percentiles, from every request that was recorded."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bertmp.serve.load_test.load import Load, Recording

PERCENTILES = (1, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.99, 100)
"""Those of `LoadPoint.latency_ms`: close together towards the slow end."""
REACHED = 0.97
"""A rate counts as reached from this share on."""
_SHOWN_ERRORS = 3


@dataclass(frozen=True)
class LoadPoint:
    """What was measured under one load.

    Attributes:
        concurrency: clients that ask at the same time, one text per request; None in an open loop.
        rate: requests per second that were sent; None in a closed loop.
        seconds: the measured time.
        requests: answered in it.
        failures: sent in it, and refused or lost.
        unfinished: of an open loop: sent in it and not answered when the load ended.
        requests_per_second, texts_per_second, tokens_per_second: of the answered ones; tokens as the server
            counted them, special tokens included and padding not.
        p50_ms, p90_ms, p99_ms, p99_9_ms: latency as the client sees it, in an open loop from the time when
            the request should have been sent; None where nothing was answered.
        latency_ms: percentile → latency; `100` is the longest. Exact: from every request.
        errors: the most frequent messages of failures, with their counts.
    """

    concurrency: int | None
    rate: float | None
    seconds: float
    requests: int
    failures: int
    unfinished: int
    requests_per_second: float
    texts_per_second: float
    tokens_per_second: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    p99_9_ms: float | None
    latency_ms: dict[str, float]
    errors: dict[str, int]

    @property
    def rate_missed(self) -> bool:
        """Whether the server answered fewer requests than were sent."""
        return self.rate is not None and self.requests_per_second < REACHED * self.rate

    @property
    def name(self) -> str:
        """The load in words."""
        if self.rate is not None:
            return f"{self.rate:g} per second"
        return f"{self.concurrency} client{'' if self.concurrency == 1 else 's'}"

    @property
    def short_name(self) -> str:
        """The load in a word or two, for tables and charts."""
        return self.name if self.rate is None else f"{self.rate:g}/s"


@dataclass(frozen=True)
class BenchResult:
    """A load test.

    Attributes:
        model: the text model that was asked.
        protocol, address: how and where.
        levels: one per load.
        generator: what sent the requests.
        notes: what the reader of the figures should know, one line each.
    """

    model: str
    protocol: str
    address: str
    levels: tuple[LoadPoint, ...]
    generator: str
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> int:
        return sum(level.failures for level in self.levels)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "failures": self.failures}


def load_point(load: Load, seen: Recording) -> LoadPoint:
    """The figures of the measured time.

    Rates count the answers that arrived in it. Latencies are theirs in a closed loop; in an open loop they
    are those of the requests that should have been sent in it, so that slow ones are not left out.
    """
    begin, end = load.warm_up, load.warm_up + load.seconds
    arrived = (begin <= seen.done) & (seen.done <= end)
    counted = (begin <= seen.sent) & (seen.sent < end) if load.is_open else arrived
    latencies = 1000 * (seen.done - seen.sent)[counted]
    errors = Counter(message for sent, message in seen.errors if begin <= sent < end)
    rate, failures = int(arrived.sum()) / load.seconds, errors.total()
    due = round(load.rate * load.seconds) if load.is_open else 0
    values = np.percentile(latencies, PERCENTILES).tolist() if len(latencies) else []
    latency = {f"{percentile:g}": value for percentile, value in zip(PERCENTILES, values, strict=False)}
    return LoadPoint(
        concurrency=None if load.is_open else load.clients,
        rate=load.rate if load.is_open else None,
        seconds=load.seconds,
        requests=int(arrived.sum()),
        failures=failures,
        unfinished=max(0, due - len(latencies) - failures),
        requests_per_second=rate,
        texts_per_second=rate,
        tokens_per_second=int(seen.tokens[arrived].sum()) / load.seconds,
        p50_ms=latency.get("50"),
        p90_ms=latency.get("90"),
        p99_ms=latency.get("99"),
        p99_9_ms=latency.get("99.9"),
        latency_ms=latency,
        errors=dict(errors.most_common(_SHOWN_ERRORS)),
    )
