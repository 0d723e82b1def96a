"""The commands that get a machine ready: doctor, setup, download."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from bertmp.cli.command import CommandResult, command
from bertmp.core.options import NoOptions
from bertmp.core.progress import ProgressCallback
from bertmp.environment.options import DownloadOptions, SetupOptions

if TYPE_CHECKING:
    from bertmp.environment.doctor import Diagnosis


def add_commands(app: typer.Typer) -> None:
    """Registers `doctor`, `setup` and `download`."""

    @command(app, "doctor", NoOptions, example="bertmp doctor --json")
    def run_doctor(options: NoOptions) -> CommandResult:
        """Show what this machine has, and which commands can run on it."""
        from bertmp.environment.doctor import doctor

        found = doctor()
        return CommandResult(found.to_json(), lambda console: _print_diagnosis(console, found))

    @command(app, "setup", SetupOptions, example="bertmp setup triton")
    def run_setup(options: SetupOptions) -> CommandResult:
        """Install a Triton server in an environment of its own, once."""
        from bertmp.environment.triton_install import setup

        with _transfers() as progress:
            result = setup(replace(options, progress=progress))
        state = "installed" if result.installed else "already there"
        return CommandResult(result.to_json(), f"{result.component} {state}: {result.folder}")

    @command(app, "download", DownloadOptions, example="bertmp download minilm trec")
    def run_download(options: DownloadOptions) -> CommandResult:
        """Fetch real weights and data, checked and kept; print their folders."""
        from bertmp.environment.downloads import download

        with _transfers() as progress:
            found = download(replace(options, progress=progress))
        folders = {name: str(folder) for name, folder in found.items()}
        return CommandResult(folders, "\n".join(folders.values()))


@contextmanager
def _transfers() -> Iterator[ProgressCallback]:
    """One bar per transfer on standard error; one line where that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int | None = None, total: int | None = None, /) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=None)
                if not console.is_terminal:
                    console.print(what)
            bars.update(tasks[what], completed=done or 0, total=total or None)

        yield show


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
