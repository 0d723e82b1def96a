"""Pages in headless Chromium: at a phone's, a tablet's and a desk's width, light and dark, and on paper."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (390, 768, 1280)
PAPER = 695
"""The printed width of A4 between margins of 13 mm, in CSS pixels."""

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


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


def find_browser() -> str:
    """Chromium's command: `CHROMIUM` in the environment, else what is installed; empty without one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), "")


@contextmanager
def open_browser() -> Iterator[Any]:
    """Playwright's browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    command = find_browser()
    if not command:
        pytest.skip("no Chromium: install it (Debian: apt-get install chromium) or name it in CHROMIUM")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=command, args=list(_FLAGS))
        yield browser
        browser.close()


class OpenPage:
    """A page that was opened at one width, and what the browser complained about.

    Args:
        browser: see `open_browser`.
        file: the HTML file.
        width: in CSS pixels.
        scheme: `light` or `dark`.
        media: `screen` or `print`.

    Attributes:
        complaints: errors of scripts, refusals of the content security policy, requests beyond the file.
    """

    def __init__(self, browser: Any, file: Path, width: int, scheme: str, media: str = "screen") -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("request", self._on_request)
        self.page.emulate_media(media=media, color_scheme=scheme)
        self._address = file.resolve().as_uri()
        self.page.goto(self._address)

    def _on_request(self, request: Any) -> None:
        if request.url != self._address:
            self.complaints.append(f"request: {request.url}")

    def evaluate(self, script: str) -> Any:
        return self.page.evaluate(script)

    def screenshot(self, file: Path) -> None:
        self.page.screenshot(path=str(file), full_page=True)

    def close(self) -> None:
        self.page.context.close()


def require_complete(browser: Any, name: str, file: Path, folder: Path) -> None:
    """Asserts that nothing of a page is cut, loaded from elsewhere or refused, in every view of it.

    Args:
        folder: for the screenshots; `SCREENSHOTS` in the environment overrules it.
    """
    shots = Path(os.environ.get("SCREENSHOTS") or folder / "screenshots")
    shots.mkdir(parents=True, exist_ok=True)
    views = [(width, scheme, "screen") for width in WIDTHS for scheme in ("light", "dark")]
    for width, scheme, media in (*views, (PAPER, "dark", "print")):
        page = OpenPage(browser, file, width, scheme, media)
        where = f"{name} at {width}, {scheme}, {media}"
        assert page.complaints == [], where
        assert page.evaluate(OVERFLOW) <= 0, where
        assert page.evaluate(CUT) == [], where
        assert page.evaluate(BEYOND_BOX) == [], where
        if media == "screen":
            assert page.evaluate(CUELESS) == 0, where
        page.screenshot(shots / f"{name}-{width}-{scheme}-{media}.png")
        page.close()
