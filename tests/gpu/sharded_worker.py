"""One process of a sharded run, started by torchrun: `python sharded_worker.py OUT.json PRECISION SHARD`.

Builds the context itself, so that a single GPU is sharded too, over NCCL. The first process writes the
losses and whether its weights are DTensors.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from benchmarks.machine import synchroniser
from benchmarks.steps import Clock, logged_losses, make_trainer
from benchmarks.synthetic import RandomTexts
from bertmp.model.config import BertConfig
from bertmp.training.distributed.context import DistributedContext, make_context

CONFIG = BertConfig(
    vocab_size=300,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=128,
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
SIZES = (20, 33, 5, 64, 12, 12, 40, 7)
STEPS = 16


def losses(context: DistributedContext, precision: str) -> tuple[Sequence[float], bool]:
    """Each step's loss, in the main process, and whether the weights were DTensors."""
    clock = Clock(1, STEPS, synchroniser(context.device))
    trainer = make_trainer(CONFIG, precision, context, RandomTexts.of(CONFIG, SIZES), clock, 3e-3)
    trainer.train()
    found = logged_losses(trainer) if context.is_main else ()
    return found, all(isinstance(p, DTensor) for p in trainer.objective.head.parameters())


def main() -> None:
    out, precision = Path(sys.argv[1]), sys.argv[2]
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    found, sharded = losses(make_context(device, rank, size, 1, fsdp=True), precision)
    if rank == 0:
        backend = dist.get_backend_config().split(",") if on_gpu else ["cpu:gloo"]
        out.write_text(json.dumps({"losses": found, "sharded": sharded, "size": size, "backends": backend}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
