"""The options of `bertmp serve`, and where a ready server answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bertmp.core.errors import InputError
from bertmp.core.options import Options, option
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.serve.serving_options import REPOSITORY, REPOSITORY_HELP, TOKEN_FILE_HELP

_PORT_HELP = "0 takes a free port."
LOOPBACK = "127.0.0.1"
HEALTH_PORT = 8003


@dataclass(frozen=True)
class RunningServer:
    """Where a ready server answers.

    Attributes:
        http, grpc, metrics: `host:port`.
        models: the models that it serves.
        config_name: which of the models' configurations it took; empty for `config.pbtxt`.
        config_reason: why that one.
        version: Triton's version.
        pid: its process.
        health: `host:port` of `/ready`, `/live` and the watchdog's `/metrics`; empty where nobody watches it.
    """

    http: str
    grpc: str
    metrics: str
    models: tuple[str, ...]
    config_name: str
    config_reason: str
    version: str
    pid: int
    health: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"ready": True, **asdict(self)}


def _ignore(server: RunningServer) -> None:
    """The default of `on_ready`."""


class HealthOptions(Options, group="Health"):
    """When a server counts as ready, and what is done where it is not."""

    health_port: int | None = option(
        default=None,
        minimum=0,
        maximum=65535,
        help="The port of /ready, /live and the watchdog's /metrics: 8003 if not given, or a free one where "
        "--http-port is 0; 0 takes a free one.",
    )
    health_period: float = option(
        default=2.0, minimum=0.1, maximum=3600, help="Seconds between two golden requests to a model."
    )
    health_timeout: float = option(
        default=5.0, above=0, maximum=600, help="Seconds that a golden request may take."
    )
    worker_timeout: float = option(
        default=60.0,
        minimum=1,
        maximum=3600,
        help="Seconds that a worker may take for one step of its answers, such as a run of the graph; after "
        "them it is stuck, and replaced like one that was killed.",
    )
    max_repairs: int = option(
        default=5,
        minimum=0,
        help="Repairs within a minute after which the command gives up with exit code 1; 0 repairs nothing.",
    )
    stop_delay: float = option(
        default=0.0,
        minimum=0,
        maximum=3600,
        help="Seconds between a signal to stop, when /ready turns to 503, and the refusal of new requests: "
        "the time that a load balancer needs to notice.",
    )
    drain_seconds: int = option(
        default=10,
        minimum=1,
        maximum=3600,
        help="Seconds that requests may take to finish when the server is stopped.",
    )


class AccessOptions(Options, group="Access"):
    """Who reaches the server, and how."""

    token_file: Path | None = option(default=None, metavar="FILE", help=TOKEN_FILE_HELP)
    tls_cert: Path | None = option(
        default=None, metavar="FILE", help="The server's certificate (PEM): gRPC is then encrypted."
    )
    tls_key: Path | None = option(default=None, metavar="FILE", help="The certificate's private key (PEM).")
    tls_ca: Path | None = option(
        default=None,
        metavar="FILE",
        help="The authority (PEM) that must have signed the certificate that each gRPC client then shows.",
    )
    allow_vulnerable: bool = option(
        default=False, help="Listen beyond this machine although this Triton has known vulnerabilities."
    )
    pass_env: Sequence[str] = option(
        default=(),
        metavar="NAME",
        help="An environment variable that the server and its models get, too; by default they get few.",
    )

    def check(self) -> None:
        super().check()
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("a certificate without its key or the reverse", "--tls-cert", "give both")
        if self.tls_ca is not None and self.tls_cert is None:
            raise InputError("--tls-ca without --tls-cert and --tls-key", "--tls-ca", "give all three")


class LogOptions(Options, group="Logs and traces"):
    """What the server tells."""

    log_format: Literal["text", "json"] = option(
        default="text", help="How log lines look: as Triton writes them, or each as one JSON object."
    )
    trace_config: Sequence[str] = option(
        default=(),
        metavar="SETTING",
        help="Passed to Triton as --trace-config, e.g. 'mode=opentelemetry' or 'rate=100'.",
    )


class ServeOptions(HealthOptions, AccessOptions, LogOptions):
    """How a Triton server is run."""

    repository: Path = option(kw_only=False, default=REPOSITORY, metavar="DIR", help=REPOSITORY_HELP)
    host: str = option(
        kw_only=False,
        default=LOOPBACK,
        help="The address of the gRPC, HTTP and health ports; the default is reached from this machine only.",
    )
    http_port: int = option(kw_only=False, default=8000, minimum=0, maximum=65535, help=_PORT_HELP)
    grpc_port: int = option(kw_only=False, default=8001, minimum=0, maximum=65535, help=_PORT_HELP)
    metrics_port: int = option(kw_only=False, default=8002, minimum=0, maximum=65535, help=_PORT_HELP)
    http_host: str | None = option(
        default=None,
        metavar="HOST",
        help="The address of the HTTP port, which Triton cannot encrypt; as --host if not given, and this "
        "machine alone with --tls-cert.",
    )
    metrics_host: str = option(default=LOOPBACK, metavar="HOST", help="The address of the metrics port.")
    model_config_name: str = option(
        kw_only=False,
        default="auto",
        metavar="NAME",
        formerly="config_name",
        help="The models' configuration: auto (chosen by this machine's hardware), default (config.pbtxt), "
        "cpu, or another in their configs folders.",
    )
    on_ready: Callable[[RunningServer], None] = option(
        default=_ignore, on_command_line=False, help="Called once, when every model is ready."
    )
    progress: ProgressCallback = option(
        default=null_progress, on_command_line=False, help="Called with each line of the log."
    )

    def check(self) -> None:
        super().check()
        fixed = [port for port in (*self.ports.values(), self.wanted_health_port) if port]
        if len(set(fixed)) != len(fixed):
            raise InputError("the same port twice", ", ".join(map(str, fixed)), "give each its own")

    @property
    def ports(self) -> dict[str, int]:
        """Triton's own ports."""
        return {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}

    @property
    def wanted_health_port(self) -> int:
        """The health port, or 0 for a free one."""
        if self.health_port is not None:
            return self.health_port
        return HEALTH_PORT if self.http_port else 0

    @property
    def hosts(self) -> dict[str, str]:
        """The address that each port listens on."""
        http = self.http_host or (LOOPBACK if self.tls_cert is not None else self.host)
        return {"http": http, "grpc": self.host, "metrics": self.metrics_host, "health": self.host}

    def address(self, service: str, port: int) -> str:
        """`host:port` under which this machine reaches a port of the server."""
        listens = self.hosts[service]
        host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(listens, listens)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
