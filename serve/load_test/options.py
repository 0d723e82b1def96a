"""The options of `bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from bertmp.core.errors import InputError
from bertmp.core.options import argument, option
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.data.data_options import TextColumnOptions
from bertmp.data.readers import read_examples
from bertmp.serve.load_test.load import Load
from bertmp.serve.serving_options import NAME_HELP, URL_HELP, Protocol

CLIENTS = (1, 4, 16)

Generator = Literal["auto", "perf_analyzer", "python"]
N = TypeVar("N", int, float)


class BenchOptions(TextColumnOptions):
    """The load that a served model is measured under."""

    name: str = argument(kw_only=False, default="", metavar="NAME", help=NAME_HELP)
    data: str | Path | Sequence[str] | Sequence[tuple[str, str]] = option(
        kw_only=False,
        default="",
        metavar="FILE",
        formerly="texts",
        help="A data file; its texts, or pairs where the model takes them, are asked one per request.",
    )
    concurrency: str | int | Sequence[int] = option(
        kw_only=False,
        default="",
        metavar="N,N,...",
        help="Closed loop: numbers of clients that ask at the same time, measured one after the other; "
        "1,4,16 if neither this nor --rate is given.",
    )
    seconds: float = option(kw_only=False, default=10.0, above=0, help="The measured time of each.")
    protocol: Protocol = option(kw_only=False, default="grpc", help="The inference protocol.")
    url: str | None = option(kw_only=False, default=None, metavar="URL", help=URL_HELP)
    rate: str | float | Sequence[float] = option(
        default="",
        metavar="PER_SECOND",
        help="Open loop: requests per second, sent by the clock whether the server keeps up or not; several "
        "as N,N,... are measured one after the other.",
    )
    report: Path | None = option(
        default=None,
        metavar="DIR",
        help="Write report.html, a page with the latency curves, and report.json.",
    )
    generator: Generator = option(
        default="auto",
        help="What sends the requests; auto is perf_analyzer where 'bertmp setup triton' fetched it.",
    )
    progress: ProgressCallback = option(
        default=null_progress, on_command_line=False, help="Called with each load as it starts."
    )

    def check(self) -> None:
        super().check()
        if not self.name or not self.data:
            missing = "texts" if self.name else "a model's NAME"
            raise InputError(
                f"bench needs {missing}", "", "bertmp bench NAME --data FILE, or --engine BUNDLE"
            )
        _ = self.loads

    @property
    def loads(self) -> tuple[Load, ...]:
        """The loads, closed loops first.

        Raises:
            InputError: `concurrency` or `rate` is not a list of numbers above 0.
        """
        clients = _numbers(self.concurrency, int, "--concurrency", "numbers of at least 1, such as 1,4,16")
        rates = _numbers(self.rate, float, "--rate", "numbers above 0, such as 50,100")
        if not clients and not rates:
            clients = CLIENTS
        closed = (Load(self.seconds, clients=number) for number in clients)
        return (*closed, *(Load(self.seconds, rate=number) for number in rates))

    def rows(self, pairs: bool) -> Sequence[tuple[str, ...]]:
        """What is asked in turn: texts, or texts with their second texts.

        Args:
            pairs: whether the model takes pairs.

        Raises:
            InputError: the file cannot be read, or has no second texts although the model takes pairs.
        """
        given = self.data
        if not isinstance(given, (str, Path)):
            rows = [(row,) if isinstance(row, str) else tuple(row) for row in given]
        else:
            read = read_examples(Path(given), self.columns(), progress=self.progress)
            columns = (read.texts, read.pairs) if read.pairs else (read.texts,)
            rows = list(zip(*columns, strict=True))
        width = 2 if pairs else 1
        if any(len(row) < width for row in rows):
            where = str(given) if isinstance(given, (str, Path)) else ""
            todo = "give a file with the columns text and text_pair (--text-pair-column)"
            raise InputError(f"'{self.name}' takes pairs, and there are only single texts", where, todo)
        return [row[:width] for row in rows]


def _numbers(given: str | N | Sequence[N], kind: Callable[[str], N], flag: str, wanted: str) -> tuple[N, ...]:
    try:
        if isinstance(given, str):
            numbers = tuple(kind(part) for part in given.split(",")) if given else ()
        else:
            numbers = (given,) if isinstance(given, (int, float)) else tuple(given)
        if all(0 < number < float("inf") for number in numbers):
            return numbers
    except (TypeError, ValueError):
        pass
    raise InputError(f"'{given}' is not a list of {wanted.partition(',')[0]}", flag, f"use {wanted}")
