"""Where downloads and the Triton environment live."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home() -> Path:
    """`BERTMP_HOME`, or `bertmp` in the platform's user cache folder. It is not created here."""
    if chosen := os.environ.get("BERTMP_HOME"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "bertmp"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bertmp"
