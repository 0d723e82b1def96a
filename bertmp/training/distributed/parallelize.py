"""How a model is spread over the processes: tensor parallel, sharded, replicated, and together.

The processes stand on one mesh with the dimensions `replicate`, `shard` and `tensor`; a dimension that is
not used has size 1. Neighbours on `tensor` are neighbours on the host, since they talk most.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from bertmp.core.errors import InputError
from bertmp.model.attention import Layout
from bertmp.model.bert import SelfAttention
from bertmp.model.config import BertConfig
from bertmp.model.heads import Head

MESH = ("replicate", "shard", "tensor")


def check_tensor_parallel(config: BertConfig, size: int) -> None:
    """Whether a model can be shared out to `size` processes.

    Errors: InputError where the heads or the feed-forward network's width do not divide by it.
    """
    for name, value in (("heads", config.num_attention_heads), ("wide units", config.intermediate_size)):
        if value % size:
            raise InputError(
                f"the model's {value} {name} do not divide into {size} parts",
                "--tensor-parallel",
                f"give a divisor of {value}",
            )


def split_layers(head: Head, mesh: DeviceMesh) -> None:
    """Tensor parallel (Shoeybi et al. 2019): every process of the mesh has some heads and some wide units.

    Embeddings, LayerNorms, pooler and the head on top are whole in each. A block exchanges activations twice
    forward, after attention and after the feed-forward network.
    """
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
            draw_apart(module, mesh.get_local_rank())


def draw_apart(attention: SelfAttention, rank: int) -> None:
    """Dropout inside attention differs between the processes, while outside it stays the same in all.

    Outside, all processes hold the same activations and must drop the same ones; inside, each has heads of
    its own, and heads that drop the same places would not be independent.
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


def shard_weights(head: Head, mesh: DeviceMesh, products: torch.dtype) -> None:
    """FSDP2: weights, gradients and optimizer states spread over the mesh, gathered a block at a time.

    Args:
        mesh: one dimension to shard over, or two: replicas of shards.
        products: the type of the matrix products. The blocks' matrices are gathered in it, which is what
            autocast would make of them; LayerNorms, embeddings and the head are gathered in FP32. Inputs are
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
    sums = head.sums
    # FSDP hangs its backward hook on what comes out and asks that it be no view.
    head.sums = lambda batch, options: sums(batch, options).clone()  # type: ignore[method-assign]
    register_fsdp_forward_method(head, "sums")
