"""The commands up to a trained checkpoint: doctor, setup, download, prepare, train."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import bertmp
from bertmp.cli.command import CommandResult, new_table, progress_bar
from bertmp.core.options import NoOptions
from bertmp.data.data_options import PrepareOptions
from bertmp.environment.options import DownloadOptions, SetupOptions
from bertmp.training.train_options import TrainOptions

if TYPE_CHECKING:
    from bertmp.environment.doctor import Component, Diagnosis
    from bertmp.training.train import TrainResult


def doctor(options: NoOptions) -> CommandResult:
    """Show what this machine has, and which commands can run on it."""
    found = bertmp.doctor()
    return CommandResult(found.to_json(), lambda console: _print_diagnosis(console, found))


def setup(options: SetupOptions) -> CommandResult:
    """Install a Triton server in an environment of its own, once."""
    with progress_bar(transfers=True) as progress:
        result = bertmp.setup(replace(options, progress=progress))
    state = "installed" if result.installed else "already there"
    return CommandResult(result.to_json(), f"{result.component} {state}: {result.folder}")


def download(options: DownloadOptions) -> CommandResult:
    """Fetch real weights and data, checked and kept; print their folders."""
    with progress_bar(transfers=True) as progress:
        found = bertmp.download(replace(options, progress=progress))
    folders = {name: str(folder) for name, folder in found.items()}
    return CommandResult(folders, "\n".join(folders.values()))


def _print_diagnosis(console: Any, found: Diagnosis) -> None:
    from rich.markup import escape  # square brackets, as in `bertmp[cpu]`, are text here

    console.print(new_table(_machine_rows(found), ("", ""), title="This machine"))
    components = (
        (part.name, part.version or "-", escape(part.detail if part.usable else _advice(part)))
        for part in found.components
    )
    console.print(new_table(components, ("name", "version", ""), title="Components"))
    commands = []
    for check in found.commands:
        runs = "[green]yes[/green]" if check.runs else "[red]no[/red]"
        note = check.note if check.runs else "\n".join(check.why_not)
        commands.append((check.command, runs, escape(note), escape("\n".join(check.get))))
    console.print(new_table(commands, ("command", "runs here", "", "to install it"), title="Commands"))


def _advice(part: Component) -> str:
    return f"{part.problem}: {part.get}" if part.get else part.problem


def _machine_rows(found: Diagnosis) -> Iterator[tuple[str, str]]:
    here = found.machine
    yield "processor", str(here)
    yield "features", " ".join(here.features) or "none that speed BERT up"
    for gpu in found.gpus:
        cores = ["FP16"] * gpu.fp16_tensor_cores + ["BF16"] * gpu.bf16_tensor_cores
        tensor_cores = f"{' and '.join(cores)} tensor cores" if cores else "no tensor cores"
        memory = f"{gpu.memory_bytes / 2**30:.1f} GiB"
        yield "GPU", f"{gpu.name}, {gpu.compute_capability}, {memory}, {tensor_cores}"
    if not found.gpus:
        yield "GPU", f"none: {found.gpu_problem}"
    yield "driver", f"CUDA {found.driver_cuda}" if found.driver_cuda else "none"
    yield "system", here.system
    yield "Python", found.python
    yield "home", str(found.home)
    yield "downloaded", ", ".join(name for name, complete in found.assets.items() if complete) or "nothing"


def train(options: TrainOptions) -> CommandResult:
    """Train a BERT in mixed precision, with FP32 master weights, LayerNorm, softmax and loss."""
    with progress_bar() as progress:
        result = bertmp.train(replace(options, progress=progress))
    from bertmp.training.distributed import is_first

    if not is_first():
        raise SystemExit(0)
    table = new_table(_training_rows(result), ("", ""))
    return CommandResult(result.to_json(), lambda console: console.print(table))


def _training_rows(result: TrainResult) -> Iterator[tuple[str, str]]:
    yield "checkpoint", str(result.checkpoint)
    yield "steps", f"{result.steps}{f', {result.skipped_steps} skipped' if result.skipped_steps else ''}"
    yield "precision", result.precision
    for name, value in result.evaluation.figures.items() if result.evaluation else ():
        yield name.replace("_", " "), f"{value:.4f}"
    yield "speed", f"{result.examples_per_second:.1f} examples/s, {result.tokens_per_second:,.0f} tokens/s"
    yield "peak memory", f"{result.peak_memory_bytes / 1e6:,.0f} MB"
    if result.truncated:
        yield "cut", f"{result.truncated} texts were longer than the model takes"


def prepare(options: PrepareOptions) -> CommandResult:
    """Tokenize a corpus once; 'bertmp train pretraining --data STORE' then maps it into memory."""
    with progress_bar() as progress:
        result = bertmp.prepare(replace(options, progress=progress))
    counts = result.counts
    dropped = f"; {counts.dropped} pairs with an empty text were skipped" if counts.dropped else ""
    found = f"{counts.documents} documents, {counts.sentences} sentences, {counts.tokens} tokens"
    return CommandResult(result.to_json(), f"{result.store}: {found} in {result.seconds:.1f} s{dropped}")
