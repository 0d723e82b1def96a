"""An engine file against what its build wrote down: damaged, of another builder, version or GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bertmp.core.errors import InputError
from bertmp.core.io import sha256_file, write_json
from bertmp.export.engine.compatibility import (
    EngineFile,
    open_engine,
    require_device,
    require_runtime,
    runs_on,
)

CONTENT = b"an engine of a hundred bytes".ljust(100, b".")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An engine's folder as a build leaves it."""
    (tmp_path / "model.plan").write_bytes(CONTENT)
    write_network(tmp_path)
    return tmp_path


def write_network(folder: Path, **other: Any) -> None:
    recorded = {
        "builder": "tensorrt",
        "builder_version": "10.13.3.9",
        "compute_capability": ["8.9"],
        "profiles": ["1x1:8x64:32x128"],
        "weights": "full",
        "version_compatible": False,
        "engine_bytes": len(CONTENT),
        "engine_sha256": sha256_file(folder / "model.plan"),
    }
    write_json(folder / "network.json", {**recorded, **other})


def test_a_whole_engine_is_opened(folder: Path) -> None:
    found = open_engine(folder)
    assert found.builder_version == "10.13.3.9"
    assert found.profiles == ("1x1:8x64:32x128",)
    require_runtime(found, "tensorrt", "10.13.3.9")
    require_device(found, "an L4", "8.9")


def test_a_truncated_engine_is_refused(folder: Path) -> None:
    (folder / "model.plan").write_bytes(CONTENT[:60])
    with pytest.raises(InputError, match="truncated: 60 of 100 bytes"):
        open_engine(folder)


def test_other_bytes_are_refused(folder: Path) -> None:
    (folder / "model.plan").write_bytes(CONTENT[::-1])
    with pytest.raises(InputError, match=r"not the one that network\.json is about"):
        open_engine(folder)


def test_a_missing_engine_and_another_file_are_refused(folder: Path) -> None:
    (folder / "model.plan").unlink()
    with pytest.raises(InputError, match="no engine"):
        open_engine(folder)
    write_json(folder / "network.json", {"builder": "tensorrt"})
    with pytest.raises(InputError, match="not the description of an engine: no builder_version"):
        open_engine(folder)
    write_json(folder / "network.json", [])
    with pytest.raises(InputError, match="not the description of an engine"):
        open_engine(folder)


@pytest.fixture
def engine(folder: Path) -> EngineFile:
    return open_engine(folder)


def test_another_builder_or_version_is_refused(engine: EngineFile) -> None:
    with pytest.raises(InputError, match="of tensorrt, and tensorrt-rtx is installed"):
        require_runtime(engine, "tensorrt-rtx", "1.7.1.116")
    with pytest.raises(InputError, match=r"of tensorrt 10\.13\.3\.9, and 10\.14\.1\.48 is installed"):
        require_runtime(engine, "tensorrt", "10.14.1.48")


def test_a_version_compatible_engine_takes_a_later_version_alone(engine: EngineFile) -> None:
    compatible = replace(engine, version_compatible=True)
    require_runtime(compatible, "tensorrt", "10.14.1.48")
    require_runtime(compatible, "tensorrt", "11.0.0.1")
    with pytest.raises(InputError, match=r"and 10\.9\.0\.34 is installed"):
        require_runtime(compatible, "tensorrt", "10.9.0.34")


def test_another_gpu_is_refused(engine: EngineFile) -> None:
    with pytest.raises(InputError, match=r"for compute capability 8\.9, and an A100 has 8\.0"):
        require_device(engine, "an A100", "8.0")


def test_an_engine_without_weights_does_not_run(engine: EngineFile) -> None:
    with pytest.raises(InputError, match="without its weights"):
        require_runtime(replace(engine, weights="stripped"), "tensorrt", "10.13.3.9")


def test_which_gpus_an_engine_runs_on() -> None:
    assert runs_on(["8.0", "8.6"], "8.6")
    assert not runs_on(["8.0", "8.6"], "8.9")
    assert runs_on(["8.0+"], "12.0")
    assert not runs_on(["8.0+"], "7.5")
    assert not runs_on([], "8.0")
