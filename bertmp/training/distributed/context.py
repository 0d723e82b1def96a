"""Where a run's processes stand: alone, or side by side on one device mesh."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from bertmp.core.errors import InputError
from bertmp.model.embedding import word_embeddings
from bertmp.model.heads import Head, head_for
from bertmp.training.amp import PrecisionPolicy
from bertmp.training.clipping import clip_gradients
from bertmp.training.distributed import dtensor_grads as pieces
from bertmp.training.distributed import full_state_dict as wholes
from bertmp.training.distributed import parallelize as layouts
from bertmp.training.objective import Objective

T = TypeVar("T")


def make_context(device: torch.device, rank: int, groups: int, parts: int, shard: bool) -> DistributedContext:
    """The world of process `rank` of `groups` × `parts`: neighbours hold the parts of one layer."""
    # Whole tensors of two-dimensional layouts are put together one dimension at a time, as torch remarks.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    shape = (1, groups, parts) if shard else (groups, 1, parts)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=layouts.MESH)
    columns = [list(range(part, groups * parts, parts)) for part in range(parts)]
    data_group, _ = dist.new_subgroups_by_enumeration(columns, backend="gloo")
    return DistributedContext(
        device=device,
        data_rank=rank // parts,
        data_size=groups,
        tensor_rank=rank % parts,
        tensor_size=parts,
        shard=shard,
        mesh=mesh,
        all_group=dist.new_group(backend="gloo"),
        data_group=data_group,
    )


@dataclass(frozen=True)
class DistributedContext:
    """The processes of a run, as one of them sees it.

    Methods that talk of all processes are called by every process at the same moment.

    Attributes:
        device: this process's device.
        data_rank, data_size: which share of every batch is this process's, of how many.
        tensor_rank, tensor_size: which part of every layer is this process's, of how many.
        shard: whether weights and optimizer states are spread over the data-parallel processes.
        mesh: the processes on `layouts.MESH`; None where there is one.
        all_group, data_group: Gloo groups for small CPU tensors and objects: all processes, and those that
            have the same part of every layer.
    """

    device: torch.device
    data_rank: int = 0
    data_size: int = 1
    tensor_rank: int = 0
    tensor_size: int = 1
    shard: bool = False
    mesh: DeviceMesh | None = None
    all_group: dist.ProcessGroup | None = None
    data_group: dist.ProcessGroup | None = None

    @classmethod
    def alone(cls) -> DistributedContext:
        """One process, on the GPU where there is one."""
        return cls(torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.data_rank == 0 and self.tensor_rank == 0

    @property
    def in_pieces(self) -> bool:
        """Whether parameters are spread over processes."""
        return self.mesh is not None and (self.shard or self.tensor_size > 1)

    def describe(self) -> str:
        """The layout in a few words."""
        if self.mesh is None:
            return "one process"
        kind = "sharded" if self.shard else "data-parallel"
        return f"{self.data_size} {kind} by {self.tensor_size} tensor-parallel processes"

    def wrap(self, objective: Objective, policy: PrecisionPolicy) -> nn.Module:
        """The objective on its device, with whatever keeps the processes' weights in step.

        Errors: InputError where the model's layers do not divide by `tensor_size`.
        """
        objective.to(self.device)
        if self.mesh is None:
            return objective
        for table in word_embeddings(objective):
            table.is_read_whole = True
        if self.tensor_size > 1:
            layouts.check_tensor_parallel(objective.head.config, self.tensor_size)
            layouts.split_layers(objective.head, self.mesh["tensor"])
        if self.shard:
            layouts.shard_weights(objective.head, self.mesh["shard"], policy.dtype)
        elif self.data_size > 1 and self.tensor_size > 1:
            # DistributedDataParallel takes no tensors that lie in pieces; replicas of one shard each do.
            layouts.shard_weights(objective.head, self.mesh["replicate", "shard"], policy.dtype)
        elif self.data_size > 1:
            devices = [self.device.index] if self.device.type == "cuda" else None
            return DistributedDataParallel(
                objective,
                devices,
                process_group=self.mesh.get_group("replicate"),
                gradient_as_bucket_view=True,
            )
        return objective

    def arrange(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimizer, ready for the parameters of a wrapped model."""
        if self.in_pieces:
            pieces.one_mesh_a_group(optimizer)
        return optimizer

    @property
    def grad_scaler(self) -> Callable[..., torch.amp.GradScaler]:
        """The kind of GradScaler that sees an overflow in any process's piece of the gradients."""
        return pieces.SharedGradScaler if self.in_pieces else torch.amp.GradScaler

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """The context of one micro-batch's passes; gradients are shared after the `last` one."""
        if isinstance(module, DistributedDataParallel) and not last:
            return module.no_sync()
        if isinstance(module, Objective) and isinstance(module.head, FSDPModule):
            module.head.set_requires_gradient_sync(last)
        return nullcontext()

    def clip(self, objective: Objective, limit: float) -> float:
        """Clips the gradients to an L2 norm of `limit`; returns the norm before, of all processes' pieces."""
        if self.in_pieces:
            return pieces.clip(objective.parameters(), limit)
        return clip_gradients(objective, limit)

    def clear_gradients(self, objective: Objective, optimizer: torch.optim.Optimizer) -> None:
        """Takes the used gradients away."""
        if self.mesh is None:
            for table in word_embeddings(objective):
                table.take_back()
        optimizer.zero_grad(set_to_none=True)

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the data-parallel processes."""
        if self.data_size == 1:
            return values
        assert self.mesh is not None
        total = values.clone()
        on_cpu = total.device.type == "cpu"
        group = self.data_group if on_cpu else self.mesh.get_group("shard" if self.shard else "replicate")
        dist.all_reduce(total, group=group)
        return total

    @property
    def place(self) -> tuple[int, int]:
        """This process's number among all, and how many there are."""
        return self.data_rank * self.tensor_size + self.tensor_rank, self.data_size * self.tensor_size

    def sum_scores(self, scores: Mapping[str, float]) -> Counter[str]:
        """Sums of named figures over all processes, which need not all have the same names."""
        total: Counter[str] = Counter()
        for part in self.gather(dict(scores)):
            total.update(part)
        return total

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        if self.all_group is None:
            return [value]
        values: list[Any] = [None] * self.place[1]
        dist.all_gather_object(values, value, group=self.all_group)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.all_group is None:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.all_group)
        return bool(value)

    def wait(self) -> None:
        """Until every process is here."""
        if self.all_group is not None:
            dist.barrier(self.all_group)

    def agree(self, value: T, what: str) -> T:
        """The value, where all processes have the same.

        Errors: InputError where they differ, as on hosts that do not share the run's folder.
        """
        values = self.gather(value)
        if any(other != values[0] for other in values):
            raise InputError(f"the processes differ in {what}", "--out", "give a folder that all hosts share")
        return value

    def whole(self, head: Head) -> Head:
        """The head with all its weights, to be evaluated or saved: itself, or a copy where it is in pieces.

        The copy is in FP32 on this process's device, and no exchange is needed to run it.
        """
        if not self.in_pieces:
            return head
        state = {name: tensor.to(self.device) for name, tensor in wholes.weights(head).items()}
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
            copy = head_for(head.task)(head.config)
        copy.load_state_dict(state, assign=True)
        return copy.train(head.training)

    def collect(self, objective: Objective, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole run's weights and optimizer state, whatever the layout: what a state holds.

        Called by all processes; the tensors are empty in all but the first.
        """
        return {
            "model": wholes.weights(objective.head, self.is_main),
            "optimizer": wholes.optimizer_state(objective.head, optimizer, self.is_main),
        }

    def restore(
        self, objective: Objective, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
    ) -> None:
        """Takes over what `collect` gave, under this or another layout."""
        wholes.load_weights(objective.head, state["model"])
        wholes.load_optimizer_state(objective.head, optimizer, state["optimizer"])
