"""The load test's page in Chromium: nothing is cut or loaded, at every width, light and dark, on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertmp.serve.load_test.figures import BenchResult, LoadPoint, load_point
from bertmp.serve.load_test.load import Load, Recording
from bertmp.serve.load_test.page import render
from tests.browser import open_browser, require_complete

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as found:
        yield found


def measured(load: Load, rate: float, milliseconds: float) -> LoadPoint:
    """A load under which latencies vary by a factor of about ten."""
    sent = np.arange(round(12 * rate)) / rate
    slow = np.random.default_rng(0).lognormal(0, 0.6, len(sent))
    tokens = np.full(len(sent), 35)
    return load_point(load, Recording(sent, sent + milliseconds / 1000 * slow, tokens))


def test_page_is_complete_in_every_view(browser: Any, tmp_path: Path) -> None:
    closed = [measured(Load(10.0, clients=n), 80 + n, 7 + 2 * n) for n in (1, 4, 16, 64, 128, 1024)]
    opened = [measured(Load(10.0, rate=rate), rate, 8 + rate / 20) for rate in (0.5, 50, 100.5, 12345)]
    failed = load_point(Load(10.0, clients=2), Recording(*3 * [np.array([])], [(3.0, "refused " * 60)]))
    pages = {
        "load": BenchResult("trec", "grpc", "127.0.0.1:8001", (*closed, *opened), "perf_analyzer 2.50.0"),
        "one-load": BenchResult(
            "trec", "http", "[::1]:8000", (closed[0],), "Python clients", ("note " * 40,)
        ),
        "failed": BenchResult("m" * 120, "http", "h" * 120 + ":8000", (failed,), "Python clients"),
    }
    for name, result in pages.items():
        file = tmp_path / f"{name}.html"
        file.write_text(render(result, "AMD EPYC 9B14, 2 cores, 23.5 GiB"), encoding="utf-8")
        require_complete(browser, name, file, tmp_path)
