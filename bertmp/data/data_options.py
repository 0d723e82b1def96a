"""The options of every command that reads a data file: which columns hold what."""

from __future__ import annotations

from pathlib import Path

from bertmp.core.errors import InputError
from bertmp.core.options import Options, argument, option
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.data.readers import Columns
from bertmp.data.streams import check_format

DATA = "Data"


class TextColumnOptions(Options):
    """The columns of a data file without labels; formats without column names ignore them."""

    text_column: str = option(default="text", group=DATA, help="Name of the text's column.")
    text_pair_column: str = option(
        default="text_pair", group=DATA, help="Name of the second text's column, for pairs."
    )
    encoding: str | None = option(
        default=None,
        group=DATA,
        metavar="NAME",
        help="The files' encoding, such as cp1252; default: UTF-8, or the one that a byte order mark names.",
    )
    delimiter: str | None = option(
        default=None,
        group=DATA,
        metavar="CHARACTER",
        help="What separates the fields of .csv and .tsv files; default: found in the header.",
    )

    def check(self) -> None:
        check_format(self.encoding, self.delimiter)

    def columns(self, label: str = "label", separator: str = "") -> Columns:
        """How a data file is read by these options.

        Args:
            label: the label's column.
            separator: separates the labels of a multi-label example; empty for single-label data.
        """
        pair, delimiter = self.text_pair_column, self.delimiter
        return Columns(self.text_column, pair, label, separator, self.encoding, delimiter)


class DataOptions(TextColumnOptions):
    """The columns of a data file; formats without column names ignore them."""

    label_column: str = option(default="label", group=DATA, help="Name of the label's column.")
    label_separator: str = option(
        default=",", group=DATA, help="What separates an example's labels where it may have several."
    )

    def check(self) -> None:
        TextColumnOptions.check(self)
        if not self.label_separator:
            raise InputError("--label-separator is empty", "--label-separator", "give one character or more")


class PrepareOptions(TextColumnOptions):
    """What `prepare` reads and writes."""

    # fmt: off
    data: Path = argument(
        kw_only=False, metavar="CORPUS",
        help=".txt (a sentence per line, blank lines between documents), .tsv, .csv, .jsonl, .parquet.")
    model: Path = option(
        kw_only=False, metavar="CHECKPOINT",
        help="The checkpoint whose tokenizer is used, or a downloaded model's name.")
    out: Path = option(kw_only=False, metavar="STORE", help="The folder of the prepared corpus.")
    num_workers: int | None = option(
        default=None, minimum=1, formerly="workers",
        help="Processes that tokenize; default: one per processor.")
    # fmt: on
    progress: ProgressCallback = option(
        default=null_progress, on_command_line=False, help="Called with how much of the corpus is done."
    )
