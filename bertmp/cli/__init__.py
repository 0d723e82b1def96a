"""The command line: `bertmp`, `python -m bertmp`."""

from __future__ import annotations


def main() -> None:
    """The console script `bertmp`."""
    from bertmp.cli.command import note_interrupts

    with note_interrupts() as state:
        from bertmp.cli.app import app
        from bertmp.cli.command import run_app

        run_app(app, state)
