"""`bertmp serve`: a real Triton server, in the foreground or for the length of a `with` block."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from bertmp.core.errors import BertmpError, InputError
from bertmp.core.options import keywords_of
from bertmp.environment.triton_install import find_runtime
from bertmp.serve import server_config
from bertmp.serve.repository import servable
from bertmp.serve.serving_options import RunningServer, ServeOptions

START_TIMEOUT = 300.0
"""Seconds that the models may take to load."""
_POLL_SECONDS = 0.05
_KEPT_LINES = 200
_HARMLESS = (
    "CudaDriverHelper has not been initialized",  # no GPU
    "no pinned memory pool",
    "ignore version directory",  # configs/ and .retired/ lie beside the versions
    "Signal (",  # it was stopped
)
"""What Triton prints in ordinary use and nobody can act on."""


class TritonServer:
    """A Triton process that is ready inside the `with` block and gone after it.

    Args:
        options: how it is run; `progress` gets every line that Triton prints, without the harmless ones.

    Raises:
        InputError: on entering, an empty repository, a taken port, or a model that does not load.
        MissingComponent: on entering, Triton is not set up.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._cleanup = ExitStack()

    def __enter__(self) -> RunningServer:
        with ExitStack() as cleanup:
            running = self._start(cleanup)
            self._cleanup = cleanup.pop_all()
        return running

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _start(self, cleanup: ExitStack) -> RunningServer:
        """Starts the server; whatever happens, `cleanup` removes it and its temporary files."""
        models = servable(self._options.repository)
        runtime = find_runtime()
        options = server_config.with_free_ports(self._options)
        config = server_config.find_config(options, models, runtime)
        shm_prefix = f"bertmp-{os.getpid()}-{secrets.token_hex(4)}-"
        cleanup.callback(_remove_shared_memory, shm_prefix)
        temporary = tempfile.TemporaryDirectory(prefix="bertmp-triton-", ignore_cleanup_errors=True)
        folder = Path(cleanup.enter_context(temporary))
        server_config.copy_backends(folder, runtime)
        self._process = subprocess.Popen(
            server_config.command_line(options, config.name, runtime, folder, models, shm_prefix),
            env=server_config.server_environment(runtime),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # A process group of its own: Ctrl-C reaches us alone, and we stop it and its children in order.
            start_new_session=True,
        )
        cleanup.callback(_stop, self._process)
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        addresses = {name: options.address(port) for name, port in options.ports.items()}
        self._wait_ready(addresses["http"])
        return RunningServer(
            **addresses,
            models=tuple(models),
            config_name=config.name,
            config_reason=config.reason,
            version=runtime.version,
            pid=self._process.pid,
        )

    def _read(self, stream: IO[str]) -> None:
        for line in map(str.rstrip, stream):
            self._lines.append(line)
            if line and not any(text in line for text in _HARMLESS):
                self._options.progress(line)

    def _wait_ready(self, address: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._exit_error()
            status, _ = _request(address, "GET", "/v2/health/ready")
            if status == 200:
                return
            if status is not None:
                _require_no_failed_model(address, self._options.repository)
            time.sleep(_POLL_SECONDS)
        what = f"the models were not ready after {START_TIMEOUT:.0f} seconds"
        raise InputError(what, self._options.repository, "look at Triton's log")

    def wait(self) -> NoReturn:
        """Waits until Triton ends by itself.

        Raises:
            BertmpError: it did, with its last error message.
        """
        self._process.wait()
        raise self._exit_error()

    def _exit_error(self) -> BertmpError:
        self._reader.join(2.0)
        lines = [line for line in self._lines if line]
        errors = [line for line in lines if line.startswith(("E", "error:"))]
        last = (errors or lines or ["it printed nothing"])[-1][:300]
        what = f"Triton ended by itself with code {self._process.returncode}"
        return BertmpError(what, self._options.repository, last)


def _stop(process: subprocess.Popen[str]) -> None:
    """Lets the server finish its requests; what is left of its process group after that is killed."""
    try:
        process.terminate()
        process.wait(server_config.EXIT_SECONDS + 5)
    except subprocess.TimeoutExpired:
        pass
    finally:
        deadline = time.monotonic() + 5
        with suppress(ProcessLookupError, PermissionError):  # the group is gone
            while time.monotonic() < deadline:
                os.killpg(process.pid, signal.SIGKILL)
                process.poll()
                time.sleep(0.01)
        process.wait()


def _remove_shared_memory(prefix: str) -> None:
    for region in Path("/dev/shm").glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def _request(address: str, method: str, path: str) -> tuple[int | None, bytes]:
    """Status and body of an HTTP request; no status where nothing answers.

    By the standard library: inside gevent, which tritonclient uses, Ctrl-C would print a traceback.
    """
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
    """Raises an InputError with Triton's reason for the first model that did not load."""
    status, body = _request(address, "POST", "/v2/repository/index")
    for entry in json.loads(body) if status == 200 else ():
        reason = entry.get("reason", "")
        if entry.get("state") == "UNAVAILABLE" and reason and reason != "unloaded":
            version = f" version {entry['version']}" if entry.get("version") else ""
            what = f"model '{entry['name']}'{version} does not load: {reason.strip()[:500]}"
            raise InputError(what, repository / entry["name"], "fix it or deploy it again")


@keywords_of(ServeOptions)
def serve_repository(options: ServeOptions) -> None:
    """Runs a Triton server in the foreground until Ctrl-C, or until SIGTERM, after which it returns.

    Raises:
        KeyboardInterrupt: it was stopped by Ctrl-C.
        InputError: an empty repository, a taken port, or a model that does not load.
        MissingComponent: Triton is not set up.
        BertmpError: Triton ended by itself.
    """
    server = TritonServer(options)
    with suppress(_Terminated), _signals_end_block(), server as running:
        options.on_ready(running)
        server.wait()


class _Terminated(BaseException):
    """SIGTERM: how service managers and containers stop a server."""


@contextmanager
def _signals_end_block() -> Iterator[None]:
    """SIGTERM ends the block; a closed terminal does so as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _Terminated if number == signal.SIGTERM else KeyboardInterrupt

    with ExitStack() as restored:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            restored.callback(signal.signal, number, signal.signal(number, interrupt))
        yield
