"""`bertmp bench`: the figures, the generators on a real server, the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertmp import bench
from bertmp.core.errors import InputError, MissingComponent
from bertmp.environment.perf_analyzer import find_perf_analyzer
from bertmp.serve.load_test.figures import BenchResult, load_point
from bertmp.serve.load_test.load import Load, Recording
from bertmp.serve.load_test.options import BenchOptions
from bertmp.serve.load_test.page import render
from tests.conftest import RunBertmp
from tests.serve.conftest import Served

RATE = 10.0
"""Requests per second that a busy machine answers too: these tests are not about speed."""
TEXTS = ["Who ?", "Where is it ?", "What does NATO mean ?", 'a "quoted" \\ text\twith é and 漢字']


def recorded(
    sent: list[float], done: list[float], errors: list[tuple[float, str]] | None = None
) -> Recording:
    return Recording(np.array(sent), np.array(done), np.full(len(sent), 3), errors or [])


def test_closed_loop_counts_answers_of_the_measured_time() -> None:
    load = Load(10.0, clients=2)  # two seconds of warm-up
    seen = recorded(
        [0.0, 1.9, 5.0, 11.9], [1.0, 2.1, 5.4, 12.1], [(1.0, "early"), (3.0, "bad"), (4.0, "bad")]
    )
    point = load_point(load, seen)
    assert (point.requests, point.texts_per_second, point.tokens_per_second) == (2, 0.2, 0.6)
    assert point.p50_ms == pytest.approx(300)  # of 200 and 400
    assert (point.failures, point.errors) == (2, {"bad": 2})
    assert (point.concurrency, point.rate, point.unfinished) == (2, None, 0)


def test_open_loop_latency_counts_from_the_intended_time() -> None:
    """A server that stands still for two seconds: those who came meanwhile have waited, too."""
    load = Load(10.0, rate=10.0)
    sent = np.arange(120) / 10.0
    done = np.where((sent >= 5) & (sent < 7), 7.0, sent) + 0.01
    point = load_point(load, recorded(sent.tolist(), done.tolist()))
    assert point.requests == 100
    assert point.latency_ms["50"] == pytest.approx(10)
    assert point.latency_ms["100"] == pytest.approx(2010)
    assert point.p90_ms == pytest.approx(1010, rel=0.1)
    assert not point.rate_missed


def test_open_loop_beyond_the_server_is_missed_and_unfinished() -> None:
    load = Load(10.0, rate=20.0)
    sent = np.arange(240) / 20.0
    done = 0.1 * np.arange(240) + 0.1  # ten per second
    answered = done <= 12.0
    point = load_point(load, recorded(sent[answered].tolist(), done[answered].tolist()))
    assert point.texts_per_second == pytest.approx(10, rel=0.02)
    assert point.rate_missed
    assert point.unfinished == 120


@pytest.mark.parametrize(
    ("options", "loads"),
    [
        ({}, (Load(10.0, 1), Load(10.0, 4), Load(10.0, 16))),
        ({"concurrency": "2"}, (Load(10.0, 2),)),
        ({"rate": "50,100.5"}, (Load(10.0, rate=50.0), Load(10.0, rate=100.5))),
        ({"rate": 7, "concurrency": (3,)}, (Load(10.0, 3), Load(10.0, rate=7))),
    ],
)
def test_options_give_loads(options: dict[str, Any], loads: tuple[Load, ...]) -> None:
    assert BenchOptions("trec", TEXTS, **options).loads == loads


@pytest.mark.parametrize(
    "options", [{"rate": "0"}, {"rate": "x"}, {"concurrency": "1,-4"}, {"concurrency": "1.5"}]
)
def test_options_not_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is not a list of numbers"):
        BenchOptions("trec", TEXTS, **options)


def test_pairs_are_read_where_the_model_takes_them(tmp_path: Path) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("text\ttext_pair\na\tb\nc\td\n")
    assert BenchOptions("m", file).rows(pairs=True) == [("a", "b"), ("c", "d")]
    assert BenchOptions("m", file).rows(pairs=False) == [("a",), ("c",)]
    assert BenchOptions("m", [("a", "b")]).rows(pairs=True) == [("a", "b")]
    with pytest.raises(InputError, match="takes pairs"):
        BenchOptions("m", TEXTS).rows(pairs=True)


def test_page_is_complete_in_itself_and_shows_failures() -> None:
    seen = recorded([2.5, 3.0], [2.6, 3.2], [(4.0, "<b>refused</b>")])
    levels = (load_point(Load(10.0, clients=1), seen), load_point(Load(10.0, rate=5.0), recorded([], [])))
    page = render(
        BenchResult("trec", "http", "h:1", levels, "perf_analyzer 2.50.0", ("a note",)), "a machine"
    )
    assert not re.search(r"<script|<link|<img|url\(|https?://", page)
    assert "&lt;b&gt;refused" in page
    assert "<b>refused" not in page
    assert "a note" in page
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 2  # the open loop had no answers to draw


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_bench_with_perf_analyzer_measures_open_loop(served: Served, protocol: Any, tmp_path: Path) -> None:
    if find_perf_analyzer() is None:
        pytest.skip("perf_analyzer could not be fetched")
    found = bench(
        "trec",
        TEXTS,
        2,
        5.0,  # so many requests that one more or less at its ends is not a missed rate
        protocol,
        served.url(protocol),
        rate=RATE,
        generator="perf_analyzer",
        report=tmp_path,
    )
    closed, opened = found.levels
    assert found.generator.startswith("perf_analyzer ")
    assert found.notes == ()
    assert closed.requests > 0
    assert closed.tokens_per_second > 3 * closed.texts_per_second
    assert opened.texts_per_second == pytest.approx(RATE, rel=0.1)
    assert (opened.failures, opened.unfinished, opened.rate_missed) == (0, 0, False)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(found.to_json()))
    assert "perf_analyzer" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_bench_with_python_clients_keeps_the_rate(served: Served) -> None:
    found = bench("trec", TEXTS, (), 3.0, url=served.running.grpc, rate=RATE, generator="python")
    (level,) = found.levels
    assert found.generator == "Python clients"
    assert level.texts_per_second == pytest.approx(RATE, rel=2 / 30)
    assert level.tokens_per_second > 3 * level.texts_per_second


def test_bench_failed_request_is_counted_by_python_clients(served: Served) -> None:
    if find_perf_analyzer() is None:
        pytest.skip("perf_analyzer could not be fetched")
    found = bench("trec", ["fine", "a" * 1_000_001], 1, 0.5, url=served.running.grpc)
    assert found.failures > 0
    assert found.generator == "Python clients"
    (note,) = found.notes
    assert "measured with Python clients on" in note
    assert "perf_analyzer, which does not count failures, ended (the text is too large" in note


def test_bench_without_perf_analyzer_says_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertmp.serve.load_test.bench.find_perf_analyzer", lambda: None)
    found = bench("trec", TEXTS, 2, 0.5, url=served.running.grpc)
    assert found.generator == "Python clients"
    assert "perf_analyzer is not installed; 'bertmp setup triton' fetches it" in found.notes[0]
    with pytest.raises(MissingComponent, match="bertmp setup triton"):
        bench("trec", TEXTS, 2, 0.5, url=served.running.grpc, generator="perf_analyzer")


def test_bench_of_an_encoder_names_the_mistake(served: Served, run_bertmp: RunBertmp, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("fine\n")
    done = run_bertmp("bench", "trec_encoder", "--data", file, "--url", served.running.grpc)
    assert (done.returncode, done.stdout) == (2, "")
    assert "'trec_encoder' is not a text model" in done.stderr


def test_bench_unwritable_report_is_refused_before_measuring(served: Served, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lines: list[str] = []
    with pytest.raises(InputError, match="file"):
        bench("trec", TEXTS, url=served.running.grpc, report=tmp_path / "file", progress=lines.append)
    assert lines == []
