"""Asks every model of a server its golden request, and keeps what came back."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.progress import ProgressCallback
from bertmp.serve.golden import GoldenCase, any_request, read_golden
from bertmp.serve.health import Health, ModelHealth
from bertmp.serve.http_request import Endpoint, Reply
from bertmp.serve.repository import is_canary

LIVE_TIMEOUT = 2.0
"""Seconds that the server may take to say that it is alive."""
_AT_ONCE = 8
_UNLOADED = "unloaded"
"""Triton's reason where a model was unloaded on request."""
_BUSY = "maximum queue size"
"""What Triton says of a request that it refuses because the model's queue is full."""


@dataclass
class _Asked:
    """What is known of a version that is asked: the request, where its answer is from, failures in a row."""

    version: int
    case: GoldenCase | None
    golden: str
    failures: int = 0


@dataclass
class Prober:
    """Asks a server's models; one thread at a time.

    Attributes:
        server: its HTTP port, with the key.
        repository: where the golden requests lie.
        health: gets what is found.
        timeout: seconds that a request may take.
        log: told what is not compared with anything.
    """

    server: Endpoint
    repository: Path
    health: Health
    timeout: float
    log: ProgressCallback
    _asked: dict[str, _Asked] = field(default_factory=dict)
    _epoch: int = 0

    def is_live(self) -> Reply:
        """Whether the server answers at all."""
        return self.server.get("/v2/health/live", LIVE_TIMEOUT)

    def failures(self) -> dict[str, int]:
        """How many times in a row each model that is at fault has failed."""
        with self.health.lock:
            return {name: asked.failures for name, asked in self._asked.items() if asked.failures}

    def forget_failures(self, model: str | None = None) -> None:
        """After a repair: what a request found that was under way counts no longer."""
        with self.health.lock:
            self._epoch += 1
            for name, asked in self._asked.items():
                if model in (None, name):
                    asked.failures = 0

    def ask_all(self) -> None:
        """Asks every model that is loaded, and those that should be and are not."""
        loaded = self._loaded()
        if loaded is None:
            return
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self.ask, loaded, loaded.values()))

    def _loaded(self) -> dict[str, int] | None:
        """The newest loaded version of each model; None where the server does not say."""
        reply = self.server.post("/v2/repository/index", timeout=self.timeout)
        if not reply.ok:
            return None
        newest: dict[str, int] = {}
        reasons: dict[str, str] = {}
        for entry in reply.json() or ():
            name, state = entry["name"], entry.get("state")
            if is_canary(name):  # a deployment tries it, and takes it away
                continue
            if state == "READY":
                newest[name] = max(int(entry["version"]), newest.get(name, 0))
            elif state:
                reasons[name] = entry.get("reason", "") if state == "UNAVAILABLE" else state
        for name in [name for name in self._asked if name not in newest]:
            self._note_absent(name, reasons.get(name, _UNLOADED))
        return newest

    def _note_absent(self, model: str, reason: str) -> None:
        """Notes that a model is not loaded; one that is on its way counts by its last answer."""
        with self.health.lock:
            if reason == _UNLOADED:
                self.log(f"'{model}' was unloaded: it is watched no longer")
                self._asked.pop(model)
                self.health.models.pop(model, None)
            elif reason not in ("LOADING", "UNLOADING"):
                self._note(model, self._asked[model], f"it is not loaded: {reason}", 0.0, "failed")

    def ask(self, model: str, version: int) -> None:
        """Asks one model and notes what came."""
        epoch, asked = self._epoch, self._asked.get(model)
        if asked is None or asked.version != version:
            asked = self._prepare(model, version)
            with self.health.lock:
                self._asked[model] = asked
        before = self._answered_requests(model)
        started = time.monotonic()
        if asked.case is None:
            reply = self.server.get(f"/v2/models/{model}/ready", self.timeout)
            fault = "" if reply.ok else f"Triton says that it is not ready: {reply.reason}"
        else:
            reply = self.server.post(f"/v2/models/{model}/infer", asked.case.request, self.timeout)
            fault = asked.case.fault(reply)
            if reply.ok and _answering_version(reply) != version:
                return  # another version came into service meanwhile: the next round asks that
        seconds, outcome = time.monotonic() - started, "right"
        if fault:
            outcome = "busy" if self._is_busy(model, before, reply) else ("wrong" if reply.ok else "failed")
        elif asked.case is not None and asked.golden == "first" and not asked.case.outputs:
            asked.case = asked.case.expecting(reply)
            asked.golden = "first" if asked.case.outputs else "finite"
        with self.health.lock:
            if epoch == self._epoch:
                self._note(model, asked, fault, seconds, outcome)

    def _note(self, model: str, asked: _Asked, fault: str, seconds: float, outcome: str) -> None:
        before = self.health.models.get(model) or ModelHealth(asked.version)
        self.health.probes[model, outcome] += 1
        if outcome == "busy":  # too many requests are no fault of the model: its last answer gets old
            asked.failures = 0
            return
        asked.failures = asked.failures + 1 if fault else 0
        answered = before.answered if fault else time.monotonic()
        self.health.models[model] = ModelHealth(asked.version, fault, answered, seconds, asked.golden)

    def _is_busy(self, model: str, before: int, reply: Reply) -> bool:
        """Whether the model answers others, and this request only not yet."""
        if reply.status is not None:
            return _BUSY in reply.reason
        return self._answered_requests(model) > before

    def _answered_requests(self, model: str) -> int:
        found: Any = self.server.get(f"/v2/models/{model}/stats", LIVE_TIMEOUT).json()
        try:
            return sum(int(one["inference_stats"]["success"]["count"]) for one in found["model_stats"])
        except (KeyError, TypeError, ValueError):
            return 0

    def _prepare(self, model: str, version: int) -> _Asked:
        """The request to a version: the recorded one, else any that it answers."""
        try:
            case = read_golden(self.repository, model, version)
        except InputError as error:
            self.log(f"{error}; until then the first answer is taken as the right one")
            case = None
        if case is not None and case.outputs:
            return _Asked(version, case, "recorded")
        config = self.server.get(f"/v2/models/{model}/config", self.timeout).json()
        case = case or (any_request(config) if isinstance(config, dict) else None)
        what = f"version {version} of '{model}' has no recorded answers"
        if case is None:
            self.log(f"{what}, and no request to it is known: only Triton's own word for it counts")
            return _Asked(version, None, "none")
        self.log(f"{what}: its first answer is what later ones are compared with")
        return _Asked(version, replace(case, outputs=()), "first")


def _answering_version(reply: Reply) -> int:
    try:
        return int(reply.json()["model_version"])
    except (KeyError, TypeError, ValueError):
        return 0
