"""How the processes of a run find each other, and how one that fails takes the others with it.

torchrun starts them and says to each who it is (`RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `MASTER_ADDR`, …), on
one host or on many. Without torchrun a process is alone.
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
"""How long an exchange waits for a process that does not come. A process that ends is noticed at once."""

_TOLD_WITHIN = timedelta(seconds=5)


class ProcessLost(BertmpError):
    """Another process of the run ended or fell silent."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, before they are given their parts.

    Attributes:
        rank, size: this process, counted from 0, and how many there are.
        device: this process's device.
    """

    rank: int
    size: int
    device: torch.device

    def arrange(self, data_parallel: int | None, tensor_parallel: int, shard: bool) -> DistributedContext:
        """Gives every process its part.

        Args:
            data_parallel: groups that share out the examples; as many as there are processes for where None.
            tensor_parallel: processes of such a group, which share out the layers' weights.
            shard: whether weights and optimizer states are spread over the groups, or whole in each.

        Errors: InputError where the parts do not come out at the number of processes.
        """
        groups = data_parallel or max(1, self.size // tensor_parallel)
        needed = groups * tensor_parallel
        if needed != self.size:
            asked = f"--data-parallel {groups} --tensor-parallel {tensor_parallel}"
            launch = f"torchrun --nproc-per-node {needed} -m bertmp train …"
            raise InputError(
                f"{asked} needs {needed} processes and there {_count(self.size)}",
                "--data-parallel" if data_parallel else "--tensor-parallel",
                f"start them with '{launch}'" if self.size == 1 else f"start {needed}, or change the options",
            )
        if self.size == 1:
            return DistributedContext(self.device)
        return make_context(self.device, self.rank, groups, tensor_parallel, shard)


def is_first() -> bool:
    """Whether torchrun counts this process as the first, or there is no other: who prints the result."""
    return int(os.environ.get("RANK", 0)) == 0


def _count(size: int) -> str:
    return "is 1" if size == 1 else f"are {size}"


@contextmanager
def join() -> Iterator[Processes]:
    """Meets the other processes, and parts from them when the block ends.

    Where processes fail, the first to do so raises its error and the others end quietly with its kind of
    exit code: one line is printed, however many there are.

    Errors: ProcessLost where another process is gone without a word.
    """
    if dist.is_initialized():  # the caller's own processes: theirs to end
        yield Processes(dist.get_rank(), dist.get_world_size(), _device())
        return
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes(0, 1, _device())
        return
    with _one_of_us_tells(_meet()):
        yield Processes(dist.get_rank(), dist.get_world_size(), _device(check=True))
    dist.destroy_process_group()


def _device(check: bool = False) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if check and local >= torch.cuda.device_count():
        raise InputError(
            f"this host has {torch.cuda.device_count()} GPUs and more processes",
            f"local process {local}",
            "lower --nproc-per-node",
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def _meet() -> dist.Store:
    """Forms the process group; returns the board that all can write on, for as long as torchrun lives."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # The n-th run of these processes must not read what the one before left on the board.
        board = dist.PrefixStore(f"bertmp/{store.add(f'bertmp/runs/{rank}', 1)}", store)
        dist.init_process_group(backend, store=board, rank=rank, world_size=size, timeout=TIMEOUT)
    except (dist.DistError, RuntimeError, ValueError) as error:
        what = "the processes do not find each other"
        raise ProcessLost(what, _first_line(error), "check torchrun's addresses") from error
    return board


@contextmanager
def _one_of_us_tells(board: dist.Store) -> Iterator[None]:
    try:
        yield
    except (BertmpError, KeyboardInterrupt) as error:
        if _first_to_tell(board):
            raise
        raise SystemExit(getattr(error, "exit_code", 130)) from error
    except RuntimeError as error:
        if not _is_about_a_process(error):
            raise
        if _first_to_tell(board):
            what = "another process of the run is gone"
            raise ProcessLost(what, _first_line(error), "see torchrun's report, then --resume") from error
        raise SystemExit(ProcessLost.exit_code) from error


def _first_to_tell(board: dist.Store) -> bool:
    """Whether this process is the first to fail; the others wait here until it has said why.

    torchrun ends all processes as soon as one has ended, and must not cut off the one that speaks.
    """
    try:
        first = board.add("failed", 1) == 1
    except (
        dist.DistError,
        RuntimeError,
    ):  # the board is gone with the process that held it, without torchrun
        return True
    if first:
        atexit.register(board.set, "told", "yes")
    else:
        with suppress(dist.DistError, RuntimeError):
            board.wait(["told"], _TOLD_WITHIN)
    return first


def _is_about_a_process(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection closed" in str(error)


def _first_line(error: BaseException) -> str:
    """What happened, without the place in Gloo's sources and its advice."""
    line = str(error).strip().split("\n")[0]
    return re.sub(r"^\[/\S+\] ", "", line).split(". ")[0]
