"""Training steps of random texts, timed: what a GPU's speed and memory are measured with."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

import torch

from benchmarks.flops import Work, pretraining_flops
from benchmarks.machine import synchroniser
from benchmarks.subprocess_runner import peak_memory
from benchmarks.synthetic import RandomTexts, masked
from bertmp.model import packed
from bertmp.model.bert import initialise
from bertmp.model.config import BertConfig
from bertmp.model.heads import LossOptions
from bertmp.model.heads.pretraining import PreTraining
from bertmp.training.amp import PrecisionPolicy
from bertmp.training.distributed import DistributedContext
from bertmp.training.distributed.sharding import Objective
from bertmp.training.loop import Trainer
from bertmp.training.metrics import read_metrics
from bertmp.training.train_options import TrainOptions

Attention = Literal["matmul", "varlen"]
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class Measured:
    """Some steps of one model in one precision.

    Attributes:
        seconds: of the measured steps, `examples` and `tokens` what they read, `flops` what they had to do.
        peak_memory_bytes: of the allocator on CUDA, of the process on the CPU.
        losses: of every step, the unmeasured ones too.
    """

    seconds: float
    examples: int
    tokens: int
    flops: float
    peak_memory_bytes: int
    losses: tuple[float, ...]


class Clock:
    """A progress callback that takes the time of a run's last steps, once the device has done them."""

    def __init__(self, first: int, last: int, wait: Callable[[], None]) -> None:
        self.first, self.last, self.wait = first, last, wait
        self.marks: dict[int, float] = {}

    def __call__(self, message: str, completed: int | None = None, total: int | None = None, /) -> None:
        if completed in (self.first, self.last):
            self.wait()
            self.marks[completed] = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.marks[self.last] - self.marks[self.first]


def measure_steps(
    config: BertConfig,
    precision: str,
    context: DistributedContext,
    length: int,
    batch: int,
    unmeasured: int,
    measured: int,
    attention: Attention = "varlen",
) -> Measured:
    """Pre-trains a model from random weights for a few steps, through the loop that `bertmp train` runs.

    Args:
        precision: one of `PRECISIONS`; `tf32` is FP32 with its matrix products on TF32 tensor cores.
        length, batch: tokens of each text, and texts a step.
        attention: `varlen` as training has it, with torch's variable-length kernel where there is one;
            `matmul` for matrix products and a softmax, which every precision has.

    Raises:
        torch.OutOfMemoryError: .
    """
    device = context.device
    clock = Clock(unmeasured, unmeasured + measured, synchroniser(device))
    data = RandomTexts.of(config, [length] * batch)
    products = _products_in("high" if precision == "tf32" else "highest")
    with _fresh_memory(device), products, _attention_by(attention):
        trainer = make_trainer(config, "fp32" if precision == "tf32" else precision, context, data, clock)
        trainer.train()
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    work = Work.of([length] * batch).times(measured)
    flops = pretraining_flops(config, work, masked(length) * work.texts)
    return Measured(
        clock.seconds, round(work.texts), round(work.tokens), flops, memory, logged_losses(trainer)
    )


def make_trainer(
    config: BertConfig,
    precision: str,
    context: DistributedContext,
    data: RandomTexts,
    clock: Clock,
    learning_rate: float = 1e-4,
) -> Trainer:
    """A pre-training run of `clock.last` steps, each over all of `data`, that saves nothing."""
    settings = TrainOptions(
        task="pretraining",
        data=Path("random"),
        model=Path("random"),
        out=Path(tempfile.gettempdir()) / "bertmp-random",
        steps=clock.last,
        batch_size=len(data),
        learning_rate=learning_rate,
        max_rollbacks=0,
        log_every=1,
        progress=clock,
    )
    with torch.device(context.device):
        head = PreTraining(config)
    initialise(head, config, torch.Generator(context.device).manual_seed(0))
    policy = PrecisionPolicy.resolve(precision, "dynamic", context.device.type)
    return Trainer(Objective(head, LossOptions()), data, None, settings, policy, context, {})


def logged_losses(trainer: Trainer) -> tuple[float, ...]:
    """The loss of each step, from the metrics file that the main process writes."""
    lines = read_metrics(trainer.settings.out / "metrics.jsonl")
    return tuple(line["loss"] for line in lines if "loss" in line)


@contextmanager
def _fresh_memory(device: torch.device) -> Iterator[None]:
    """Nothing of an earlier run counts, and nothing of this one stays."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield


@contextmanager
def _attention_by(kind: Attention) -> Iterator[None]:
    """Training's kind of attention for the length of the block."""
    if kind == "varlen":
        yield
        return
    with mock.patch.object(packed, "has_varlen_kernel", return_value=False):
        yield


@contextmanager
def _products_in(precision: str) -> Iterator[None]:
    """torch's precision of FP32 matrix products for the length of the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
