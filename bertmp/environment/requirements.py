"""Which command needs what, and so which of them can run here: pure deciding, nothing is looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bertmp.core.hardware import Gpu
from bertmp.environment.components import Component


@dataclass(frozen=True)
class Need:
    """What one command cannot do without.

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
NEEDS = (
    Need("doctor"),
    Need("setup", ("pip", "triton host")),
    Need("download", ("pip",)),
    Need("prepare", ("tokenizers", "pyarrow")),
    Need("train", _MODEL),
    Need("export", (*_MODEL, "onnx", "onnxscript")),
    Need("convert", ("onnx",)),
    Need("build-engine", one_of=("tensorrt", "tensorrt-rtx")),
    Need("parity", (*_MODEL, "onnxruntime")),
    Need("deploy", _REPOSITORY),
    Need("rollback", _REPOSITORY),
    Need("models", _REPOSITORY),
    Need("serve", ("triton", "tritonclient")),
    Need("infer", ("tritonclient",)),
    Need("bench", ("tritonclient",)),
)


@dataclass(frozen=True)
class Verdict:
    """Whether one command can run here.

    Attributes:
        command: its name.
        runs: whether it can.
        why_not: what is missing or broken, a clause each; empty where it can run.
        get: the commands that bring what is missing.
        note: how it runs here, where that is not the same everywhere.
    """

    command: str
    runs: bool
    why_not: tuple[str, ...] = ()
    get: tuple[str, ...] = ()
    note: str = ""


def judge(found: Sequence[Component], devices: Sequence[Gpu], bf16_cpu: bool) -> tuple[Verdict, ...]:
    """One verdict a command, in the order of the pipeline."""
    by_name = {component.name: component for component in found}
    return tuple(_verdict(need, by_name, devices, bf16_cpu) for need in NEEDS)


def _verdict(need: Need, found: dict[str, Component], devices: Sequence[Gpu], bf16_cpu: bool) -> Verdict:
    missing = [found[name] for name in need.every if not found[name].usable]
    choices = [_builder(found[name], devices) for name in need.one_of]
    if choices and not any(choice.usable for choice in choices):
        missing += choices
    if missing:
        return Verdict(
            need.command,
            runs=False,
            why_not=tuple(f"{component.name}: {component.problem}" for component in missing),
            get=tuple(dict.fromkeys(component.get for component in missing if component.get)),
        )
    return Verdict(need.command, runs=True, note=_note(need.command, found, devices, bf16_cpu))


def _builder(component: Component, devices: Sequence[Gpu]) -> Component:
    """TensorRT builds on a GPU only; TensorRT-RTX without one too."""
    if component.name == "tensorrt" and component.usable and not devices:
        return replace(component, problem="no GPU to build on")
    return component


def _note(command: str, found: dict[str, Component], devices: Sequence[Gpu], bf16_cpu: bool) -> str:
    if command == "train":
        return _training_note(found["torch"], devices, bf16_cpu)
    if command == "build-engine":
        if found["tensorrt"].usable:
            return (
                "with TensorRT" if devices else "TensorRT needs a GPU: only TensorRT-RTX builds without one"
            )
        return "with TensorRT-RTX: proves build and precision; Triton does not load its engines"
    if command == "parity" and not devices:
        return "the engine is not run: no GPU"
    if command == "serve":
        return "on the processor" if not devices else ""
    return ""


def _training_note(torch: Component, devices: Sequence[Gpu], bf16_cpu: bool) -> str:
    if devices and "CPU" in torch.detail:
        return "on the processor although there is a GPU: torch is built for the CPU"
    if devices:
        return f"on {devices[0].name}"
    return "on the processor, BF16 in hardware" if bf16_cpu else "on the processor, without BF16 hardware"
