"""The command `verify`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import bertmp
from bertmp.cli.command import CommandResult
from bertmp.export.parity.verify_options import VerifyOptions

if TYPE_CHECKING:
    from bertmp.export.parity.verify import Verification


def verify(options: VerifyOptions) -> CommandResult:
    """Check a bundle against parity's certificate, offline; exit 1 if anything has changed."""
    result = bertmp.verify(options)
    return CommandResult(result.to_json(), "\n".join(_lines(result)), 0 if result.verified else 1)


def _lines(result: Verification) -> Iterator[str]:
    matching = f"{len(result.matching)} files are those of the certificate"
    made = f" of {result.created}" if result.created else ""
    if result.verified:
        yield f"verified: {matching}{made}, whose verdict is {result.verdict}"
    else:
        yield f"changed: {len(result.changes)}; {matching}{made}"
    for change in result.changes:
        yield f"changed: {change.sentence()}"
    for one in result.not_compared:
        yield one.sentence()
    for stage in result.not_checked:
        yield f"parity had not checked {stage}"
    if result.verdict and not result.signed:
        yield "the certificate is unsigned: whoever can write the bundle can write it, too"
