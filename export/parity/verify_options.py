"""The options of `verify`."""

from __future__ import annotations

from pathlib import Path

from bertmp.core.options import Options, argument, option


class VerifyOptions(Options):
    """Which bundle is checked, and where the files outside it lie."""

    bundle: Path = argument(kw_only=False, metavar="BUNDLE", help="The bundle's folder.")
    checkpoint: Path | None = option(
        default=None,
        metavar="DIR",
        help="The checkpoint; default: the folder that it was exported from, if it is there.",
    )
    data: Path | None = option(
        default=None,
        metavar="FILE",
        help="The data file; default: the file that parity read, if it is there.",
    )
    trust: Path | None = option(
        default=None,
        metavar="KEY",
        help="The public key (PEM) that the bundle must be signed with; without it, no signature is checked.",
    )
