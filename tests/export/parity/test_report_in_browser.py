"""The report's page in Chromium: nothing is cut or loaded, at every width, light and dark, and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bertmp import parity
from bertmp.export.parity.report_page import render
from tests.browser import PAPER, OpenPage, open_browser, require_complete
from tests.export.parity.test_report import report_of
from tests.export.parity_bundles import Served, damage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as found:
        yield found


@pytest.fixture
def pages(bundle: Path, labelled: Path, tmp_path: Path) -> dict[str, Path]:
    served = [Served(bundle / "model.onnx")]
    passed = parity(bundle, labelled, report=tmp_path / "passed", extra_stages=served).folder
    damage(bundle, 0.5)
    failed = parity(bundle, labelled, report=tmp_path / "failed").folder
    (tmp_path / "hostile.html").write_text(render(report_of()), encoding="utf-8")
    return {
        "passed": passed / "report.html",
        "failed": failed / "report.html",
        "hostile": tmp_path / "hostile.html",
    }


def test_nothing_is_cut_loaded_or_refused(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    for name, file in pages.items():
        require_complete(browser, name, file, tmp_path)


def test_paper_is_white_in_the_dark(browser: Any, pages: dict[str, Path]) -> None:
    page = OpenPage(browser, pages["passed"], PAPER, "dark", "print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") in (
        "rgb(255, 255, 255)",
        "rgba(0, 0, 0, 0)",
    )
    page.close()
