"""Starts and ends the process group of a run; one process that fails ends the others.

torchrun starts the processes and sets `RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `MASTER_ADDR`, …, on one host or
many. Without torchrun there is a single process.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from bertmp.core.errors import BertmpError, InputError
from bertmp.training.distributed.context import DistributedContext, make_context

TIMEOUT = timedelta(minutes=10)
"""How long a collective waits for a process that does not answer. A process that ends is noticed at once."""

_REPORT_TIMEOUT = timedelta(seconds=5)


class ProcessLost(BertmpError):
    """Another process of the run ended or does not answer."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, before they are laid out on a mesh.

    Attributes:
        rank, size: this process, counted from 0, and how many there are.
        device: this process's device.
    """

    rank: int
    size: int
    device: torch.device

    def arrange(self, data_parallel: int | None, tensor_parallel: int, fsdp: bool) -> DistributedContext:
        """Lays the processes out on a mesh.

        Args:
            data_parallel: data-parallel groups; None for as many as the processes allow.
            tensor_parallel: processes per group, which split the weights of each layer.
            fsdp: whether weights and optimizer states are sharded over the groups, or replicated.

        Raises:
            InputError: the sizes do not multiply to the number of processes.
        """
        groups = data_parallel or max(1, self.size // tensor_parallel)
        needed = groups * tensor_parallel
        if needed != self.size:
            asked = f"--data-parallel {groups} --tensor-parallel {tensor_parallel}"
            launch = f"torchrun --nproc-per-node {needed} -m bertmp train …"
            flag = "--data-parallel" if data_parallel else "--tensor-parallel"
            count, todo = f"are {self.size}", f"start {needed}, or change the options"
            if self.size == 1:
                count, todo = "is 1", f"start them with '{launch}'"
            raise InputError(f"{asked} needs {needed} processes and there {count}", flag, todo)
        if self.size == 1:
            return DistributedContext(self.device)
        return make_context(self.device, self.rank, groups, tensor_parallel, fsdp)


def is_first() -> bool:
    """Whether this is rank 0 of torchrun, or a single process: the one that prints the result."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def join() -> Iterator[Processes]:
    """Initialises the process group, and destroys it when the block ends.

    Where processes fail, the first to do so raises its error and the others end quietly with its kind of
    exit code: one line is printed, however many there are.

    Raises:
        ProcessLost: another process ended without an error of its own.
    """
    if dist.is_initialized():  # the caller's own process group: the caller ends it
        yield Processes(dist.get_rank(), dist.get_world_size(), _device())
        return
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes(0, 1, _device())
        return
    with _report_first_failure(_init_process_group()):
        yield Processes(dist.get_rank(), dist.get_world_size(), _device(check=True))
    dist.destroy_process_group()


def _device(check: bool = False) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if check and local >= torch.cuda.device_count():
        what = f"this host has {torch.cuda.device_count()} GPUs and more processes"
        raise InputError(what, f"local process {local}", "reduce --nproc-per-node")
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def _init_process_group() -> dist.Store:
    """Initialises the process group; returns the store that all processes share while torchrun runs."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # The n-th run of these processes must not read what the one before left in the store.
        store = dist.PrefixStore(f"bertmp/{store.add(f'bertmp/runs/{rank}', 1)}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    except (dist.DistError, RuntimeError, ValueError) as error:
        what = "the processes do not find each other"
        raise ProcessLost(what, _first_line(error), "check torchrun's addresses") from error
    return store


@contextmanager
def _report_first_failure(store: dist.Store) -> Iterator[None]:
    try:
        yield
    except (BertmpError, KeyboardInterrupt) as error:
        if _is_first_failure(store):
            raise
        raise SystemExit(getattr(error, "exit_code", 130)) from error
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        if not lost and "Connection closed" not in str(error):
            raise
        if _is_first_failure(store):
            what = "another process of the run is gone"
            raise ProcessLost(what, _first_line(error), "see torchrun's report, then --resume") from error
        raise SystemExit(ProcessLost.exit_code) from error


def _is_first_failure(store: dist.Store) -> bool:
    """Whether this process is the first to fail; the others wait here until it has reported its error.

    torchrun ends all processes as soon as one has ended, and must not end the one that reports.
    """
    try:
        first = store.add("failed", 1) == 1
    except (dist.DistError, RuntimeError):  # without torchrun the store ends with its process
        return True
    if first:
        atexit.register(store.set, "reported", "yes")
    else:
        with suppress(dist.DistError, RuntimeError):
            store.wait(["reported"], _REPORT_TIMEOUT)
    return first


def _first_line(error: BaseException) -> str:
    """The message without Gloo's source location and advice."""
    line = str(error).strip().split("\n")[0]
    return re.sub(r"^\[/\S+\] ", "", line).split(". ")[0]
