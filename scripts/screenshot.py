"""A picture of a parity report for the README: `make screenshot`, after `make quickstart`.

Needs Chromium (Debian: `apt-get install chromium`) or its command in CHROMIUM.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

WIDTH, HEIGHT = 1160, 1180


def main() -> int:
    """Draws the top of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="report.html")
    parser.add_argument("picture", type=Path, help="the PNG file to write")
    options = parser.parse_args()
    command = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not options.report.is_file() or not command:
        missing = "Chromium (CHROMIUM)" if options.report.is_file() else options.report
        print(f"error: not found ({missing}): run 'make quickstart', and install Chromium", file=sys.stderr)
        return 2
    from playwright.sync_api import sync_playwright

    with sync_playwright() as api:
        browser = api.chromium.launch(executable_path=command, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(options.report.resolve().as_uri())
        page.screenshot(path=str(options.picture))
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
