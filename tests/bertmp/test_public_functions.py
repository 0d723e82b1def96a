"""`import bertmp`: every command's function has a typed signature, says what it takes, and prints nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import onnx
import pytest

import bertmp
from bertmp.cli.app import COMMANDS
from bertmp.export.export_options import ConvertOptions
from tests.export.precision_graphs import chain

FUNCTIONS = [name for name in bertmp.__all__ if name != "__version__"]
OWN_NAMES = {"export": "export_checkpoint", "serve": "serve_repository"}
"""Commands whose plain name is a package's."""


def is_any(annotation: Any) -> bool:
    return annotation in (Any, "Any") or any(map(is_any, get_args(annotation)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_function_has_typed_documented_parameters(name: str) -> None:
    function: Callable[..., Any] = getattr(bertmp, name)
    signature = inspect.signature(function)
    documentation = inspect.getdoc(function) or ""
    assert signature.return_annotation is not inspect.Signature.empty
    assert documentation
    for parameter in signature.parameters.values():
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        assert parameter.annotation is not parameter.empty
        assert not is_any(parameter.annotation)
        assert parameter.name in documentation
    assert ("Args:" in documentation) == bool(signature.parameters)


def test_every_command_has_a_public_function() -> None:
    commands = {name for name, _, _ in COMMANDS}
    assert {OWN_NAMES.get(name, name.replace("-", "_")) for name in commands} <= set(bertmp.__all__)


def test_import_of_the_package_loads_nothing_of_it() -> None:
    code = "import sys, bertmp; print([name for name in sys.modules if name.startswith('bertmp.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_conversion_without_a_callback_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    onnx.save(chain(["MatMul", "LayerNormalization", "Softmax"]), tmp_path / "in.onnx")
    bertmp.convert(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert capfd.readouterr() == ("", "")


def test_conversion_with_a_callback_tells_each_step(tmp_path: Path) -> None:
    onnx.save(chain(["MatMul", "LayerNormalization", "Softmax"]), tmp_path / "in.onnx")
    messages: list[str] = []
    bertmp.convert(
        tmp_path / "in.onnx", tmp_path / "out.onnx", progress=lambda message, *_: messages.append(message)
    )
    assert messages == ["deciding by the rules", "converting"]


def test_options_object_is_taken_in_place_of_arguments(tmp_path: Path) -> None:
    onnx.save(chain(["MatMul", "Softmax"]), tmp_path / "in.onnx")
    options = ConvertOptions(tmp_path / "in.onnx", tmp_path / "out.onnx", precision="bf16")
    assert bertmp.convert(options).planned.plan.target == "bf16"
