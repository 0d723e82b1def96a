"""Activation checkpointing (Chen et al. 2016): the backward pass computes a block's activations again."""

from __future__ import annotations

from functools import partial

from torch.utils.checkpoint import checkpoint

from bertmp.model.heads import Head


def checkpoint_activations(head: Head) -> None:
    """Keeps each block's input alone; the rest of the block is computed a second time when it is needed.

    Dropout draws the same numbers again, so losses and gradients are those of a run that keeps everything.
    The modules and their names stay as they are.
    """
    for block in head.bert.encoder.layer:
        # In the place of `forward`, below the hooks: a sharded block is gathered before it is recomputed.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
