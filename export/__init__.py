"""From a checkpoint to graphs, engines and the proof that they still answer like the checkpoint.

`export`, `convert`, `explain`, `build_engine` and `parity` are the commands of the same names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertmp.export.accuracy.run import parity as parity
    from bertmp.export.engine.build import build_engine as build_engine
    from bertmp.export.exporter import export as export
    from bertmp.export.precision.check.run import explain as explain
    from bertmp.export.precision.convert import convert as convert

_HOMES = {
    "export": "bertmp.export.exporter",
    "convert": "bertmp.export.precision.convert",
    "explain": "bertmp.export.precision.check.run",
    "build_engine": "bertmp.export.engine.build",
    "parity": "bertmp.export.accuracy.run",
}

__all__ = ["build_engine", "convert", "explain", "export", "parity"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bertmp.export' has no attribute {name!r}")
