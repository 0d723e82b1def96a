"""The builder's progress: from its nested phases to one bar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Phase:
    """A phase of the build that has begun and not ended.

    Attributes:
        name: the builder's own words.
        steps: how many steps it has.
        done: how many of them are complete.
    """

    name: str
    steps: int
    done: int = 0


@dataclass
class BuildProgress:
    """Follows the monitor's messages.

    Attributes:
        phases: the phases under way, outermost first.
        fraction: the part of the build that is done, 0 to 1; it never falls.
    """

    phases: list[Phase] = field(default_factory=list)
    fraction: float = 0.0

    def see(self, message: Mapping[str, Any]) -> None:
        """Takes one message; those that are not of the monitor change nothing."""
        kind = message["kind"]
        if kind == "phase":
            self.phases.append(Phase(message["name"], max(1, message["steps"])))
        elif kind == "step" and (phase := self._find(message["name"])):
            phase.done = min(phase.steps, message["step"] + 1)
        elif kind == "finish" and (phase := self._find(message["name"])):
            # What stands inside it has ended with it.
            del self.phases[self.phases.index(phase) :]
            if not self.phases:
                self.fraction = 1.0
        self.fraction = max(self.fraction, self._measure())

    @property
    def label(self) -> str:
        """The innermost phase under way."""
        return self.phases[-1].name if self.phases else ""

    def _find(self, name: str) -> Phase | None:
        return next((phase for phase in reversed(self.phases) if phase.name == name), None)

    def _measure(self) -> float:
        """Each phase is a part of the one around it: of the step that it is at."""
        fraction = 0.0
        for phase in reversed(self.phases):
            fraction = min(1.0, (phase.done + fraction) / phase.steps)
        return fraction


@contextmanager
def build_bar() -> Iterator[Any]:
    """A Rich bar on standard error; yields what takes the messages, the `watch` of `build_engine`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.fields[builder]}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    progress = BuildProgress()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting the builder", total=1.0, builder="building")

        def watch(message: Mapping[str, Any]) -> None:
            progress.see(message)
            if message["kind"] == "toolchain":
                bar.update(task, builder=f"{message['name']} {message['version']}")
            else:
                bar.update(task, completed=progress.fraction, description=progress.label)

        yield watch
