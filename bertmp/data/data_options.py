"""The options of every command that reads a data file: which columns hold what."""

from __future__ import annotations

from bertmp.core.options import Options, option

DATA = "Data"


class TextColumnOptions(Options):
    """The columns of a data file without labels; formats without column names ignore them."""

    text_column: str = option(default="text", group=DATA, help="Name of the text's column.")
    text_pair_column: str = option(
        default="text_pair", group=DATA, help="Name of the second text's column, for pairs."
    )


class DataOptions(TextColumnOptions):
    """The columns of a data file; formats without column names ignore them."""

    label_column: str = option(default="label", group=DATA, help="Name of the label's column.")
