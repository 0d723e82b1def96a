"""A model over several processes: how it is split, the gradients of a step, and the state of a run.

The model is split tensor parallel, by FSDP2, or replicated, and combined. The mesh has the dimensions
`replicate`, `shard` and `tensor`; an unused one has size 1. Neighbours on `tensor` are neighbours on the
host, since they communicate most.

A state has plain tensors by parameter name, the same for every layout of the processes.
`torch.distributed.checkpoint.state_dict` is not used: of an optimizer that has not stepped yet, it returns a
state with a step count of 1 (torch 2.13), so that a run resumed from step 0 would differ in its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.utils import get_total_norm
from torch.utils.checkpoint import checkpoint

from bertmp.core.errors import InputError
from bertmp.model.bert import Layout, SelfAttention
from bertmp.model.heads import Head, LossOptions
from bertmp.model.packed import Batch
from bertmp.training.cpu_tuning import word_embeddings

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


def full_tensor(tensor: Tensor, keep: bool = True) -> Tensor:
    """The full tensor on the CPU, from the shards of all processes, which call this at the same time.

    A tensor on the CPU is not copied, which would take three times the memory of the weights for a state:
    write or read it before the next step changes it.

    Args:
        keep: whether this process needs it; an empty tensor is returned where not.
    """
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().to("cpu") if keep else torch.empty(0)


def distribute_like(full: Tensor, like: Tensor) -> Tensor:
    """A full tensor, sharded like `like` and on its device, without communication."""
    full = full.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
    return full


def full_weights(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """The full weights of a model."""
    if isinstance(model, FSDPModule):
        model.reshard()
    return {name: full_tensor(tensor, keep) for name, tensor in model.state_dict().items()}


def full_state(model: nn.Module, optimizer: torch.optim.Optimizer, keep: bool) -> dict[str, Any]:
    """The full weights, and the optimizer's state of each parameter, by the parameter's name.

    Called by all processes; the tensors are empty unless `keep`. Rates and decays are settings.
    """
    moments: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            entries = optimizer.state[parameter].items()
            moments[name] = {key: full_tensor(v, keep) if isinstance(v, Tensor) else v for key, v in entries}
    return {"model": full_weights(model, keep), "optimizer": moments}


def load_full_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads what `full_state` returned, under this or another layout."""
    own, moments = model.state_dict(), state["optimizer"]
    model.load_state_dict({name: distribute_like(full, own[name]) for name, full in state["model"].items()})
    # Fused updates count their steps on the device, the others on the CPU.
    counters = next(model.parameters()).device if optimizer.defaults.get("fused") else torch.device("cpu")

    def restored(value: Any, parameter: Tensor) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.shape == parameter.shape:
            return distribute_like(value, parameter)
        return value.to(counters, copy=True)  # a step counter

    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if name in moments:
            entries = moments[name].items()
            optimizer.state[parameter] = {key: restored(value, parameter) for key, value in entries}


def local_tensor(tensor: Tensor) -> Tensor:
    """The shard of a tensor that this process holds; shares its storage."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def clip_gradients(module: nn.Module, limit: float) -> float:
    """Clips all gradients to an L2 norm of `limit`, in place (Pascanu et al. 2013).

    `torch.nn.utils.clip_grad_norm_` takes no tensors from different meshes. Of a word embedding's gradient
    only the rows that were looked up are read and scaled.

    Returns:
        The norm before clipping, of the full gradient over all shards in all processes.
    """
    rows = {id(each.weight): each.rows() for each in word_embeddings(module)}
    gradients = [(each.grad, rows.get(id(each))) for each in module.parameters() if each.grad is not None]
    nonzero = [local_tensor(grad) if index is None else grad[index] for grad, index in gradients]
    norm = _total_norm([grad for grad, _ in gradients], nonzero)
    if float(norm) > limit:
        torch._foreach_mul_(nonzero, limit / (norm + 1e-6))
        for (grad, index), values in zip(gradients, nonzero, strict=True):
            if index is not None:
                grad.index_copy_(0, index, values)
    return float(norm)


def _total_norm(gradients: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all gradients, a scalar; `values` are their elements in this process."""
    groups: dict[Any, list[Tensor]] = {}
    for gradient, local in zip(gradients, values, strict=True):
        groups.setdefault(_sharded_dims(gradient), []).append(local)
    squares = []
    for (mesh, dims), members in groups.items():
        square = get_total_norm(members).double() ** 2  # exact: a float's square fits in a double
        for dim in dims:
            dist.all_reduce(square, group=mesh.get_group(dim))
        squares.append(square)
    return torch.stack(squares).sum().sqrt().float()


def _sharded_dims(tensor: Tensor) -> tuple[Any, tuple[int, ...]]:
    """The mesh of a tensor and the mesh dimensions over which it is sharded."""
    if not isinstance(tensor, DTensor):
        return None, ()
    return tensor.device_mesh, tuple(i for i, p in enumerate(tensor.placements) if not p.is_replicate())


class ShardedGradScaler(torch.amp.GradScaler):
    """torch's GradScaler for sharded gradients: an overflow in one process is one in all."""

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
        shards = [local_tensor(each.grad) for each in parameters if each.grad is not None]
        torch._amp_foreach_non_finite_check_and_unscale_(shards, found_inf, inv_scale)
        dist.all_reduce(found_inf, op=dist.ReduceOp.MAX)
        return {found_inf.device: found_inf}
