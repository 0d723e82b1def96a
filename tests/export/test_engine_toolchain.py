"""Which builders are found, and what each of them refuses."""

from __future__ import annotations

import importlib
import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

from bertmp.errors import InputError, MissingComponent
from bertmp.export.engine.settings import Settings
from bertmp.export.engine.toolchain import Toolchain, find_toolchain, probe

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


@needs_rtx
def test_the_installed_builder_is_found_and_knows_its_targets() -> None:
    tools = find_toolchain("tensorrt-rtx")
    assert tools.name == "tensorrt-rtx"
    assert tools.version == tools.module.__version__
    assert {"7.5", "8.0", "8.6", "8.9", "12.0"} <= set(tools.targets)
    assert "9.0" not in tools.targets
    assert tools.built_for(Settings(compute_capability=["8.9"]), None) == ["8.9"]
    assert "8.9" in tools.built_for(Settings(), None)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_a_missing_builder_is_missing_with_its_reason() -> None:
    with pytest.raises(MissingComponent, match="tensorrt: not installed"):
        find_toolchain("tensorrt")


def test_an_unknown_builder_is_bad_input() -> None:
    with pytest.raises(InputError, match="unknown builder 'onnx'"):
        find_toolchain("onnx")


@needs_rtx
def test_a_builder_that_does_not_import_counts_as_missing() -> None:
    def broken(name: str) -> Any:
        return importlib.import_module("bertmp_no_such_library")

    assert "does not import (ModuleNotFoundError" in str(probe("tensorrt-rtx", load=broken))
    assert "without its libraries" in str(
        probe("tensorrt-rtx", load=lambda name: SimpleNamespace(__version__="1.0"))
    )


def test_what_a_builder_has_not_is_refused_with_a_reason() -> None:
    rtx, tensorrt = (Toolchain(name, "1", None) for name in ("tensorrt-rtx", "tensorrt"))
    rtx.refuse_unsupported({"timing_cache": None, "compute_capability": ["8.9"]})
    tensorrt.refuse_unsupported({"timing_cache": "a.cache", "compute_capability": []})
    with pytest.raises(InputError, match="timing caches are without effect"):
        rtx.refuse_unsupported({"timing_cache": "a.cache"})
    with pytest.raises(InputError, match="builds for the GPU that it runs on"):
        tensorrt.refuse_unsupported({"compute_capability": ["8.9"]})
