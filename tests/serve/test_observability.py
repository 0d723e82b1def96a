"""What a served model tells: log lines as JSON, metrics and their dashboard, traces."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from bertmp import infer
from bertmp.serve.http_request import Endpoint
from bertmp.serve.log_lines import to_json
from bertmp.serve.serve_options import ServeOptions
from bertmp.serve.server import TritonServer
from bertmp.serve.watchdog import Watchdog
from tests.serve.test_serve_command import serving, until
from tests.serve.test_watchdog import FREE

GRAFANA = Path(__file__).resolve().parents[2] / "examples" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboard.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def emitted(triton: None, repository: Path) -> Iterator[set[str]]:
    """The names of the metrics that a server and its watchdog tell after a request."""
    with Watchdog(ServeOptions(repository, **FREE)) as watchdog:
        infer("trec", ["Who ?"], url=watchdog.running.grpc)
        found: set[str] = set()

        def look() -> bool:
            for address in (watchdog.running.metrics, watchdog.running.health):
                text = Endpoint(address).get("/metrics").body.decode()
                found.update(re.findall(r"^(\w+)", text, re.MULTILINE))
            return "nv_cpu_utilization" in found  # it needs two looks of Triton

        until(look)
        yield found


def test_dashboard_shows_metrics_that_there_are(emitted: set[str]) -> None:
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    shown = set(re.findall(r"\b(?:nv|bertmp)_\w+", " ".join(queries)))
    assert len(shown) > 12
    assert {name for name in shown if not name.startswith("nv_gpu_")} <= emitted


def test_dashboard_is_one_that_grafana_lays_out() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y
    assert all(one["x"] + one["w"] <= 24 for one in (panel["gridPos"] for panel in panels))
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) - {"__rate_interval"}
    assert used == variables


def test_prometheus_asks_the_default_ports() -> None:
    jobs = yaml.safe_load((GRAFANA / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    options = ServeOptions()
    assert targets["triton"] == [options.address("metrics", options.metrics_port)]
    assert targets["bertmp"] == [options.address("health", options.wanted_health_port)]


@pytest.mark.parametrize(
    ("line", "level", "source", "message"),
    [
        (
            'E1127 06:43:28.098460 10236 main.cc:245] "failed to start"',
            "error",
            "triton main.cc:245",
            "failed to start",
        ),
        ("W1127 06:43:28.098460 10236 a.cc:1] plain words", "warning", "triton a.cc:1", "plain words"),
        ("watchdog: worker 1 was killed", "warning", "bertmp", "watchdog: worker 1 was killed"),
        (
            "a model's own line, with 'quotes' and é",
            "info",
            "triton",
            "a model's own line, with 'quotes' and é",
        ),
    ],
)
def test_log_line_becomes_one_object(line: str, level: str, source: str, message: str) -> None:
    entry = json.loads(to_json(line))
    assert (entry["level"], entry["source"], entry["message"]) == (level, source, message)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", entry["time"])


def test_serve_with_json_logs_prints_nothing_else(triton: None, repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path / "scratch", "--log-format", "json") as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        worker = psutil.Process(ready["pid"]).children()[0]
        worker.kill()
        until(lambda: 'repairs_total{target="trec' in metrics(ready["health"]))
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    messages = [json.loads(line)["message"] for line in stderr.splitlines()]
    assert any(f"worker {worker.pid} of" in message for message in messages)


def metrics(address: str) -> str:
    return Endpoint(address).get("/metrics").body.decode()


@pytest.mark.slow
def test_traces_reach_an_opentelemetry_collector(triton: None, repository: Path) -> None:
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    settings = (
        *("mode=opentelemetry", "level=TIMESTAMPS", "rate=1", f"opentelemetry,url={url}"),
        *("opentelemetry,resource=service.name=bertmp", "opentelemetry,bsp_schedule_delay=100"),
    )
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    try:
        with TritonServer(ServeOptions(repository, **ports, trace_config=settings)) as running:
            infer("trec", ["Who ?"], url=running.grpc)
            deadline = time.monotonic() + 20
            while not received:
                assert time.monotonic() < deadline
                time.sleep(0.02)
    finally:
        collector.shutdown()
        collector.server_close()
    assert '"triton.model_name"' in received[0].decode()
    assert '"bertmp"' in received[0].decode()
