"""Which components each command needs, and so which commands can run here; nothing is looked up here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bertmp.core.hardware import Gpu
from bertmp.environment.components import Component


@dataclass(frozen=True)
class Requirement:
    """The components that one command needs.

    Attributes:
        command: its name.
        every: components that must all be usable.
        one_of: components of which one is enough; the first usable one is taken.
    """

    command: str
    every: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()


_MODEL = ("torch", "tokenizers", "safetensors")
_REPOSITORY = ("tokenizers", "tritonclient")
REQUIREMENTS = (
    Requirement("doctor"),
    Requirement("setup", ("pip", "triton host")),
    Requirement("download", ("pip",)),
    Requirement("prepare", ("tokenizers", "pyarrow")),
    Requirement("train", _MODEL),
    Requirement("export", (*_MODEL, "onnx", "onnxscript")),
    Requirement("convert", ("onnx",)),
    Requirement("explain", ("onnx",)),
    Requirement("build-engine", one_of=("tensorrt", "tensorrt-rtx")),
    Requirement("parity", (*_MODEL, "onnxruntime")),
    Requirement("deploy", _REPOSITORY),
    Requirement("rollback", _REPOSITORY),
    Requirement("models", _REPOSITORY),
    Requirement("serve", ("triton", "tritonclient")),
    Requirement("infer", ("tritonclient",)),
    Requirement("bench", ("tritonclient",)),
)


@dataclass(frozen=True)
class CommandCheck:
    """Whether one command can run here.

    Attributes:
        command: its name.
        runs: whether it can.
        why_not: each component that is missing or broken, and why; empty where it can run.
        get: the commands that install what is missing.
        note: how it runs here, where that depends on the machine.
    """

    command: str
    runs: bool
    why_not: tuple[str, ...] = ()
    get: tuple[str, ...] = ()
    note: str = ""


def check_commands(
    found: Sequence[Component], gpus: Sequence[Gpu], bf16_cpu: bool
) -> tuple[CommandCheck, ...]:
    """Checks every command, in the order of the pipeline."""
    by_name = {component.name: component for component in found}
    return tuple(_check(requirement, by_name, gpus, bf16_cpu) for requirement in REQUIREMENTS)


def _check(
    requirement: Requirement, found: dict[str, Component], gpus: Sequence[Gpu], bf16_cpu: bool
) -> CommandCheck:
    missing = [found[name] for name in requirement.every if not found[name].usable]
    choices = [_builder(found[name], gpus) for name in requirement.one_of]
    if choices and not any(choice.usable for choice in choices):
        missing += choices
    if missing:
        return CommandCheck(
            requirement.command,
            runs=False,
            why_not=tuple(f"{component.name}: {component.problem}" for component in missing),
            get=tuple(dict.fromkeys(component.get for component in missing if component.get)),
        )
    return CommandCheck(
        requirement.command, runs=True, note=_note(requirement.command, found, gpus, bf16_cpu)
    )


def _builder(component: Component, gpus: Sequence[Gpu]) -> Component:
    """TensorRT builds on a GPU only; TensorRT-RTX without one too."""
    if component.name == "tensorrt" and component.usable and not gpus:
        return replace(component, problem="no GPU to build on")
    return component


def _note(command: str, found: dict[str, Component], gpus: Sequence[Gpu], bf16_cpu: bool) -> str:
    if command == "train":
        return _training_note(found["torch"], gpus, bf16_cpu)
    if command == "build-engine":
        if found["tensorrt"].usable:
            return "with TensorRT" if gpus else "TensorRT needs a GPU: only TensorRT-RTX builds without one"
        return "with TensorRT-RTX: verifies build and precision; Triton does not load its engines"
    if command == "parity" and not gpus:
        return "the engine is not run: no GPU"
    if command == "serve":
        return "on the CPU" if not gpus else ""
    return ""


def _training_note(torch: Component, gpus: Sequence[Gpu], bf16_cpu: bool) -> str:
    if gpus and "CPU" in torch.detail:
        return "on the CPU although there is a GPU: torch is built for the CPU"
    if gpus:
        return f"on {gpus[0].name}"
    return "on the CPU, BF16 in hardware" if bf16_cpu else "on the CPU, without BF16 hardware"
