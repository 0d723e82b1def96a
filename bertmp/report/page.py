"""HTML pages: self-contained, without scripts, fonts or styles from elsewhere; every text is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bertmp.report.charts import scientific


def render_page(template: str, **values: Any) -> str:
    """Renders one of this package's templates.

    Args:
        template: its file name, such as `parity.html.j2`.
        values: what the template shows; markup must be `markupsafe.Markup`, all else is escaped.

    Returns:
        The page as HTML.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(scientific=scientific, megabytes=megabytes, words=words, label=label)
    return environment.get_template(template).render(**values)


def megabytes(size: int) -> str:
    """A size in bytes as text."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def label(key: str) -> str:
    """A JSON key as words."""
    return key.replace("_", " ")


def words(value: Any) -> str:
    """A plain JSON value as a reader would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return scientific(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{label(key)} {words(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(words(item) for item in value) or "none"
    return str(value)
