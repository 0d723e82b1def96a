"""The builder's progress: from its nested phases to one fraction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bertmp.core.progress import ProgressCallback


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
    """Turns the builder's messages into progress.

    Attributes:
        progress: called with the innermost phase and the per cent of the build that are done.
        phases: the phases under way, outermost first.
        fraction: the part of the build that is done, 0 to 1; it never falls.
    """

    progress: ProgressCallback
    phases: list[Phase] = field(default_factory=list)
    fraction: float = 0.0

    def see(self, message: Mapping[str, Any]) -> None:
        """Takes one message."""
        kind = message["kind"]
        if kind == "toolchain":
            self.progress(f"building with {message['name']} {message['version']}")
            return
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
        if kind in ("phase", "step", "finish"):
            self.progress(self.label, int(100 * self.fraction), 100)

    @property
    def label(self) -> str:
        """The innermost phase under way."""
        return self.phases[-1].name if self.phases else "built"

    def _find(self, name: str) -> Phase | None:
        return next((phase for phase in reversed(self.phases) if phase.name == name), None)

    def _measure(self) -> float:
        """Each phase is a part of the one around it: of the step that it is at."""
        fraction = 0.0
        for phase in reversed(self.phases):
            fraction = min(1.0, (phase.done + fraction) / phase.steps)
        return fraction
