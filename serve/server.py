"""One Triton process, ready for the length of a `with` block."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from bertmp.core.errors import BertmpError, InputError
from bertmp.environment.triton_install import find_runtime
from bertmp.serve import server_config
from bertmp.serve.access import load_or_create_key
from bertmp.serve.addresses import published
from bertmp.serve.exposure import check_exposure
from bertmp.serve.hidden_arguments import CannotHide, start_hidden
from bertmp.serve.http_request import Endpoint
from bertmp.serve.repository import servable
from bertmp.serve.serve_options import RunningServer, ServeOptions
from bertmp.serve.shutdown import drain, kill_group

START_TIMEOUT = 300.0
"""Seconds that the models may take to load."""
_POLL_SECONDS = 0.05
_KEPT_LINES = 200
_USAGE = "Usage: tritonserver"
"""How Triton begins where it does not take its arguments."""
_HARMLESS = (
    "CudaDriverHelper has not been initialized",  # no GPU
    "no pinned memory pool",
    "ignore version directory",  # configs/ and .retired/ lie beside the versions
    "Signal (",  # it was stopped
    "Non-graceful termination detected",  # it was killed: what its workers say
)
"""What Triton prints in ordinary use and nobody can act on."""


class TritonServer:
    """A Triton process that is ready inside the `with` block and gone after it.

    Args:
        options: how it is run; `progress` gets every line that Triton prints, without the harmless ones.

    Raises:
        InputError: on entering, an empty repository, a taken port, a model that does not load, a bad key or
            certificate, or a Triton with known vulnerabilities that would listen beyond this machine.
        MissingComponent: on entering, Triton is not set up.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._cleanup = ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self._killed = threading.Event()
        self._refused = False

    def __enter__(self) -> RunningServer:
        with ExitStack() as cleanup:
            running = self._start(cleanup)
            self._cleanup = cleanup.pop_all()
        return running

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def kill(self) -> None:
        """Ends the process at once, or its start where that is still going on; for another thread, too."""
        self._killed.set()
        if self._process is not None:
            kill_group(self._process)

    def _start(self, cleanup: ExitStack) -> RunningServer:
        """Starts the server; whatever happens, `cleanup` removes it and its temporary files."""
        models = servable(self._options.repository)
        runtime = find_runtime()
        for warning in check_exposure(self._options, runtime.version):
            self._options.progress(warning)
        options = server_config.with_free_ports(self._options)
        key = load_or_create_key(options.token_file)
        config = server_config.find_config(options, models, runtime)
        shm_prefix = f"bertmp-{os.getpid()}-{secrets.token_hex(4)}-"
        cleanup.callback(_remove_shared_memory, shm_prefix)
        temporary = tempfile.TemporaryDirectory(prefix="bertmp-triton-", ignore_cleanup_errors=True)
        folder = Path(cleanup.enter_context(temporary))
        server_config.copy_backends(folder, runtime)
        addresses = {name: options.address(name, port) for name, port in options.ports.items()}
        restrictions = key.hidden_arguments()
        command = server_config.command_line(
            options, config.name, runtime, folder, models, shm_prefix, tuple(restrictions)
        )
        environment = server_config.server_environment(runtime, options.pass_env)
        process = self._process = self._launch(command, restrictions, environment, folder)
        cleanup.callback(kill_group, process)
        self._reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._reader.start()
        server = Endpoint(addresses["http"], key.headers())
        self._wait_ready(server, models)
        cleanup.callback(self._drain, server, process.pid)
        running = RunningServer(
            **addresses,
            models=tuple(models),
            config_name=config.name,
            config_reason=config.reason,
            version=runtime.version,
            pid=process.pid,
        )
        cleanup.enter_context(published(self._options.repository, running))
        return running

    def _launch(
        self, command: Sequence[str], hidden: Mapping[str, str], environment: Mapping[str, str], folder: Path
    ) -> subprocess.Popen[str]:
        popen = {
            "cwd": folder,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
            "errors": "replace",
            # A process group of its own: Ctrl-C reaches us alone, and we stop it and its children in order.
            "start_new_session": True,
        }
        try:
            return start_hidden(command, hidden, environment, **popen)
        except CannotHide as error:
            what = "warning: other users of this machine can read the server's key in its list of processes"
            self._options.progress(f"{what}: {error}")
            true = [hidden.get(argument, argument) for argument in command]
            return subprocess.Popen(true, env=dict(environment), **popen)  # type: ignore[call-overload]

    def _read(self, stream: IO[str]) -> None:
        for line in map(str.rstrip, stream):
            self._refused = self._refused or line.startswith(_USAGE)
            if self._refused:
                self._lines.append(line)  # 400 lines of help, and behind them what it does not take
            elif line and not any(text in line for text in _HARMLESS):
                self._lines.append(line)
                self._options.progress(line)

    def _wait_ready(self, server: Endpoint, models: Sequence[str]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._killed.is_set() or self.has_ended():
                raise self.exit_error()
            if server.get("/v2/health/ready").ok and _are_loaded(server, models, self._options.repository):
                return
            time.sleep(_POLL_SECONDS)
        what = f"the models were not ready after {START_TIMEOUT:.0f} seconds"
        raise InputError(what, self._options.repository, "look at Triton's log")

    def _drain(self, server: Endpoint, process: int) -> None:
        if not (self._killed.is_set() or self.has_ended()):
            drain(server, process, self._options.drain_seconds, self._options.progress)

    def has_ended(self) -> bool:
        """Whether the process ended by itself."""
        return self._process is None or self._process.poll() is not None

    def exit_error(self) -> BertmpError:
        """Why the process ended by itself: its last error message."""
        if self._process is None:
            return BertmpError("Triton did not start", self._options.repository)
        killed = self._process.returncode < 0  # what it said before has nothing to do with it
        if not killed:
            self._reader.join(2.0)
        lines = [line for line in self._lines if line]
        if self._refused:
            return InputError("Triton does not take its arguments", "--trace-config", lines[-1].rstrip("."))
        code = self._process.returncode
        if killed:
            what = f"Triton ended by itself with code {code} ({signal.Signals(-code).name})"
            return BertmpError(what, self._options.repository, "look at what it was asked last")
        errors = [line for line in lines if line.startswith(("E", "error:"))]
        last = (errors or lines or ["it printed no error"])[-1][:300]
        what = f"Triton ended by itself with code {code}"
        return BertmpError(what, self._options.repository, last)


def _remove_shared_memory(prefix: str) -> None:
    for region in Path("/dev/shm").glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def _are_loaded(server: Endpoint, models: Sequence[str], repository: Path) -> bool:
    """Whether every model is loaded.

    Raises:
        InputError: one did not load, with Triton's reason.
    """
    reply = server.post("/v2/repository/index")
    entries = reply.json() if reply.ok else ()
    for entry in entries:
        reason = entry.get("reason", "")
        if entry.get("state") == "UNAVAILABLE" and reason and reason != "unloaded":
            version = f" version {entry['version']}" if entry.get("version") else ""
            what = f"model '{entry['name']}'{version} does not load: {reason.strip()[:500]}"
            raise InputError(what, repository / entry["name"], "fix it or deploy it again")
    ready = {entry["name"] for entry in entries if entry.get("state") == "READY"}
    return set(models) <= ready
