"""How a model is split over the processes: tensor parallel, FSDP2, replicated and combined.

The mesh has the dimensions `replicate`, `shard` and `tensor`; an unused one has size 1. Neighbours on
`tensor` are neighbours on the host, since they communicate most.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

from bertmp.core.errors import InputError
from bertmp.model.attention import Layout
from bertmp.model.bert import SelfAttention
from bertmp.model.heads import Head, LossOptions
from bertmp.model.packed import Batch

MESH_DIMS = ("replicate", "shard", "tensor")


def apply_tensor_parallel(head: Head, mesh: DeviceMesh) -> None:
    """Tensor parallel (Shoeybi et al. 2019): each process has some heads and some intermediate units.

    Embeddings, LayerNorms, pooler and the head on top are replicated. A block reduces activations twice in
    the forward pass, after attention and after the feed-forward network.

    Raises:
        InputError: the heads or the feed-forward network's width do not divide by the number of processes.
    """
    sizes = {"heads": head.config.num_attention_heads, "intermediate units": head.config.intermediate_size}
    for name, value in sizes.items():
        if value % mesh.size():
            what = f"the model's {value} {name} do not divide into {mesh.size()} parts"
            raise InputError(what, "--tensor-parallel", f"give a divisor of {value}")
    for block in head.bert.encoder.layer:
        plan = {
            **{f"attention.self.{name}": ColwiseParallel() for name in ("query", "key", "value")},
            "attention.output.dense": RowwiseParallel(),
            "intermediate.dense": ColwiseParallel(),
            "output.dense": RowwiseParallel(),
        }
        parallelize_module(block, mesh, plan)
    for module in head.modules():
        if isinstance(module, SelfAttention):
            fork_attention_dropout_rng(module, mesh.get_local_rank())


def fork_attention_dropout_rng(attention: SelfAttention, rank: int) -> None:
    """Makes dropout inside attention differ between the ranks; elsewhere it stays the same in all.

    Elsewhere all ranks hold the same activations and must drop the same ones; inside attention each has its
    own heads, and heads that drop the same positions would not be independent.
    """

    forward = attention.forward

    def run(hidden: Tensor, layout: Layout) -> Tensor:
        if not attention.training:
            return forward(hidden, layout)
        seed = int(torch.randint(2**62, ()))
        with torch.random.fork_rng([hidden.device] if hidden.is_cuda else []):
            torch.manual_seed(seed + rank)
            return forward(hidden, layout)

    attention.forward = run  # type: ignore[method-assign]


def apply_fsdp(head: Head, mesh: DeviceMesh, products: torch.dtype) -> None:
    """FSDP2: weights, gradients and optimizer states sharded over the mesh, gathered one block at a time.

    Args:
        mesh: one dimension to shard over, or two: replicas of shards.
        products: the dtype of the matrix products. The blocks' matrices are gathered in it, as autocast
            would cast them; LayerNorms, embeddings and the head are gathered in FP32. Inputs are
            left as they are, so the residual stream stays FP32, and gradients are summed in FP32.
    """
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    lower = MixedPrecisionPolicy(products, torch.float32, cast_forward_inputs=False)
    for block in head.bert.encoder.layer:
        if products == torch.float32:
            fully_shard(block, mesh=mesh, mp_policy=exact)
            continue
        norms: list[nn.Module] = [module for module in block.modules() if isinstance(module, nn.LayerNorm)]
        fully_shard(norms, mesh=mesh, mp_policy=exact)
        fully_shard(block, mesh=mesh, mp_policy=lower)
    fully_shard(head, mesh=mesh, mp_policy=exact)
    loss_sums = head.loss_sums
    # FSDP registers its backward hook on the output, which must not be a view.
    head.loss_sums = lambda batch, options: loss_sums(batch, options).clone()  # type: ignore[method-assign]
    register_fsdp_forward_method(head, "loss_sums")


def checkpoint_activations(head: Head) -> None:
    """Activation checkpointing (Chen et al. 2016): the backward pass recomputes blocks from their inputs.

    Dropout draws the same numbers again, so losses and gradients do not change. Modules keep their names.
    """
    for block in head.bert.encoder.layer:
        # Replaces `forward`, below the hooks: a sharded block is gathered before it is recomputed.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


class Objective(nn.Module):
    """A head and the options of its loss.

    Args:
        head: the model.
        options: label smoothing and class weights.
    """

    def __init__(self, head: Head, options: LossOptions) -> None:
        super().__init__()
        self.head, self.options = head, options

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss of each of the head's terms, FP32 `[losses]`."""
        return self.head.loss_sums(batch, self.options).float()

    def loss_counts(self, batch: Batch) -> list[float]:
        """The number of summands of each term; see `Head.loss_counts`."""
        return self.head.loss_counts(batch, self.options)
