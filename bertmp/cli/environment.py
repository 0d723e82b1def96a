"""The commands that prepare the machine: doctor, setup, download."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import bertmp
from bertmp.cli.command import CommandResult
from bertmp.cli.progress import progress_bar
from bertmp.core.options import NoOptions
from bertmp.environment.options import DownloadOptions, SetupOptions

if TYPE_CHECKING:
    from bertmp.environment.doctor import Diagnosis


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
    console.print(_machine_table(found))
    console.print(_component_table(found))
    console.print(_command_table(found))


def _table(title: str, *columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _machine_table(found: Diagnosis) -> Any:
    table = _table("This machine", "", "")
    table.show_header = False
    here = found.machine
    table.add_row("processor", str(here))
    table.add_row("features", " ".join(here.features) or "none that speed BERT up")
    for gpu in found.gpus:
        cores = ["FP16"] * gpu.fp16_tensor_cores + ["BF16"] * gpu.bf16_tensor_cores
        tensor_cores = f"{' and '.join(cores)} tensor cores" if cores else "no tensor cores"
        memory = f"{gpu.memory_bytes / 2**30:.1f} GiB"
        table.add_row("GPU", f"{gpu.name}, {gpu.compute_capability}, {memory}, {tensor_cores}")
    if not found.gpus:
        table.add_row("GPU", f"none: {found.gpu_problem}")
    table.add_row("driver", f"CUDA {found.driver_cuda}" if found.driver_cuda else "none")
    table.add_row("system", here.system)
    table.add_row("Python", found.python)
    table.add_row("home", str(found.home))
    downloaded = [name for name, complete in found.assets.items() if complete]
    table.add_row("downloaded", ", ".join(downloaded) or "nothing")
    return table


def _component_table(found: Diagnosis) -> Any:
    from rich.markup import escape

    table = _table("Components", "name", "version", "")
    for part in found.components:
        advice = f": {part.get}" if part.get else ""
        note = part.detail if part.usable else f"{part.problem}{advice}"
        table.add_row(part.name, part.version or "-", escape(note))
    return table


def _command_table(found: Diagnosis) -> Any:
    from rich.markup import escape

    table = _table("Commands", "command", "runs here", "", "to install it")
    for check in found.commands:
        runs = "[green]yes[/green]" if check.runs else "[red]no[/red]"
        note = check.note if check.runs else "\n".join(check.why_not)
        table.add_row(check.command, runs, escape(note), escape("\n".join(check.get)))
    return table
