"""The reference page in docs/ follows from the options' declarations."""

from __future__ import annotations

from pathlib import Path

from bertmp.cli.app import COMMANDS
from bertmp.cli.reference import reference_page

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "options.md"


def test_committed_page_equals_the_generated_one() -> None:
    todo = "run 'python -m bertmp.cli.reference docs/reference/options.md'"
    assert PAGE.read_text(encoding="utf-8") == reference_page(), todo


def test_page_has_every_command_and_option_with_range_and_former_name() -> None:
    page = reference_page()
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        f"## bertmp {name}" for name, _, _ in COMMANDS
    ]
    row = "| `--gradient-accumulation-steps N` | `1` | "
    (line,) = (line for line in page.splitlines() if line.startswith(row))
    assert line.endswith("(at least 1). Formerly `--accumulate`. |")
    assert "| `--precision fp16\\|bf16` | `fp16` |" in page
