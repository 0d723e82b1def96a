"""From a bundle to a served model: the repository, the Triton server, the client.

`deploy`, `rollback`, `models`, `serve`, `infer` and `bench` are the commands of the same names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertmp.serve.client import infer as infer
    from bertmp.serve.load import bench as bench
    from bertmp.serve.promotion import deploy as deploy
    from bertmp.serve.promotion import models as models
    from bertmp.serve.promotion import rollback as rollback
    from bertmp.serve.triton import serve as serve

_HOMES = {
    "deploy": "bertmp.serve.promotion",
    "rollback": "bertmp.serve.promotion",
    "models": "bertmp.serve.promotion",
    "serve": "bertmp.serve.triton",
    "infer": "bertmp.serve.client",
    "bench": "bertmp.serve.load",
}

__all__ = ["bench", "deploy", "infer", "models", "rollback", "serve"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bertmp.serve' has no attribute {name!r}")
