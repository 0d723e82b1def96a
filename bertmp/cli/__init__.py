"""The command line: `bertmp`, `python -m bertmp`."""

from __future__ import annotations


def main() -> None:
    """The console script `bertmp`."""
    from bertmp.cli.sigint import interrupts

    with interrupts() as state:
        from bertmp.cli.app import app
        from bertmp.cli.command import run_app

        run_app(app, state)
