"""The serving benchmark: its texts, its checks, what its runs add up to; and a small run of all of it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from benchmarks.ab_runs import Run
from benchmarks.serving import summary
from benchmarks.serving.generators import GeneratorFailed, compare_generators, wrk_rate
from benchmarks.serving.load import Measured, Questions, compare_first, put_load
from benchmarks.serving.systems import Endpoint, SystemFailed
from benchmarks.serving.texts import LONGEST, SHORTEST, draw_texts, lengths
from bertmp.data.tokenizer import Tokenizer
from bertmp.environment.perf_analyzer import PerfAnalyzer, find_perf_analyzer
from bertmp.serve.load_test.figures import load_point
from bertmp.serve.load_test.load import Load, Recording
from tests.conftest import REPOSITORY


def test_texts_cover_the_lengths_and_are_always_the_same(
    minilm: Path, trec: Path, sms_spam: Path, moviedialog: Path
) -> None:
    folders = {"trec": trec, "sms-spam": sms_spam, "moviedialog": moviedialog}
    tokenizer = Tokenizer.load(minilm)
    texts = draw_texts(folders, tokenizer, 512)
    found = lengths(tokenizer, texts)
    assert len(texts) == 512
    assert SHORTEST <= min(found) < 10
    assert 200 < max(found) <= LONGEST
    assert 30 < statistics.fmean(found) < 40
    assert draw_texts(folders, tokenizer, 512) == texts


def loads(rate: float, p50: float) -> list[Measured]:
    measured = []
    for clients in summary.CLIENTS:
        load = Load(10.0, clients=clients)
        done = 2 + np.arange(round(10 * rate)) / rate
        seen = Recording(done - p50 / 1000, done, np.full(len(done), 30))
        measured.append(Measured(load_point(load, seen), answers=len(done)))
    return measured


def runs(**more: list[Measured]) -> list[Run]:
    found = []
    for seed, factor in enumerate((1.0, 0.8, 1.3)):
        found += [
            Run("peak", seed, {"fp32": 200e9 * factor, "bf16": 400e9}),
            Run("in process", seed, {"milliseconds": [4.0, 5.0, 6.0]}),
            Run("bertmp", seed, {"loads": loads(200 * factor, 6)}),
            Run("FastAPI + ONNX Runtime", seed, {"loads": loads(160 * factor, 8)}),
            Run("FastAPI + transformers", seed, {"loads": loads(50 * factor, 30)}),
            *(Run(name, seed, {"loads": one}) for name, one in more.items()),
        ]
    return found


def test_summary_medians_ratios_and_bounds() -> None:
    found = summary.results(runs(), 0.7e9)
    assert len(found["rows"]) == 9
    assert found["best_peer"] == "FastAPI + ONNX Runtime"
    assert found["ratio_best_peer"] == pytest.approx(200 / 160, rel=0.01)
    assert found["p99_to_best_peer"] == pytest.approx(6 / 8)
    assert found["ratio_fp32_bound"] == pytest.approx(200 / (260e9 / 0.7e9), rel=0.01)
    assert found["one_client_ms_above"] == pytest.approx(1.0)
    assert found["failures"] == found["wrong_answers"] == 0
    assert "ratio_best_peer_bf16" not in found
    summary.table(found)


def test_summary_failed_load_counts_and_leaves_the_others() -> None:
    broken = [Measured(None, "HTTP code 500"), *loads(300, 4)[1:]]
    found = summary.results(runs(**{"bertmp bf16": broken}), 0.7e9)
    row = next(r for r in found["rows"] if (r["system"], r["clients"]) == ("bertmp bf16", 1))
    assert (row["texts_per_second"], row["failures"], row["failure"]) == (None, 3, "HTTP code 500")
    assert found["failures"] == 3
    assert found["ratio_best_peer_bf16"] == pytest.approx(300 / 160, rel=0.01)


@contextmanager
def answering(labels: dict[str, str]) -> Iterator[Endpoint]:
    """A server that gives each text a label, and 500 to one that it does not know."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
            body = json.dumps({"label": labels.get(text, "")}).encode()
            self.send_response(200 if text in labels else 500)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"127.0.0.1:{server.server_port}"
        yield Endpoint(address, "classify", lambda text: {"text": text}, lambda answer: str(answer["label"]))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def generator() -> PerfAnalyzer:
    tool = find_perf_analyzer()
    if tool is None:
        pytest.skip("perf_analyzer could not be fetched")
    return tool


@pytest.mark.slow
def test_wrong_and_failed_answers_are_counted(triton: None) -> None:
    tool, right = generator(), dict.fromkeys(("one", "zwei é 漢", 'a "third" \\'), "A")
    questions = Questions(list(right), right)
    with answering(right) as system:
        compare_first(system, questions)
        measured = put_load(tool, system, questions, Load(0.5, clients=2))
        assert (measured.failures, measured.wrong) == (0, 0)
        assert measured.answers > 10
    with answering({**right, "one": "B"}) as system:
        measured = put_load(tool, system, questions, Load(0.5, clients=2))
        assert measured.wrong == pytest.approx(measured.answers / 3, abs=2)
    with answering({"one": "A"}) as system:
        measured = put_load(tool, system, questions, Load(0.5, clients=2))
        assert (measured.failures, measured.point) == (1, None)
        assert "500" in measured.failure
    with answering(dict.fromkeys(right, "B")) as system, pytest.raises(SystemFailed, match="3 of the first"):
        compare_first(system, questions)


@pytest.mark.slow
def test_both_generators_ask_the_same_and_a_failed_request_ends_the_comparison(triton: None) -> None:
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    tool, load, right = generator(), Load(1.0, clients=2), dict.fromkeys(("one", "zwei é ]=]"), "A")
    with answering(right) as system:
        found = compare_generators(tool, system, Questions(list(right), right), load, 1)
        assert min(found["texts_per_second"].values()) > 0
        assert found["ratio"] == found["texts_per_second"]["perf_analyzer"] / found["texts_per_second"]["wrk"]
    with answering({"one": "A"}) as system:
        with pytest.raises(GeneratorFailed, match=r"wrk: Non-2xx or 3xx responses: \d+"):
            wrk_rate(system, Questions(list(right), right), load)
        with pytest.raises(GeneratorFailed, match=r"perf_analyzer: .*500"):
            compare_generators(tool, system, Questions(list(right), right), load, 1)


def test_without_wrk_the_generators_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    nobody = Endpoint("127.0.0.1:9", "classify", lambda text: {"text": text}, str)
    found = compare_generators(PerfAnalyzer(Path("none"), ""), nobody, Questions([], {}), Load(1.0, 1), 1)
    assert found == {"not_run": "wrk is not installed"}


@pytest.mark.slow
def test_benchmark_runs_and_all_systems_agree(triton: None, tmp_path: Path) -> None:
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "uvloop", "httptools")):
        pytest.skip("the peers' packages are not installed: make bench-serve installs them")
    generator()
    out = tmp_path / "serve.json"
    command = [sys.executable, "-m", "benchmarks.serve", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert len(found["rows"]) >= 9
    assert found["failures"] == found["wrong_answers"] == 0
    assert all(row["answers"] > 0 and row["texts_per_second"] > 0 for row in found["rows"])
    assert found["ratio_best_peer"] > 0
    assert found["at_70_percent"]["failures"] == 0
    compared = found["generators"]
    assert compared.get("ratio", 0) > 0 or compared == {"not_run": "wrk is not installed"}
