"""`make test-gpu`: from a plain checkout, with torch, transformers, pytest and the like, and no network.

Without a GPU, prints one line that says so and exits with code 4.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.machine import gpu_missing


def main() -> int:
    if missing := gpu_missing():
        print(missing, file=sys.stderr)  # noqa: T201
        return 4
    import pytest

    os.environ["HF_HUB_OFFLINE"] = "1"
    return int(pytest.main(["-q", "--durations=10", str(Path(__file__).parent), *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
