"""What is known of a server's health, and the port that tells it: /ready, /live and /metrics."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import Self


@dataclass(frozen=True)
class ModelHealth:
    """One model's last golden request.

    Attributes:
        version: the version that is asked.
        fault: what was wrong with the last answer; empty where it was right.
        answered: when the last right answer came, in seconds of the monotonic clock; None where none did.
        seconds: how long the last answer took.
        golden: what answers are compared with: `recorded` by deploy, the `first` one, or nothing where any
            `finite` one is right; `none` where only Triton's own word counts.
    """

    version: int
    fault: str = ""
    answered: float | None = None
    seconds: float = 0.0
    golden: str = "none"


@dataclass
class Health:
    """What the watchdog found last. Threads share it: `lock` is held to read or change it.

    Attributes:
        fresh_seconds: how old a right answer may be.
        server_fault: why the server is not in service; empty where it is.
        ending: why it will not be in service again; empty where it may be.
        models: by name.
        repairing: the models that are being repaired, and why: nothing else counts for them.
        beat: when the watchdog last looked, in seconds of the monotonic clock.
        probes: golden requests by (model, outcome).
        repairs: by what was repaired: `server`, or a model's name.
        repair_seconds: how long they took together.
    """

    fresh_seconds: float
    server_fault: str = "the server is starting"
    ending: str = ""
    models: dict[str, ModelHealth] = field(default_factory=dict)
    repairing: dict[str, str] = field(default_factory=dict)
    beat: float = field(default_factory=time.monotonic)
    probes: Counter[tuple[str, str]] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    repair_seconds: float = 0.0
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def faults(self) -> dict[str, str]:
        """Why the server is not ready, by model; empty where it is. The server itself stands under ''."""
        now = time.monotonic()
        with self.lock:
            fault = self.ending or self.server_fault
            found = {"": fault} if fault else {}
            for name, model in self.models.items():
                if fault := self.repairing.get(name) or model.fault:
                    found[name] = fault
                elif model.answered is None:
                    found[name] = "it has not answered yet"
                elif now - model.answered > self.fresh_seconds:
                    found[name] = f"its last right answer is {now - model.answered:.1f} s old"
            if not found and not self.models:
                found[""] = "no model has answered yet"
            return found

    def ready(self) -> tuple[int, dict[str, Any]]:
        """Status and body of /ready."""
        faults, now = self.faults(), time.monotonic()
        with self.lock:
            models = {
                name: {
                    "ready": name not in faults and "" not in faults,
                    "version": model.version,
                    "golden": model.golden,
                    "seconds_since_right_answer": None
                    if model.answered is None
                    else round(now - model.answered, 3),
                    **({"reason": faults[name]} if name in faults else {}),
                }
                for name, model in self.models.items()
            }
        reason = "; ".join(f"'{name}': {why}" if name else why for name, why in faults.items())
        body = {"ready": not faults, **({"reason": reason} if reason else {}), "models": models}
        return (503 if faults else 200), body

    def live(self) -> tuple[int, dict[str, Any]]:
        """Status and body of /live: whether somebody still looks after the server."""
        age = time.monotonic() - self.beat
        alive = age < 60
        return (200 if alive else 503), {"live": alive, "seconds_since_last_look": round(age, 3)}

    def metrics(self) -> str:
        """The body of /metrics, in Prometheus' text format."""
        return "".join(f"{line}\n" for line in self._metric_lines())

    def _metric_lines(self) -> Iterator[str]:
        faults = self.faults()
        with self.lock:
            yield from _metric("bertmp_ready", "gauge", "1 where /ready answers 200.", {"": int(not faults)})
            healthy = {
                _labels(model=name, version=model.version): int(name not in faults and "" not in faults)
                for name, model in self.models.items()
            }
            yield from _metric("bertmp_model_ready", "gauge", "1 where the model answers rightly.", healthy)
            took = {_labels(model=name): model.seconds for name, model in self.models.items()}
            text = "Seconds that the model's last golden request took."
            yield from _metric("bertmp_golden_request_seconds", "gauge", text, took)
            counted = {_labels(model=name, outcome=how): count for (name, how), count in self.probes.items()}
            text = "Golden requests by outcome."
            yield from _metric("bertmp_golden_requests_total", "counter", text, counted)
            repaired = {_labels(target="server"): 0}
            repaired |= {_labels(target=target or "server"): count for target, count in self.repairs.items()}
            text = "Repairs of the server or of a model."
            yield from _metric("bertmp_repairs_total", "counter", text, repaired)
            text = "Seconds that repairs took together."
            yield from _metric("bertmp_repair_seconds_total", "counter", text, {"": self.repair_seconds})


def _metric(name: str, kind: str, text: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values.items():
        yield f"{name}{labels} {value:.6g}"


def _labels(**labels: object) -> str:
    return "{" + ",".join(f"{name}={json.dumps(str(value))}" for name, value in labels.items()) + "}"


class HealthServer:
    """Answers on the health port for the length of a `with` block.

    Args:
        health: what it tells.
        host, port: where it listens.

    Raises:
        OSError: the port cannot be used.
    """

    def __init__(self, health: Health, host: str, port: int) -> None:
        handler = type("_HealthHandler", (_Handler,), {"health": health})
        server = _Server6 if ":" in host else _Server
        self._server = server((host, port), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; a client that sends nothing is dropped after `timeout` seconds."""

    health: Health
    timeout = 5
    server_version, sys_version = "bertmp", ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].rstrip("/")
        if path in ("/ready", "/live"):
            status, value = self.health.ready() if path == "/ready" else self.health.live()
            self._send(status, "application/json", json.dumps(value) + "\n")
        elif path == "/metrics":
            self._send(200, "text/plain; version=0.0.4; charset=utf-8", self.health.metrics())
        else:
            self._send(404, "application/json", '{"error": "ask for /ready, /live or /metrics"}\n')

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a check every second is not news."""
