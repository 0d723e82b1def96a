"""Looks after a Triton server: notices what broke, says so, and repairs it.

Noticed are a worker that was killed, stopped or is stuck, a model that answers wrong or not at all, and a
server that ended or hangs. A model is loaded again, a server started again. Where repairs do not help, the
watchdog gives up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

import psutil
from typing_extensions import Self

from bertmp.core.errors import BertmpError
from bertmp.serve.access import load_or_create_key
from bertmp.serve.health import Health, HealthServer
from bertmp.serve.http_request import Endpoint
from bertmp.serve.prober import Prober
from bertmp.serve.repair import WITHIN_SECONDS, Deploying, RepairBudget, is_deploying, reload_model
from bertmp.serve.serve_options import RunningServer, ServeOptions
from bertmp.serve.server import TritonServer
from bertmp.serve.server_config import free_port, with_free_ports
from bertmp.serve.workers import Worker, WorkerWatch, persistent

LOOK_SECONDS = 0.2
"""Between two looks at the processes."""
AGAIN_SECONDS = 0.5
"""At most between two golden requests where something is at fault."""
REPLACED_SECONDS = 10.0
"""After which a worker is killed in whose place another works."""
_CERTAIN = 2
"""Failures in a row that count: one may be chance."""


class Watchdog:
    """A server that is watched for the length of a `with` block.

    Args:
        options: how the server is run and watched; `progress` gets the log.

    Raises:
        InputError, MissingComponent: on entering, as `TritonServer`, or the health port cannot be used.
    """

    running: RunningServer

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._log = options.progress
        self._health = Health(options.health_period + options.health_timeout + 1.0)
        self._budget = RepairBudget(options.max_repairs)
        self._closing, self._ended = threading.Event(), threading.Event()
        self._starting = threading.Lock()
        self._failure: BertmpError | None = None
        self._start_error: BertmpError | None = None
        self._faulty: tuple[Worker, ...] = ()
        self._said: dict[str, str] = {}
        self._replaced: list[tuple[float, psutil.Process]] = []
        self._unanswered, self._stopped = 0, False
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            options, host = self._options, self._options.host
            port = free_port(host, options.wanted_health_port, "health")
            cleanup.enter_context(HealthServer(self._health, host, port))
            self._address = options.address("health", port)
            self._options = options = with_free_ports(options)
            self._start_server()
            cleanup.callback(self._stop_server)
            server = Endpoint(self.running.http, load_or_create_key(options.token_file).headers())
            self._prober = Prober(server, options.repository, self._health, options.health_timeout, self._log)
            self._prober.ask_all()
            for loop in (self._watch, self._probe):
                thread = threading.Thread(target=self._guarded, args=(loop,), daemon=True)
                thread.start()
                cleanup.callback(thread.join, LOOK_SECONDS + AGAIN_SECONDS)
            cleanup.callback(self._close)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def has_ended(self, seconds: float) -> bool:
        """Whether the watchdog has given up, or does so within so many seconds."""
        return self._ended.wait(seconds)

    def failure(self) -> BertmpError:
        """Why it has given up."""
        assert self._failure is not None
        return self._failure

    def _close(self) -> None:
        self._health.ending = self._health.ending or "the server is stopping"
        self._closing.set()
        if self._starting.locked():
            self._server.kill()
        elif self._failure is None:
            time.sleep(self._options.stop_delay)

    def _start_server(self) -> None:
        self._server = TritonServer(self._options)
        self.running = replace(self._server.__enter__(), health=self._address)
        self._workers = WorkerWatch(self.running.pid, self._options.worker_timeout)
        self._unanswered, self._stopped = 0, False
        self._faulty, self._replaced = self._workers.look(), []
        self._health.server_fault = ""

    def _stop_server(self) -> None:
        with self._starting:
            self._server.__exit__()

    def _guarded(self, loop: Callable[[], None]) -> None:
        """Runs a loop; an error in it ends the command, so that nothing is left unwatched."""
        try:
            loop()
        except Exception as error:
            self._give_up(BertmpError(f"the watchdog failed: {error!r}", self._options.repository))

    def _give_up(self, error: BertmpError) -> None:
        if not self._closing.is_set():
            self._health.ending = str(error)
            self._failure = error
            self._closing.set()
            self._ended.set()

    def _probe(self) -> None:
        period = self._options.health_period
        while not self._closing.is_set():
            if self._prober.is_live().ok:
                self._unanswered = 0
                self._prober.ask_all()
            else:
                self._unanswered += 1
            sound = not self._unanswered and not self._prober.failures()
            self._closing.wait(period if sound else min(AGAIN_SECONDS, period))

    def _watch(self) -> None:
        while not self._closing.wait(LOOK_SECONDS):
            self._health.beat = time.monotonic()
            self._kill_replaced()
            workers = self._workers.look()
            broken, self._faulty = persistent(self._faulty, workers), workers
            stopped = self._workers.server_is_stopped()
            hangs, self._stopped = self._stopped and stopped, stopped
            if self._server.has_ended():
                self._restart(self._start_error or self._server.exit_error())
            elif hangs or self._unanswered >= _CERTAIN:
                self._restart(BertmpError("Triton does not answer", self.running.http))
            else:
                self._health.server_fault = ""
                if broken:
                    self._reload_of_workers(broken)
                else:
                    self._reload_failing()

    def _reload_of_workers(self, broken: Sequence[Worker]) -> None:
        """Loads the model of the first of the broken workers again."""
        by_model = {worker: worker.model(self._health.models) for worker in broken}
        model = next((model for model in by_model.values() if model is not None), None)
        if model is None:  # of a version that does not answer anybody
            self._workers.ignore(broken)
            return
        its = [worker for worker in broken if by_model[worker] == model]
        what = " and ".join(f"worker {worker.pid} of '{model}' was {worker.state}" for worker in its)
        self._reload(model, what, its)

    def _reload_failing(self) -> None:
        failing = [model for model, times in self._prober.failures().items() if times >= _CERTAIN]
        for model, health in [(model, self._health.models.get(model)) for model in failing[:1]]:
            its = [worker for worker in self._workers.look() if worker.model(self._health.models) == model]
            self._reload(model, f"'{model}' fails: {health.fault if health else 'unknown'}", its)
        for model in [model for model in self._said if model not in failing]:
            del self._said[model]
        with self._health.lock:  # what a deployment replaced meanwhile needs no repair any more
            for model in [model for model in self._health.repairing if model not in failing]:
                del self._health.repairing[model]

    def _reload(self, model: str, what: str, workers: Sequence[Worker]) -> None:
        """Loads a model again; a server that cannot is started again.

        Args:
            workers: those that are at fault.
        """
        started = time.monotonic()
        with self._health.lock:
            now = self._health.models.get(model)
            if now is None:  # it was unloaded meanwhile
                return
            self._health.repairing[model] = what
        if is_deploying(self._options.repository, model):
            self._say(model, f"{what}: it is repaired when the deployment that is under way has ended")
            return
        if not self._may_repair(model, what, "the model is loaded again"):
            return
        hanging = [worker for worker in workers if worker.state in ("stopped", "stuck")]
        try:
            server, repository = self._prober.server, self._options.repository
            reason = reload_model(server, repository, model, now.version, hanging)
        except Deploying:  # since a moment ago
            self._budget.give_back()
            return
        if reason and not self._closing.is_set():
            self._restart(BertmpError(f"'{model}' does not load again: {reason}", self.running.http))
            return
        self._replaced += [(started + REPLACED_SECONDS, one) for one in self._workers.processes(workers)]
        self._workers.ignore(workers)
        self._answers_again(model, started)

    def _kill_replaced(self) -> None:
        """Ends the workers that were replaced and do not end by themselves: they hang."""
        now = time.monotonic()
        for process in [process for until, process in self._replaced if until < now]:
            with suppress(psutil.NoSuchProcess):
                process.kill()  # not another process that has its number by now
        self._replaced = [one for one in self._replaced if one[0] >= now]

    def _restart(self, why: BertmpError) -> None:
        """Starts the server again, at the same ports."""
        started = time.monotonic()
        what = f"{why.what}: {why.todo}" if why.todo else why.what
        self._health.server_fault = what
        if self._options.max_repairs == 0 and self._server.has_ended():
            self._give_up(why)
            return
        if not self._may_repair("", what, "the server is started again"):
            return
        with self._starting:
            if self._closing.is_set():
                return
            self._server.kill()
            self._server.__exit__()
            self._start_error = None
            try:
                self._start_server()
            except BertmpError as error:
                self._start_error = error
                return
        self._answers_again(None, started)

    def _answers_again(self, model: str | None, started: float) -> None:
        self._prober.forget_failures(model)
        self._prober.ask_all()
        with self._health.lock:
            if model is None:
                self._health.repairing.clear()
            else:
                self._health.repairing.pop(model, None)
        seconds = time.monotonic() - started
        with self._health.lock:
            self._health.repairs[model or ""] += 1
            self._health.repair_seconds += seconds
        who = f"'{model}'" if model else "the server"
        fault = self._health.faults().get(model or "")
        outcome = f"does not answer rightly yet: {fault}" if fault else "answers again"
        self._log(f"watchdog: {who} {outcome}, after {seconds:.1f} s")
        self._said.pop(model or "", None)

    def _may_repair(self, target: str, what: str, how: str) -> bool:
        """Says what is repaired, and waits where it was repaired a moment ago; False where it may not be."""
        if self._options.max_repairs == 0:
            self._say(target, f"{what}; nothing is repaired, by option")
            return False
        delay = self._budget.take(target, time.monotonic())
        if delay is None:
            within = f"within {WITHIN_SECONDS:.0f} seconds"
            failed = f"{self._options.max_repairs} repairs {within} did not help; the last fault: {what}"
            self._give_up(BertmpError(failed, self._options.repository, "look at the log above"))
            return False
        self._say(target, f"{what}: {how}")
        return not self._closing.wait(delay)

    def _say(self, target: str, what: str) -> None:
        """Logs what is at fault, once."""
        if self._said.get(target) != what:
            self._said[target] = what
            self._log(f"watchdog: {what}")
