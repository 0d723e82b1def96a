"""Writes the page of TensorRT's names: `python -m tests.export.engine.trt_page FILE`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.export.engine.trt_bindings import names_of, names_used, unpack_bindings
from tests.export.engine.trt_stubs import names_of_stubs, stubs_of_10

_HEAD = """# TensorRT's names

The names of TensorRT's Python interface that the engine code uses, and which bindings have them: those of
TensorRT 11.4 and TensorRT-RTX 1.7.1 as they are imported, those of TensorRT 10.13 by the stubs of
`tensorrt-stubs`. A test keeps this page in step with the code and with the bindings. Compute capabilities are
set with TensorRT-RTX alone.
"""


def has(bindings: dict[str, Any], name: str) -> bool:
    """Whether bindings have a `Class` or `Class.attribute`."""
    first, _, rest = name.partition(".")
    known = bindings["classes"].get(first)
    return first in bindings["names"] and (not rest or known is None or rest in known)


def page(stubs_10: Path, unpacked_11: tuple[Path, Path]) -> str:
    """The page: which name of those that the code uses each of the bindings has."""
    columns = {
        "TensorRT 10.13": names_of_stubs(stubs_10),
        "TensorRT 11.4": names_of("tensorrt", *unpacked_11),
        "TensorRT-RTX 1.7.1": names_of("tensorrt_rtx"),
    }
    rows = []
    for name in sorted(names_used()):
        marks = ("yes" if has(bindings, name) else "no" for bindings in columns.values())
        rows.append(f"| `{name}` | {' | '.join(marks)} |")
    return "\n".join(
        [_HEAD, f"| Name | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *rows, ""]
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Path(sys.argv[1]).write_text(page(stubs_of_10(folder), unpack_bindings(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
