"""Which builders are found, and what each of them refuses."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bertmp.core.errors import InputError, MissingComponent
from bertmp.core.hardware import Gpu
from bertmp.export.engine.builders import Toolchain, find_toolchain, probe
from bertmp.export.engine.engine_options import EngineOptions
from bertmp.export.engine.preflight import timing_cache_path

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
    assert tools.built_for(EngineOptions(GRAPH, compute_capability=["8.9"]), None) == ["8.9"]
    assert "8.9" in tools.built_for(EngineOptions(GRAPH), None)


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


GRAPH = Path("g.onnx")
L4 = Gpu("NVIDIA L4", "8.9", 24 << 30, "12.8", "570.86.10")


def test_timings_are_kept_a_builder_version_and_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = Toolchain("tensorrt", "10.13.3.9", None)
    name = "tensorrt-10.13.3.9-nvidia-l4-8.9.cache"
    assert timing_cache_path(tools, tmp_path, L4) == tmp_path / name
    assert timing_cache_path(tools, tmp_path / "own.cache", L4) == tmp_path / "own.cache"
    monkeypatch.setenv("BERTMP_HOME", str(tmp_path / "home"))
    assert timing_cache_path(tools, None, L4) == tmp_path / "home" / "timing-caches" / name
    assert timing_cache_path(Toolchain("tensorrt-rtx", "1.7", None), None, L4) is None


def test_what_needs_a_gpu_is_refused_without_one() -> None:
    rtx = Toolchain("tensorrt-rtx", "1", None)
    rtx.refuse_unsupported({"weights": "full"}, gpu=False)
    rtx.refuse_unsupported({"weights": "stripped"}, gpu=True)
    with pytest.raises(InputError, match="no --weights without a GPU"):
        rtx.refuse_unsupported({"weights": "stripped"}, gpu=False)


@needs_rtx
def test_settings_become_flags_of_the_builders_own_config() -> None:
    tools = find_toolchain("tensorrt-rtx")
    trt = tools.module
    config = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config()
    tools.set_flags(config, EngineOptions(GRAPH))
    flags = (trt.BuilderFlag.REFIT, trt.BuilderFlag.STRIP_PLAN, trt.BuilderFlag.VERSION_COMPATIBLE)
    assert [config.get_flag(flag) for flag in flags] == [False, False, False]
    tools.set_flags(config, EngineOptions(GRAPH, weights="stripped", version_compatible=True))
    assert [config.get_flag(flag) for flag in flags] == [True, True, True]
    plain = SimpleNamespace()  # TensorRT-RTX's own config keeps no level
    tools.set_hardware(plain, None)
    assert vars(plain) == {}
    tools.set_hardware(plain, "ampere-plus")
    assert plain.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS


@needs_rtx
def test_the_builder_knows_its_cuda_and_driver() -> None:
    tools = find_toolchain("tensorrt-rtx")
    assert (tools.cuda, tools.driver) in (("12", "525"), ("13", "580"))
    assert tools.without_effect({"optimization_level": 0})
    assert tools.without_effect({"optimization_level": None}) == []


def test_gpus_that_an_engine_is_for() -> None:
    tools = Toolchain("tensorrt", "10.13.3.9", None)
    assert tools.built_for(EngineOptions(GRAPH), L4) == ["8.9"]
    assert tools.built_for(EngineOptions(GRAPH, hardware_compatible="ampere-plus"), L4) == ["8.0+"]
    assert tools.built_for(EngineOptions(GRAPH), None) == []
