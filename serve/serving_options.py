"""The options of the commands that deploy, serve and ask a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bertmp.core.errors import InputError
from bertmp.core.options import Options, argument, option
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.data.data_options import TextColumnOptions
from bertmp.data.readers import read_examples

REPOSITORY = Path("model_repository")
_REPOSITORY_HELP = "The Triton model repository."
_SERVER_HELP = "A running Triton that serves the repository: its HTTP or gRPC address."
_NAME_HELP = "The model's name."
_URL_HELP = "The server's address; 127.0.0.1:8001 for grpc and 127.0.0.1:8000 for http if not given."
_PORT_HELP = "0 takes a free port."

Protocol = Literal["grpc", "http"]


class DeployOptions(Options):
    """Which bundle becomes a new version of which model."""

    bundle: Path = argument(kw_only=False, metavar="BUNDLE", help="The bundle's folder.")
    name: str = option(
        kw_only=False, metavar="NAME", help="The model's name; its encoder is called NAME_encoder."
    )
    repository: Path = option(kw_only=False, default=REPOSITORY, metavar="DIR", help=_REPOSITORY_HELP)
    server: str | None = option(kw_only=False, default=None, metavar="URL", help=_SERVER_HELP)
    triton_release: str | None = option(
        kw_only=False,
        default=None,
        metavar="25.10",
        formerly="for_triton",
        help="The Triton release that will serve it; an engine that it cannot load is refused.",
    )
    allow_incomplete: bool = option(
        default=False, help="Deploy it although parity left something out that counts; it is recorded."
    )
    allow_unverified: bool = option(
        default=False, help="Deploy it although parity was never run on it; it is recorded."
    )
    keep: int | None = option(
        default=None,
        minimum=1,
        metavar="N",
        help="Once it answers, remove all but the newest N versions, itself included; all stay if not given.",
    )
    trust: Path | None = option(
        default=None,
        metavar="KEY",
        help="Deploy it only as signed with this public key's private half (PEM); it is recorded.",
    )


class RollbackOptions(Options):
    """Which version of which model answers again."""

    name: str = argument(kw_only=False, metavar="NAME", help=_NAME_HELP)
    repository: Path = option(kw_only=False, default=REPOSITORY, metavar="DIR", help=_REPOSITORY_HELP)
    server: str | None = option(kw_only=False, default=None, metavar="URL", help=_SERVER_HELP)
    to: int | None = option(
        default=None,
        minimum=1,
        metavar="VERSION",
        help="Any kept version, a later one too; the one before the live one if not given.",
    )


class PruneOptions(Options):
    """Which versions of which model are removed."""

    name: str = argument(kw_only=False, metavar="NAME", help=_NAME_HELP)
    repository: Path = option(kw_only=False, default=REPOSITORY, metavar="DIR", help=_REPOSITORY_HELP)
    keep: int = option(
        default=2, minimum=1, metavar="N", help="How many versions stay: the live one and the newest others."
    )


class ModelsOptions(Options):
    """Which repository is listed."""

    repository: Path = option(kw_only=False, default=REPOSITORY, metavar="DIR", help=_REPOSITORY_HELP)


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
        return {"ready": True, **asdict(self)}


def _ignore(server: RunningServer) -> None:
    """The default of `on_ready`."""


class ServeOptions(Options):
    """How a Triton server is run."""

    repository: Path = option(kw_only=False, default=REPOSITORY, metavar="DIR", help=_REPOSITORY_HELP)
    host: str = option(
        kw_only=False,
        default="127.0.0.1",
        help="The address to listen on; the default can be reached from this machine only.",
    )
    http_port: int = option(kw_only=False, default=8000, minimum=0, maximum=65535, help=_PORT_HELP)
    grpc_port: int = option(kw_only=False, default=8001, minimum=0, maximum=65535, help=_PORT_HELP)
    metrics_port: int = option(kw_only=False, default=8002, minimum=0, maximum=65535, help=_PORT_HELP)
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
        default=null_progress, on_command_line=False, help="Called with each line of Triton's log."
    )

    def check(self) -> None:
        fixed = [port for port in self.ports.values() if port]
        if len(set(fixed)) != len(fixed):
            raise InputError("the same port twice", ", ".join(map(str, fixed)), "give each its own")

    @property
    def ports(self) -> dict[str, int]:
        return {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}

    def address(self, port: int) -> str:
        """`host:port` under which this machine reaches a server that listens on `host`."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_texts(data: Path, columns: TextColumnOptions, progress: ProgressCallback) -> Sequence[str]:
    """The texts of a data file.

    Args:
        progress: told how the file was read, where that is not obvious.

    Raises:
        InputError: the file cannot be read.
    """
    return read_examples(data, columns.columns(), progress=progress).texts


class InferOptions(TextColumnOptions):
    """Which model is asked for which texts."""

    name: str = argument(kw_only=False, metavar="NAME", help=_NAME_HELP)
    texts: Sequence[str] = argument(kw_only=False, default=(), metavar="TEXT", help="The texts.")
    data: Path | None = option(
        kw_only=False,
        default=None,
        metavar="FILE",
        formerly="file",
        help="A data file; its texts follow those on the command line.",
    )
    protocol: Protocol = option(kw_only=False, default="grpc", help="The inference protocol.")
    url: str | None = option(kw_only=False, default=None, metavar="URL", help=_URL_HELP)
    progress: ProgressCallback = option(
        default=null_progress, on_command_line=False, help="Called with how the data file was read."
    )


class BenchOptions(TextColumnOptions):
    """The load that a served model is measured under."""

    name: str = argument(kw_only=False, default="", metavar="NAME", help=_NAME_HELP)
    data: str | Path | Sequence[str] = option(
        kw_only=False,
        default="",
        metavar="FILE",
        formerly="texts",
        help="A data file; its texts are asked in turn, one per request.",
    )
    concurrency: str | int | Sequence[int] = option(
        kw_only=False,
        default="1,4,16",
        metavar="N,N,...",
        help="Numbers of clients that ask at the same time, measured one after the other.",
    )
    seconds: float = option(kw_only=False, default=10.0, above=0, help="The measured time of each.")
    protocol: Protocol = option(kw_only=False, default="grpc", help="The inference protocol.")
    url: str | None = option(kw_only=False, default=None, metavar="URL", help=_URL_HELP)
    progress: ProgressCallback = option(
        default=null_progress, on_command_line=False, help="Called with each number of clients as it starts."
    )

    def check(self) -> None:
        super().check()
        if not self.name or not self.data:
            missing = "texts" if self.name else "a model's NAME"
            raise InputError(
                f"bench needs {missing}", "", "bertmp bench NAME --data FILE, or --engine BUNDLE"
            )
        if not self.clients or min(self.clients) < 1:
            raise InputError("no clients", "--concurrency", "use numbers of at least 1, such as 1,4,16")

    @property
    def texts(self) -> Sequence[str]:
        """The texts of `data`, which Python callers may give in place of a file.

        Raises:
            InputError: the file cannot be read.
        """
        given = self.data
        return read_texts(Path(given), self, self.progress) if isinstance(given, (str, Path)) else given

    @property
    def clients(self) -> tuple[int, ...]:
        """The numbers of clients.

        Raises:
            InputError: `concurrency` is not a list of numbers.
        """
        if isinstance(self.concurrency, int):
            return (self.concurrency,)
        if not isinstance(self.concurrency, str):
            return tuple(self.concurrency)
        try:
            return tuple(int(part) for part in self.concurrency.split(","))
        except ValueError as error:
            what = f"'{self.concurrency}' is not a list of numbers"
            raise InputError(what, "--concurrency", "write it like 1,4,16") from error
