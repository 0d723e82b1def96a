"""HTML pages without scripts or fonts from elsewhere, and how numbers and values are written on them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render_page(template: str, **values: Any) -> str:
    """Renders one of this package's templates.

    Args:
        template: its file name, such as `parity.html.j2`.
        values: what the template shows; markup must be `markupsafe.Markup`, all else is escaped.

    Returns:
        The page as HTML.
    """
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        scientific=scientific,
        megabytes=megabytes,
        words=words,
        label=label,
        decimal=decimal,
        decibels=decibels,
    )
    return environment.get_template(template).render(**values)


def megabytes(size: int) -> str:
    """A size in bytes as text."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def label(key: str) -> str:
    """A JSON key as words."""
    return key.replace("_", " ")


def words(value: Any) -> str:
    """A plain JSON value as a reader would write it."""
    if value is None:
        return "–"  # noqa: RUF001
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return scientific(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{label(str(key))} {words(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(words(item) for item in value) or "none"
    return str(value)


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def scientific(value: float) -> str:
    """`0.00267` → `2.67 × 10⁻³`; numbers near one stay as they are."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "not finite"
    if 0.01 <= abs(value) < 1000:
        return f"{value:.3g}"
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(digits):g} × {power(int(exponent))}"  # noqa: RUF001  (a multiplication sign is meant)


def decimal(value: float, sign: str = "") -> str:
    """Four decimals, for shares and scores; with `sign="+"`, the sign always."""
    return f"{value:{sign}.4f}" if math.isfinite(value) else "not finite"


def decibels(value: float) -> str:
    """A signal-to-noise ratio in dB."""
    return f"{value:.0f}" if math.isfinite(value) else "∞" if value > 0 else "−∞"  # noqa: RUF001


def power(exponent: int) -> str:
    """`10⁻³` for -3."""
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def shorten(words: str, most: int) -> str:
    """At most `most` characters, the end given up."""
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"
