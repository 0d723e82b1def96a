"""The report of a parity run as files: an HTML page, the same as JSON, and JUnit's XML."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from typing import Any

from bertmp.core.hardware import machine
from bertmp.core.io import write_text
from bertmp.export.bundle import tool_versions
from bertmp.export.parity.certificate import CERTIFICATE
from bertmp.export.parity.junit import junit_xml
from bertmp.export.parity.model_card import MODEL_CARD
from bertmp.export.parity.report_page import render
from bertmp.export.parity.result import ParityReport

FILES = ("report.html", "report.json", "junit.xml", MODEL_CARD, CERTIFICATE)


def write_report(result: ParityReport, certificate: Mapping[str, Any], card: str) -> None:
    """Writes the files into the result's folder, each atomically, and the certificate into the bundle, too.

    All are made before the first is written, so that an error leaves no mixture of old and new. Other
    files in the folder stay.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    contents = {
        "report.json": _json(result.to_json()),
        MODEL_CARD: card,
        CERTIFICATE: _json(certificate),
        "junit.xml": junit_xml(result),
        "report.html": render(result),
    }
    for name, content in contents.items():
        write_text(result.folder / name, content)
    write_text(result.bundle / CERTIFICATE, contents[CERTIFICATE])


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


_TOOLS = (
    *("bertmp", "torch", "onnx", "onnxruntime", "onnxruntime-gpu"),
    *("tensorrt", "tensorrt-rtx", "tokenizers"),
)


def environment() -> dict[str, str]:
    """The machine and the versions that did the work, in words."""
    system = platform.platform(terse=True)
    return {"machine": str(machine()), "system": system, **tool_versions(_TOOLS)}
