"""The report's page in Chromium: nothing is cut or loaded, at every width, light and dark, and on paper."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bertmp import parity
from bertmp.export.parity.report_page import render
from tests.browser import PAPER, WIDTHS, OpenPage, open_browser
from tests.export.parity.test_report import report_of
from tests.export.parity_bundles import Served, damage

pytestmark = pytest.mark.slow

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"

# Words of a drawing beyond its edge, and tables that scroll without the cue that says so.
CUT = """
[...document.querySelectorAll('svg text')].filter(text => {
  const box = text.getBoundingClientRect(), edge = text.closest('svg').getBoundingClientRect();
  return box.width && (box.left < edge.left - 1 || box.right > edge.right + 1 ||
                       box.top < edge.top - 1 || box.bottom > edge.bottom + 1);
}).map(text => text.textContent)
"""
CUELESS = """
[...document.querySelectorAll('.scroll')].filter(part => part.scrollWidth > part.clientWidth + 1)
  .filter(part => getComputedStyle(part, '::before').content === 'none' &&
                  getComputedStyle(part).backgroundImage === 'none' &&
                  getComputedStyle(part).boxShadow === 'none').length
"""
BEYOND_BOX = """
[...document.querySelectorAll('.chain li, .tile, .node')].filter(box => box.scrollWidth > box.clientWidth + 1)
  .map(box => box.textContent.trim())
"""


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
    shots = Path(os.environ.get("SCREENSHOTS") or tmp_path / "screenshots")
    views = [(width, scheme, "screen") for width in WIDTHS for scheme in ("light", "dark")]
    for name, file in pages.items():
        for width, scheme, media in (*views, (PAPER, "dark", "print")):
            page = OpenPage(browser, file, width, scheme, media)
            where = f"{name} at {width}, {scheme}, {media}"
            assert page.complaints == [], where
            assert page.evaluate(OVERFLOW) <= 0, where
            assert page.evaluate(CUT) == [], where
            assert page.evaluate(BEYOND_BOX) == [], where
            if media == "screen":
                assert page.evaluate(CUELESS) == 0, where
            shots.mkdir(parents=True, exist_ok=True)
            page.screenshot(shots / f"{name}-{width}-{scheme}-{media}.png")
            page.close()


def test_paper_is_white_in_the_dark(browser: Any, pages: dict[str, Path]) -> None:
    page = OpenPage(browser, pages["passed"], PAPER, "dark", "print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") in (
        "rgb(255, 255, 255)",
        "rgba(0, 0, 0, 0)",
    )
    page.close()
