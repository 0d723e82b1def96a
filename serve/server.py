"""`bertmp serve`: a real Triton server, in the foreground or for the length of a `with` block."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import IO, Any

from bertmp.core.errors import BertmpError, InputError
from bertmp.environment.triton_install import find_runtime
from bertmp.serve import server_config as launch
from bertmp.serve.repository import servable
from bertmp.serve.server_config import ServerSettings

START_SECONDS = 300.0
"""How long the models may take to load."""
_TICK = 0.05
_KEPT_LINES = 200
_HARMLESS = (
    "CudaDriverHelper has not been initialized",  # no GPU
    "no pinned memory pool",
    "ignore version directory",  # configs/ and .retired/ lie beside the versions
    "Signal (",  # it was told to end
)
"""What Triton prints in ordinary use and nobody can act on."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Running:
    """Where a ready server answers.

    Attributes:
        http, grpc, metrics: `host:port`.
        models: what it serves.
        config_name: which of the models' configurations it took; empty for `config.pbtxt`.
        config_reason: why that one.
        version: Triton's version.
        pid: its process.
    """

    http: str
    grpc: str
    metrics: str
    models: tuple[str, ...]
    config_name: str
    config_reason: str
    version: str
    pid: int

    def to_json(self) -> dict[str, Any]:
        return {"ready": True, **asdict(self), "models": list(self.models)}


class TritonServer:
    """A Triton process that is ready inside the `with` block and gone after it.

    Args:
        settings: how it is run.
        echo: told every line that Triton prints; the last ones are kept for error messages anyway.

    Errors on entering: InputError for an empty repository, a taken port, or a model that does not load;
    MissingComponent where Triton is not set up.
    """

    def __init__(self, settings: ServerSettings, echo: Callable[[str], None] | None = None) -> None:
        self._settings = settings
        self._echo = echo
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._process: subprocess.Popen[str] | None = None
        self._folder: Path | None = None
        self._reader: threading.Thread | None = None
        self._shm_prefix = f"bertmp-{os.getpid()}-{secrets.token_hex(4)}-"

    def __enter__(self) -> Running:
        try:
            return self._start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> Running:
        models = servable(self._settings.repository)
        runtime = find_runtime()
        settings = launch.with_free_ports(self._settings)
        choice = launch.ConfigChoice(settings.config_name or "", "asked for")
        if settings.config_name:
            launch.require_config(settings.repository, models, settings.config_name)
        if settings.config_name is None:
            choice = launch.choose_config_here(settings.repository, models, runtime)
        settings = replace(settings, config_name=choice.name)
        self._folder = Path(tempfile.mkdtemp(prefix="bertmp-triton-"))
        launch.lay_runtime(self._folder, runtime)
        self._process = subprocess.Popen(
            launch.command_line(settings, runtime, self._folder, models, self._shm_prefix),
            env=launch.environment(runtime),
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # A group of its own: Ctrl-C reaches us alone, and we end it and its children in order.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self._wait_ready(settings)
        http, grpc, metrics = (settings.address(port) for port in settings.ports.values())
        return Running(
            http, grpc, metrics, tuple(models), choice.name, choice.reason, runtime.version, self._process.pid
        )

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.append(line.rstrip())
            if self._echo is not None:
                self._echo(line.rstrip())

    def _wait_ready(self, settings: ServerSettings) -> None:
        address = settings.address(settings.http_port)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.ended_within(_TICK) is not None:
                raise self.death()
            status, _ = _ask(address, "GET", "/v2/health/ready")
            if status == 200:
                return
            if status is not None:
                _require_no_failed_model(address, settings.repository)
        raise InputError(
            f"the models were not ready after {START_SECONDS:.0f} seconds",
            settings.repository,
            "look at Triton's log",
        )

    def ended_within(self, seconds: float | None) -> int | None:
        """Waits for the process to end: its exit code, or None where it still runs."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def death(self) -> BertmpError:
        """The error that says that Triton ended by itself, with what it said last."""
        assert self._process is not None
        assert self._reader is not None
        self._reader.join(2.0)
        lines = [line for line in self._lines if line.strip()]
        told = [line for line in lines if line.startswith(("E", "error:"))] or lines or ["it said nothing"]
        return BertmpError(
            f"Triton ended by itself with code {self._process.returncode}",
            self._settings.repository,
            told[-1][:300],
        )

    def stop(self) -> None:
        """Ends Triton and its children and removes what the launch left; does nothing the second time."""
        process, self._process = self._process, None
        try:
            if process is not None:
                _end(process)
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            for region in Path("/dev/shm").glob(f"{self._shm_prefix}*"):
                region.unlink(missing_ok=True)


def _end(process: subprocess.Popen[str]) -> None:
    """Lets the server finish its requests; whatever of its group is left after that is killed."""
    try:
        process.terminate()
        process.wait(launch.EXIT_SECONDS + 5)
    except subprocess.TimeoutExpired:
        pass
    finally:
        deadline = time.monotonic() + 5
        while _kill_group(process.pid) and time.monotonic() < deadline:
            process.poll()
            time.sleep(0.01)
        process.wait()


def _kill_group(leader: int) -> bool:
    """Kills a process group; False where there is none any more."""
    try:
        os.killpg(leader, signal.SIGKILL)
        return True
    except (ProcessLookupError, PermissionError):
        return False


def _ask(address: str, method: str, path: str) -> tuple[int | None, bytes]:
    """Status and body of a request; no status where nobody answers."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()


def _require_no_failed_model(address: str, repository: Path) -> None:
    """Errors: InputError with Triton's reason for the first model that did not load."""
    status, body = _ask(address, "POST", "/v2/repository/index")
    if status != 200:
        return
    for entry in json.loads(body):
        reason = entry.get("reason", "")
        if entry.get("state") == "UNAVAILABLE" and reason and reason != "unloaded":
            version = f" version {entry['version']}" if entry.get("version") else ""
            raise InputError(
                f"model '{entry['name']}'{version} does not load: {reason.strip()[:500]}",
                repository / entry["name"],
                "mend or deploy it again",
            )


def serve_repository(
    repository: Path = Path("model_repository"),
    host: str = "127.0.0.1",
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
    config_name: str | None = None,
    on_ready: Callable[[Running], None] = lambda running: None,
) -> None:
    """Runs a Triton server until Ctrl-C or SIGTERM.

    Args:
        repository: the model repository.
        host: the address it listens on.
        http_port, grpc_port, metrics_port: 0 takes a free one.
        config_name: which of the models' configurations: `cpu`, or empty for `config.pbtxt`; chosen by
            what this machine has where left out.
        on_ready: told once, when every model is ready.

    Errors: KeyboardInterrupt when it was told to end; InputError and MissingComponent as TritonServer;
    BertmpError where Triton ends by itself.
    """
    settings = ServerSettings(Path(repository), host, http_port, grpc_port, metrics_port, config_name)
    with _signals_interrupt():
        server = TritonServer(settings, echo=_to_stderr)
        with server as running:
            on_ready(running)
            server.ended_within(None)
            raise server.death()


def _to_stderr(line: str) -> None:
    if line and not any(told in line for told in _HARMLESS):
        print(line, file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal end the block as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
