"""The tables that commands print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def new_table(
    rows: Iterable[Sequence[Any]], columns: Sequence[str], numbers: Sequence[str] = (), title: str = ""
) -> Table:
    """A table with columns of text, then right-aligned columns of numbers; without a head if none is named.

    Args:
        rows: of cells, which are shown as `str` gives them; Rich's markup in them applies.
    """
    from rich import box
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
        show_header=any((*columns, *numbers)),
    )  # fmt: skip
    for name in columns:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    return table
