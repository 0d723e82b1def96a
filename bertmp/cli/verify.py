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
    """Check a bundle's certificate and, with --trust, its signature, offline; exit 1 if anything changed."""
    result = bertmp.verify(options)
    return CommandResult(result.to_json(), "\n".join(_lines(result)), 0 if result.verified else 1)


def _lines(result: Verification) -> Iterator[str]:
    from bertmp.export.parity.verify import VERDICT

    if result.signature in ("of another key", "damaged"):  # then nothing else is worth a line
        yield f"not verified: {result.changes[0].sentence()}"
        return
    matching = f"{len(result.matching)} files are those of the certificate"
    made = f" of {result.created}" if result.created else ""
    if result.verified:
        yield f"verified: {matching}{made}, whose verdict is {result.verdict}"
    else:
        yield f"not verified: {matching}{made}"
    for change in result.changes:
        yield change.sentence() if change.name == VERDICT else f"changed: {change.sentence()}"
    for one in result.not_compared:
        yield one.sentence()
    for stage in result.not_checked:
        yield f"parity had not checked {stage}"
    if result.signed:
        yield f"signed with the key {result.signed_by}"
    elif result.signature == "not checked":
        yield "the bundle is signed, and its signature was not checked: --trust KEY checks it"
    elif result.verdict:
        yield "the certificate is unsigned: whoever can write the bundle can write it, too"
