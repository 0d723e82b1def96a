"""The options of the commands that deploy, serve and ask a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from bertmp.core.errors import InputError
from bertmp.core.options import Options, argument, option
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.data.data_options import TextColumnOptions
from bertmp.serve.served_tasks import Aggregation, AnswerSettings, LongText, Pooling

REPOSITORY = Path("model_repository")
REPOSITORY_HELP = "The Triton model repository."
_SERVER_HELP = "A running Triton that serves the repository: its HTTP or gRPC address."
NAME_HELP = "The model's name."
URL_HELP = "The server's address; 127.0.0.1:8001 for grpc and 127.0.0.1:8000 for http if not given."
TOKEN_FILE_HELP = "The file with the key to load models; bertmp serve makes it. One per user if not given."

Protocol = Literal["grpc", "http"]
CpuPrecision = Literal["auto", "fp32"]
ANSWERS = "Answers"
CONNECTION = "Connection"
STANDARD_INPUT = "-"
REQUEST_TIMEOUT = 120.0
"""Seconds that a request may take."""


class DeployOptions(Options):
    """Which bundle becomes a new version of which model."""

    bundle: Path = argument(kw_only=False, metavar="BUNDLE", help="The bundle's folder.")
    name: str = option(
        kw_only=False, metavar="NAME", help="The model's name; its encoder is called NAME_encoder."
    )
    repository: Path = option(kw_only=False, default=REPOSITORY, metavar="DIR", help=REPOSITORY_HELP)
    server: str | None = option(kw_only=False, default=None, metavar="URL", help=_SERVER_HELP)
    triton_release: str | None = option(
        kw_only=False,
        default=None,
        metavar="25.10",
        formerly="for_triton",
        help="The Triton release that will serve it; an engine that it cannot load is refused.",
    )
    long_text: LongText = option(
        default="truncate",
        help="A text beyond the model's length is cut, refused, or read in overlapping windows.",
    )
    pooling: Pooling | None = option(
        default=None,
        group=ANSWERS,
        help="How a bare encoder's states become an embedding; default: mean.",
    )
    aggregation: Aggregation | None = option(
        default=None,
        group=ANSWERS,
        help="What gets a label of an entity: a token (simple, the default), or a word, with the label of "
        "its first token (first) or of its surest one (max).",
    )
    threshold: float | None = option(
        default=None,
        group=ANSWERS,
        minimum=0,
        maximum=1,
        help="The probability that a label must exceed, where a text may have several; default: 0.5.",
    )
    cpu_precision: CpuPrecision = option(
        default="auto",
        help="What a machine without a GPU serves: BF16 where it has that and parity's stage cpu-bf16 passed "
        "(auto), or FP32.",
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
    token_file: Path | None = option(default=None, metavar="FILE", help=TOKEN_FILE_HELP)
    trust: Path | None = option(
        default=None,
        metavar="KEY",
        help="Deploy it only as signed with this public key's private half (PEM); it is recorded.",
    )

    def answering(self, task: str) -> AnswerSettings:
        """How a model for this task answers.

        Raises:
            InputError: an option is for another task.
        """
        return AnswerSettings.chosen(task, self.long_text, self.pooling, self.aggregation, self.threshold)


class RollbackOptions(Options):
    """Which version of which model answers again."""

    name: str = argument(kw_only=False, metavar="NAME", help=NAME_HELP)
    repository: Path = option(kw_only=False, default=REPOSITORY, metavar="DIR", help=REPOSITORY_HELP)
    server: str | None = option(kw_only=False, default=None, metavar="URL", help=_SERVER_HELP)
    to: int | None = option(
        default=None,
        minimum=1,
        metavar="VERSION",
        help="Any kept version, a later one too; the one before the live one if not given.",
    )
    token_file: Path | None = option(default=None, metavar="FILE", help=TOKEN_FILE_HELP)


class PruneOptions(Options):
    """Which versions of which model are removed."""

    name: str = argument(kw_only=False, metavar="NAME", help=NAME_HELP)
    repository: Path = option(kw_only=False, default=REPOSITORY, metavar="DIR", help=REPOSITORY_HELP)
    keep: int = option(
        default=2, minimum=1, metavar="N", help="How many versions stay: the live one and the newest others."
    )


class ModelsOptions(Options):
    """Which repository is listed."""

    repository: Path = option(kw_only=False, default=REPOSITORY, metavar="DIR", help=REPOSITORY_HELP)


Texts = tuple[Sequence[str], Sequence[str] | None]
"""Texts, and the second text of each where they are pairs."""


class InferOptions(TextColumnOptions):
    """Which model is asked for which texts."""

    name: str = argument(kw_only=False, metavar="NAME", help=NAME_HELP)
    texts: Sequence[str] = argument(
        kw_only=False,
        default=(),
        metavar="TEXT",
        help="The texts; - alone reads standard input line by line.",
    )
    data: Path | None = option(
        kw_only=False,
        default=None,
        metavar="FILE",
        formerly="file",
        help="A data file; its texts follow those on the command line.",
    )
    text_pair: Sequence[str] = option(
        default=(),
        metavar="TEXT",
        help="The second text, for a model that takes pairs; once for each TEXT, in their order.",
    )
    protocol: Protocol | None = option(
        kw_only=False,
        default=None,
        help="The inference protocol; the one that the address says if not given.",
    )
    url: str | None = option(
        kw_only=False,
        default=None,
        metavar="URL",
        help="The server's address: grpc://HOST:PORT, grpcs://, http:// or https://, or without a scheme; "
        "127.0.0.1:8001 for grpc and 127.0.0.1:8000 for http if not given.",
    )
    scores: bool = option(default=False, group=ANSWERS, help="Show the probability of every label.")
    skip_refused: bool = option(
        default=False,
        group=ANSWERS,
        help="A text that the server refuses has its reason in the place of an answer, and the others go on.",
    )
    timeout: float = option(
        default=REQUEST_TIMEOUT,
        above=0,
        group=CONNECTION,
        metavar="SECONDS",
        help="What a request may take, with its retries.",
    )
    concurrency: int = option(
        default=4, minimum=1, maximum=64, group=CONNECTION, help="Requests under way at the same time."
    )
    tls_ca: Path | None = option(
        default=None,
        group=CONNECTION,
        metavar="FILE",
        help="The authority (PEM) that must have signed the server's certificate; "
        "default: those that the system trusts.",
    )
    tls_cert: Path | None = option(
        default=None,
        group=CONNECTION,
        metavar="FILE",
        help="The certificate (PEM) to show to a server that wants one.",
    )
    tls_key: Path | None = option(
        default=None, group=CONNECTION, metavar="FILE", help="The key of --tls-cert (PEM, unencrypted)."
    )
    progress: ProgressCallback = option(
        default=null_progress,
        on_command_line=False,
        help="Called with how the data file was read, and how many texts are answered.",
    )
    standard_input: BinaryIO | None = option(
        default=None, on_command_line=False, help="What the text - stands for; None for the text itself."
    )

    @property
    def reads_input(self) -> bool:
        """Whether the texts are the lines of standard input."""
        return self.standard_input is not None and tuple(self.texts) == (STANDARD_INPUT,)

    def check(self) -> None:
        super().check()
        if self.text_pair and len(self.text_pair) != len(self.texts):
            what = f"{len(self.texts)} texts and {len(self.text_pair)} second texts"
            raise InputError(what, "--text-pair", "give one for each")
        if self.standard_input is not None and STANDARD_INPUT in self.texts and not self.reads_input:
            raise InputError("- stands for all texts", "TEXT", "give it alone, or leave it out")
        if self.reads_input and self.text_pair:
            raise InputError(
                "--text-pair with standard input", "--text-pair", "write TEXT<TAB>TEXT_PAIR lines"
            )
