"""The options of `compare`."""

from __future__ import annotations

from pathlib import Path

from bertmp.core.options import Options, argument


class CompareOptions(Options):
    """Which two parity reports are compared."""

    before: Path = argument(
        kw_only=False,
        metavar="REPORT",
        help="The earlier report: report.json, or a folder or bundle that holds one.",
    )
    after: Path = argument(kw_only=False, metavar="REPORT", help="The later report, likewise.")
