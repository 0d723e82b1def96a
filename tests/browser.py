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
