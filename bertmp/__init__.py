"""BERT from mixed-precision training to a served model whose accuracy is proven at every step.

The functions here have the names and meanings of the commands: `bertmp.train`, `bertmp.prepare`,
`bertmp.setup`, `bertmp.download`, `bertmp.doctor`; the later stages live in `bertmp.export` and
`bertmp.serve`. They are looked up when first used, so that importing `bertmp` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertmp.data.pretraining.prepare import prepare as prepare
    from bertmp.ready.assets import download as download
    from bertmp.ready.machine import doctor as doctor
    from bertmp.ready.runtime import setup as setup
    from bertmp.training.run import train as train

__version__ = "0.1.0"

_HOMES = {
    "train": "bertmp.training.run",
    "prepare": "bertmp.data.pretraining.prepare",
    "download": "bertmp.ready.assets",
    "setup": "bertmp.ready.runtime",
    "doctor": "bertmp.ready.machine",
}

__all__ = ["__version__", "doctor", "download", "prepare", "setup", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bertmp' has no attribute {name!r}")
