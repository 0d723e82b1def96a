"""Where a run's processes stand: alone, or side by side on one device mesh."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bertmp.training.objective import Objective


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees it.

    Attributes:
        device: this process's device.
        data_rank, data_size: which share of every batch is this process's, of how many.
    """

    device: torch.device
    data_rank: int = 0
    data_size: int = 1

    @classmethod
    def alone(cls) -> World:
        """One process, on the GPU where there is one."""
        return cls(torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.data_rank == 0

    def wrap(self, objective: Objective) -> nn.Module:
        """The objective, with whatever keeps the processes' weights in step."""
        return objective.to(self.device)

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """The context of one micro-batch's backward pass; gradients are shared after the `last` one."""
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the data-parallel processes."""
        return values

    def collect(self, objective: Objective, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole run's weights and optimizer state, whatever the layout: what a state or checkpoint holds.

        Called by every process at the same moment.
        """
        return {"model": objective.head.state_dict(), "optimizer": optimizer.state_dict()}

    def restore(
        self, objective: Objective, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
    ) -> None:
        """Takes over what `collect` gave, under this or another layout."""
        objective.head.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
