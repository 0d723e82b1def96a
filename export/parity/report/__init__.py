"""The report of a parity run: one HTML page that opens offline, the same as JSON, and JUnit's XML."""

from __future__ import annotations

import json
from pathlib import Path

from bertmp.core.io import write_text
from bertmp.export.parity.report.junit import junit_xml
from bertmp.export.parity.report.page import render
from bertmp.export.parity.result import ParityReport

FILES = ("report.html", "report.json", "junit.xml")


def write_report(result: ParityReport) -> None:
    """Writes the three files into the result's folder, each whole or not at all.

    All three are made before the first is written, so that what fails in the making leaves no mixture. The
    folder may hold other files; they stay.

    Errors: InputError where the disk is full or the folder cannot be written.
    """
    contents = {
        "report.json": json.dumps(result.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "junit.xml": junit_xml(result),
        "report.html": render(result),
    }
    for name, content in contents.items():
        write_text(Path(result.folder) / name, content)
