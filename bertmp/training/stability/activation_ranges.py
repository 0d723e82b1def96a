"""The largest activation of each module: what decides where a graph's FP16 will overflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bertmp.data.batches import length_sorted_batches
from bertmp.model.bert import Bert
from bertmp.model.heads import Head
from bertmp.training.distributed import DistributedContext
from bertmp.training.metrics import BATCH
from bertmp.training.tasks import TrainingData

FILE = "activation-ranges.json"
FORMAT = 1
SAMPLE = 512

Ranges = dict[str, dict[str, Tensor]]
"""Module → measure → FP32 scalar: `max_abs` of its output, and `input_max_abs` of a LayerNorm's input, the
sum of residual and projection that no module outputs."""


@contextmanager
def recording(head: nn.Module) -> Iterator[Ranges]:
    """Records every forward pass of `head`'s modules until the context ends.

    Does not synchronise with the device: the maxima stay there until they are read.
    """
    ranges: Ranges = {}
    readers = [module for module in head.modules() if isinstance(module, Bert)]
    parts = {name: module for name, module in head.named_modules() if name}
    handles = [
        part.register_forward_hook(partial(_record, ranges.setdefault(name, {})))
        for name, part in parts.items()
    ]
    for reader in readers:
        reader.all_positions = True
    try:
        yield ranges
    finally:
        for reader in readers:
            reader.all_positions = False
        for handle in handles:
            handle.remove()


def measured(
    head: Head, examples: TrainingData | None, train_examples: TrainingData, context: DistributedContext
) -> Ranges:
    """Runs `head` in FP32 over the evaluation examples, or the first `SAMPLE` training examples.

    Args:
        examples: the evaluation examples, if there are any.
        train_examples: the training examples.
    """
    head.eval()
    data = train_examples if examples is None else examples
    lengths = data.lengths(0)
    batches = length_sorted_batches(lengths[:SAMPLE] if examples is None else lengths, BATCH)
    own, processes = context.rank_and_size
    with torch.no_grad(), recording(head) as ranges:
        for part in batches[own::processes]:
            head.score(data.batch(part, 0).to(context.device))
    return ranges


def to_json(ranges: Ranges, data: str, context: DistributedContext) -> dict[str, Any]:
    """The content of the file; called by all processes, each of which saw part of the data and layers.

    Args:
        data: what the activations were measured on.

    Returns:
        `{"format", "data", "precision", "modules": {name: {"max_abs": …}}}`, in the model's order; modules
        that never ran are left out.
    """
    own = {name: {key: float(value) for key, value in seen.items()} for name, seen in ranges.items() if seen}
    modules: dict[str, dict[str, float]] = {}
    for part in context.gather(own):
        for name, seen in part.items():
            known = modules.setdefault(name, {})
            for key, value in seen.items():
                known[key] = value if value != value else max(value, known.get(key, 0.0))
    return {"format": FORMAT, "data": data, "precision": "fp32", "modules": modules}


def _record(seen: dict[str, Tensor], module: nn.Module, inputs: Any, output: Any) -> None:
    _widen(seen, "max_abs", output)
    if isinstance(module, nn.LayerNorm):
        _widen(seen, "input_max_abs", inputs[0])


def _widen(seen: dict[str, Tensor], key: str, value: Any) -> None:
    for tensor in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
            local = getattr(tensor, "to_local", lambda tensor=tensor: tensor)().detach()
            low, high = torch.aminmax(local)
            largest = torch.maximum(high.float(), -low.float())
            seen[key] = torch.maximum(seen[key], largest) if key in seen else largest
