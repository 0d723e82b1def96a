"""Markdown and its YAML front matter, safe for any text: names and messages are data, never markup."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_MARKUP = re.compile(r"([\\`*_{}\[\]<>~$])")
_BAR = "\\|"
LONGEST = 80
"""Characters of a text that are shown."""


def front_matter(values: Mapping[str, Any]) -> str:
    """The YAML block at the head of a Markdown file.

    Args:
        values: plain values; what is empty, None and numbers that are not finite are left out.
    """
    return "\n".join(["---", *_yaml(_without_empty(values)), "---"])


def _without_empty(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {name: _without_empty(one) for name, one in value.items()}
        return {name: one for name, one in kept.items() if one not in (None, "", [], {})}
    if isinstance(value, (list, tuple)):
        return [one for one in map(_without_empty, value) if one not in (None, "", [], {})]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _yaml(value: Any) -> Iterator[str]:
    """A value's lines, in YAML's block style."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            if isinstance(one, (Mapping, list)):
                yield f"{name}:"
                yield from (f"  {line}" for line in _yaml(one))
            else:
                yield f"{name}: {_scalar(one)}"
    elif isinstance(value, list):
        for one in value:
            first, *rest = _yaml(one)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        digits, mark, power = repr(value).partition("e")
        # Without a point, YAML 1.1 reads a number with an exponent as text.
        return digits + (".0" if mark and "." not in digits else "") + mark + power
    return str(value) if isinstance(value, int) else _quoted(str(value))


def _quoted(text: str) -> str:
    """A text in double quotes, with escapes for what YAML does not print or would fold."""
    shown = (
        f"\\{one}" if one in '"\\' else one if one.isprintable() and one != "\ufeff" else f"\\U{ord(one):08x}"
        for one in _encodable(text)
    )
    return f'"{"".join(shown)}"'


def plain(text: str) -> str:
    """A text in one line, without a meaning in Markdown or HTML."""
    return _MARKUP.sub(r"\\\1", _printable(text).replace("&", "&amp;"))


def code(text: str) -> str:
    """A text as code, in one line and shortened to `LONGEST` characters."""
    shown = _printable(text)
    shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"
    runs = [len(run) for run in re.findall("`+", shown)]
    fence = "`" * (max(runs, default=0) + 1)
    # Without the spaces a backtick at an end would belong to the fence; Markdown takes one off each end.
    padding = " " if not shown.strip(" ") or shown[0] in "` " or shown[-1] in "` " else ""
    return f"{fence}{padding}{shown}{padding}{fence}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table.

    Args:
        columns: the heads.
        rows: cells that are Markdown already, without line breaks; `|` is escaped here, in code as well.
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cell.replace('|', _BAR) for cell in line)} |" for line in lines]


def _printable(text: str) -> str:
    """A text in one line: what does not print is shown as its code."""
    shown = (one if one.isprintable() else f"U+{ord(one):04X}" for one in " ".join(_encodable(text).split()))
    return "".join(shown)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
