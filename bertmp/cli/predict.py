"""The command `predict`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import bertmp
from bertmp.cli.command import CommandResult, progress_bar
from bertmp.export.prediction.predict_options import PredictOptions

if TYPE_CHECKING:
    from bertmp.export.prediction.predict import ComparisonResult, Prediction


def predict(options: PredictOptions) -> CommandResult:
    """Answer the texts of a file with a bundle's graph, without a server."""
    with progress_bar(log=False) as progress:
        result = bertmp.predict(replace(options, progress=progress))
    return CommandResult(result.to_json(), "\n".join(_lines(result)))


def _lines(result: Prediction) -> list[str]:
    lines = [
        f"{result.out}: {result.texts:,} answers of {result.bundle} ({result.task}, "
        f"{result.precision.upper()}, {result.provider}) in {result.seconds:.1f} s, "
        f"{result.texts_per_second:,.0f} texts/s"
    ]
    if result.truncated:
        lines.append(f"{result.truncated:,} of {result.texts:,} texts were too long and were truncated")
    if result.against is not None:
        lines.append(_comparison(result.against, result.texts))
    return [*lines, *result.notes]


def _comparison(found: ComparisonResult, texts: int) -> str:
    changed = "" if found.changed is None else f"{found.changed:,} of {texts:,} answers change; "
    return (
        f"against {found.bundle} ({found.precision.upper()}): {changed}"
        f"largest difference {found.largest_difference:.3g}, line {found.line}"
    )
