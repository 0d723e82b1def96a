"""Every name of TensorRT's that the code uses is looked up in the real bindings, which needs no GPU."""

from __future__ import annotations

import ast
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.export.engine.trt_bindings import names_by_string, names_of, names_used, unpack_bindings
from tests.export.engine.trt_page import has, page
from tests.export.engine.trt_stubs import names_of_stubs, stubs_of_10, stubs_of_11, type_errors

ONLY_RTX = {"IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"}
"""Names that the code uses with TensorRT-RTX alone."""

PAGE = REPOSITORY / "docs" / "reference" / "tensorrt.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensorrt")


@pytest.fixture(scope="module")
def unpacked(folder: Path) -> tuple[Path, Path]:
    """TensorRT 11.4's bindings and the libraries that let them be imported."""
    return unpack_bindings(folder)


@pytest.fixture(scope="module")
def stubs_11(folder: Path, unpacked: tuple[Path, Path]) -> Path:
    return stubs_of_11(folder, *unpacked)


@pytest.fixture(scope="module")
def stubs_10(folder: Path) -> Path:
    return stubs_of_10(folder)


def missing(bindings: dict[str, Any], besides: Collection[str] = ()) -> list[str]:
    return [name for name in sorted(names_used() - set(besides)) if not has(bindings, name)]


def test_the_code_uses_names_of_tensorrt() -> None:
    used = names_used()
    assert {"Builder", "OnnxParser", "TensorIOMode.INPUT", "Builder.build_serialized_network"} <= used
    assert "IExecutionContext.set_optimization_profile_async" in used
    assert len(used) > 30


def test_names_that_are_chosen_by_a_variable_are_used_too() -> None:
    used = names_used()
    assert {"BuilderFlag.STRIP_PLAN", "BuilderFlag.REFIT", "BuilderFlag.VERSION_COMPATIBLE"} <= used
    assert {
        f"HardwareCompatibilityLevel.{name}" for name in ("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")
    } <= used
    planted = "def f(self, name):\n    self.config.set_flag(getattr(self.module.BuilderFlag, name))"
    function = ast.parse(planted).body[0]
    assert isinstance(function, ast.FunctionDef)
    with pytest.raises(AssertionError, match="that no table gives"):
        list(names_by_string(function, {}))


def test_names_are_those_of_tensorrt_rtx() -> None:
    assert missing(names_of("tensorrt_rtx")) == []


def test_names_are_those_of_tensorrt_11(unpacked: tuple[Path, Path]) -> None:
    assert missing(names_of("tensorrt", *unpacked), ONLY_RTX) == []


def test_names_are_those_of_tensorrt_10(stubs_10: Path) -> None:
    assert missing(names_of_stubs(stubs_10), ONLY_RTX) == []


def test_a_name_that_the_bindings_lack_is_found() -> None:
    bindings = names_of("tensorrt_rtx")
    bindings["classes"]["IExecutionContext"].remove("set_input_shape")
    assert missing(bindings) == ["IExecutionContext.set_input_shape"]


def test_calls_fit_the_signatures_of_tensorrt_11(folder: Path, stubs_11: Path) -> None:
    assert type_errors(folder, stubs_11) == []


def test_calls_fit_the_signatures_of_tensorrt_10(folder: Path, stubs_10: Path) -> None:
    assert type_errors(folder, stubs_10) == []


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ("BuilderFlag.TF32", "BuilderFlag.FP16", '"type[BuilderFlag]" has no attribute "FP16"'),
        (
            "set_tensor_address",
            "set_tensor_adress",
            '"IExecutionContext" has no attribute "set_tensor_adress"',
        ),
        ("set_input_shape(name, dims)", "set_input_shape(dims)", 'No overload variant of "set_input_shape"'),
        (
            "set_timing_cache(cache, False)",
            "set_timing_cache(cache, ignore=False)",
            "Unexpected keyword argument",
        ),
    ],
)
def test_a_call_that_tensorrt_11_lacks_is_found(
    folder: Path, stubs_11: Path, right: str, wrong: str, found: str
) -> None:
    errors = type_errors(folder, stubs_11, lambda source: source.replace(right, wrong))
    assert any(found in error for error in errors), errors


def test_the_page_of_names_is_up_to_date(unpacked: tuple[Path, Path], stubs_10: Path) -> None:
    todo = f"run 'python -m tests.export.engine.trt_page {PAGE.relative_to(REPOSITORY)}'"
    assert PAGE.read_text(encoding="utf-8") == page(stubs_10, unpacked), todo
