"""BERT from mixed-precision training to a served model whose accuracy is verified at every step.

Every command is a function here: `bertmp.train`, `bertmp.convert`, `bertmp.build_engine`, `bertmp.parity`,
`bertmp.deploy` and so on; `bertmp export` is `bertmp.export_checkpoint` and `bertmp serve` is
`bertmp.serve_repository`, because `bertmp.export` and `bertmp.serve` are packages. The functions are loaded
when first used, so that importing `bertmp` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertmp.environment.doctor import doctor as doctor
    from bertmp.environment.downloads import download as download
    from bertmp.environment.triton_install import setup as setup
    from bertmp.export.engine.bench import bench_engine as bench_engine
    from bertmp.export.engine.build import build_engine as build_engine
    from bertmp.export.engine.onnxruntime_session import build_session as build_session
    from bertmp.export.lint.explain import explain as explain
    from bertmp.export.onnx_export import export_checkpoint as export_checkpoint
    from bertmp.export.parity.compare import compare as compare
    from bertmp.export.parity.parity import parity as parity
    from bertmp.export.parity.replay import replay as replay
    from bertmp.export.parity.verify import verify as verify
    from bertmp.export.precision.convert import convert as convert
    from bertmp.export.prediction.predict import predict as predict
    from bertmp.pretraining.prepare import prepare as prepare
    from bertmp.serve.deploy import deploy as deploy
    from bertmp.serve.deploy import models as models
    from bertmp.serve.foreground import serve_repository as serve_repository
    from bertmp.serve.infer import infer as infer
    from bertmp.serve.load_test.bench import bench as bench
    from bertmp.serve.prune import prune as prune
    from bertmp.serve.rollback import rollback as rollback
    from bertmp.training.train import train as train

__version__ = "0.1.0"

_MODULES = {
    "bench": "bertmp.serve.load_test.bench",
    "bench_engine": "bertmp.export.engine.bench",
    "build_engine": "bertmp.export.engine.build",
    "build_session": "bertmp.export.engine.onnxruntime_session",
    "compare": "bertmp.export.parity.compare",
    "convert": "bertmp.export.precision.convert",
    "deploy": "bertmp.serve.deploy",
    "doctor": "bertmp.environment.doctor",
    "download": "bertmp.environment.downloads",
    "explain": "bertmp.export.lint.explain",
    "export_checkpoint": "bertmp.export.onnx_export",
    "infer": "bertmp.serve.infer",
    "models": "bertmp.serve.deploy",
    "parity": "bertmp.export.parity.parity",
    "predict": "bertmp.export.prediction.predict",
    "prepare": "bertmp.pretraining.prepare",
    "prune": "bertmp.serve.prune",
    "rollback": "bertmp.serve.rollback",
    "serve_repository": "bertmp.serve.foreground",
    "setup": "bertmp.environment.triton_install",
    "train": "bertmp.training.train",
    "replay": "bertmp.export.parity.replay",
    "verify": "bertmp.export.parity.verify",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'bertmp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
