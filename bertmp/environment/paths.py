"""Where downloads and the Triton environment live."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`BERTMP_HOME`, or `bertmp` in the platform's user cache folder. It is not created here."""
    if chosen := os.environ.get("BERTMP_HOME"):
        return Path(chosen).expanduser()
    try:
        from platformdirs import user_cache_path
    except ImportError:  # on a machine that only trains
        return Path.home() / ".cache" / "bertmp"
    return user_cache_path("bertmp")
