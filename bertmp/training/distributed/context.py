"""The processes of a run: a single one, or several on one device mesh."""

from __future__ import annotations

import logging
from collections.abc import Callable
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
from bertmp.model.heads import Head, head_for
from bertmp.training.amp import PrecisionPolicy
from bertmp.training.cpu_tuning import word_embeddings
from bertmp.training.distributed.sharding import (
    MESH_DIMS,
    Objective,
    ShardedGradScaler,
    apply_fsdp,
    apply_tensor_parallel,
    full_weights,
)

T = TypeVar("T")


def make_context(device: torch.device, rank: int, groups: int, parts: int, fsdp: bool) -> DistributedContext:
    """The context of process `rank` of `groups` × `parts`; neighbours form a tensor-parallel group."""
    # Full tensors of two-dimensional layouts are gathered one dimension at a time; torch warns of that.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    shape = (1, groups, parts) if fsdp else (groups, 1, parts)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=MESH_DIMS)
    columns = [list(range(part, groups * parts, parts)) for part in range(parts)]
    data_group, _ = dist.new_subgroups_by_enumeration(columns, backend="gloo")
    everyone = dist.new_group(backend="gloo")
    own = (rank // parts, groups, rank % parts, parts)
    return DistributedContext(device, *own, fsdp, mesh, everyone, data_group)


@dataclass(frozen=True)
class DistributedContext:
    """The processes of a run, as one of them sees it.

    Methods that communicate are called by every process at the same time.

    Attributes:
        device: this process's device.
        data_rank, data_size: this process's data-parallel rank, and how many there are.
        tensor_rank, tensor_size: this process's tensor-parallel rank, and how many there are.
        fsdp: whether weights and optimizer states are sharded over the data-parallel processes.
        mesh: the processes on `MESH_DIMS`; None for a single process.
        all_group, data_group: Gloo groups for small CPU tensors and objects: all processes, and those that
            have the same tensor-parallel rank.
    """

    device: torch.device
    data_rank: int = 0
    data_size: int = 1
    tensor_rank: int = 0
    tensor_size: int = 1
    fsdp: bool = False
    mesh: DeviceMesh | None = None
    all_group: dist.ProcessGroup | None = None
    data_group: dist.ProcessGroup | None = None

    @classmethod
    def single(cls) -> DistributedContext:
        """A single process, on the GPU if there is one."""
        return cls(torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.data_rank == 0 and self.tensor_rank == 0

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are sharded over processes."""
        return self.mesh is not None and (self.fsdp or self.tensor_size > 1)

    def wrap(self, objective: Objective, policy: PrecisionPolicy) -> nn.Module:
        """The objective on its device, wrapped for tensor parallelism, FSDP2 or DDP as the layout needs.

        Raises:
            InputError: the model's layers do not divide by `tensor_size`.
        """
        objective.to(self.device)
        if self.mesh is None:
            return objective
        for table in word_embeddings(objective):
            table.dense_grad = True
        if self.tensor_size > 1:
            apply_tensor_parallel(objective.head, self.mesh["tensor"])
        if self.fsdp:
            apply_fsdp(objective.head, self.mesh["shard"], policy.dtype)
        elif self.data_size > 1 and self.tensor_size > 1:
            # DistributedDataParallel takes no DTensors; FSDP2 with a single shard per replica does.
            apply_fsdp(objective.head, self.mesh["replicate", "shard"], policy.dtype)
        elif self.data_size > 1:
            devices = [self.device.index] if self.device.type == "cuda" else None
            group = self.mesh.get_group("replicate")
            options: dict[str, Any] = {"process_group": group, "gradient_as_bucket_view": True}
            return DistributedDataParallel(objective, devices, **options)
        return objective

    @property
    def grad_scaler(self) -> Callable[..., torch.amp.GradScaler]:
        """The class of GradScaler that sees an overflow in any process's shard of the gradients."""
        return ShardedGradScaler if self.is_sharded else torch.amp.GradScaler

    def gradient_sync(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Context of one micro-batch: gradients are reduced over the processes after the `last` one."""
        if isinstance(module, DistributedDataParallel) and not last:
            return module.no_sync()
        if isinstance(module, Objective) and isinstance(module.head, FSDPModule):
            module.head.set_requires_gradient_sync(last)
        return nullcontext()

    def zero_grad(self, objective: Objective, optimizer: torch.optim.Optimizer) -> None:
        """Clears the gradients after a step."""
        if self.mesh is None:
            for table in word_embeddings(objective):
                table.recycle_grad()
        optimizer.zero_grad(set_to_none=True)

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the data-parallel processes."""
        if self.data_size == 1:
            return values
        assert self.mesh is not None
        total, group = values.clone(), self.data_group
        if total.device.type != "cpu":
            group = self.mesh.get_group("shard" if self.fsdp else "replicate")
        dist.all_reduce(total, group=group)
        return total

    @property
    def rank_and_size(self) -> tuple[int, int]:
        """This process's rank among all, and how many there are."""
        return self.data_rank * self.tensor_size + self.tensor_rank, self.data_size * self.tensor_size

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        if self.all_group is None:
            return [value]
        values: list[Any] = [None] * self.rank_and_size[1]
        dist.all_gather_object(values, value, group=self.all_group)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.all_group is None:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.all_group)
        return bool(value)

    def barrier(self) -> None:
        """Waits until every process has called this."""
        if self.all_group is not None:
            dist.barrier(self.all_group)

    def assert_equal_across_ranks(self, value: T, what: str) -> T:
        """Checks that all processes have the same value.

        Raises:
            InputError: they differ, as on hosts that do not share the run's folder.
        """
        values = self.gather(value)
        if any(other != values[0] for other in values):
            raise InputError(f"the processes differ in {what}", "--out", "give a folder that all hosts share")
        return value

    def full_head(self, head: Head) -> Head:
        """The head with its full weights, to evaluate or save: itself, or a copy if it is sharded.

        The copy is in FP32 on this process's device, and running it needs no communication.
        """
        if not self.is_sharded:
            return head
        state = {name: tensor.to(self.device) for name, tensor in full_weights(head).items()}
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
            copy = head_for(head.task)(head.config)
        copy.load_state_dict(state, assign=True)
        copy.shape_grid = head.shape_grid
        return copy.train(head.training)
