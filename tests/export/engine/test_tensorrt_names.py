"""Every name of TensorRT's that the code uses is looked up in the real bindings, which needs no GPU."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from tests.export.engine.trt_bindings import names_of, names_used, unpack_bindings

ONLY_RTX = {"IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"}
"""Names that the code uses with TensorRT-RTX alone."""


def missing(bindings: dict[str, Any], besides: Collection[str] = ()) -> list[str]:
    found = []
    for name in sorted(names_used() - set(besides)):
        first, _, rest = name.partition(".")
        known = bindings["classes"].get(first)
        if first not in bindings["names"] or (rest and known is not None and rest not in known):
            found.append(name)
    return found


def test_the_code_uses_names_of_tensorrt() -> None:
    used = names_used()
    assert {"Builder", "OnnxParser", "TensorIOMode.INPUT", "Builder.build_serialized_network"} <= used
    assert "IExecutionContext.set_optimization_profile_async" in used
    assert len(used) > 30


def test_names_are_those_of_tensorrt_rtx() -> None:
    assert missing(names_of("tensorrt_rtx")) == []


def test_names_are_those_of_tensorrt_11(tmp_path: Path) -> None:
    assert missing(names_of("tensorrt", *unpack_bindings(tmp_path)), ONLY_RTX) == []


def test_a_name_that_the_bindings_lack_is_found() -> None:
    bindings = names_of("tensorrt_rtx")
    bindings["classes"]["IExecutionContext"].remove("set_input_shape")
    assert missing(bindings) == ["IExecutionContext.set_input_shape"]
