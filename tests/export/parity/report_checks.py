"""What holds of every report, whatever the task and the verdict: its page's words, its JSON's fields."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMA = Path(__file__).resolve().parents[3] / "docs" / "reference" / "report.schema.json"

_RAW = re.compile(
    r"\b(None|nan|NaN|True|False|inf|null|ndarray|PosixPath)\b"  # values
    r"|\{'|'\}|\{\}|\[\]|\(\)|<[a-z]\w* object"  # dictionaries, lists, objects
)
"""Values as Python writes them, and never a reader."""


class _Words(HTMLParser):
    """Collects the words that are seen, and those of attributes that are read out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag == "style"
        self.found += [value or "" for name, value in attrs if name in ("title", "aria-label", "style")]

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.found.append(data)


def raw_values(page: str) -> list[str]:
    """The passages of a page that hold a value as Python writes it."""
    words = _Words()
    words.feed(page)
    # A gate's sentence may speak of numbers that are NaN; nothing else does.
    allowed = "numbers that are NaN or infinite"
    return [part.strip() for part in words.found if _RAW.search(part.replace(allowed, ""))]


def schema() -> dict[str, Any]:
    """The published schema of `report.json`."""
    found: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return found


def complaints(report: Any, against: dict[str, Any] | None = None) -> list[str]:
    """Where a report's JSON leaves the schema; a new field belongs into docs/reference/report.schema.json."""
    plain = json.loads(json.dumps(report, allow_nan=False))
    errors = Draft202012Validator(against or schema()).iter_errors(plain)
    return [
        f"report.json: {'/'.join(map(str, error.absolute_path)) or 'the report'}: {error.message[:300]}: "
        "describe it in docs/reference/report.schema.json"
        for error in errors
    ]
