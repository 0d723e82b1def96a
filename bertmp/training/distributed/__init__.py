"""Several processes as one run.

`launch` starts the process group, `context` is what the training loop sees, `parallelize` splits the model,
`dtensor_grads` and `full_state_dict` work on sharded gradients and states.
"""

from __future__ import annotations

from bertmp.training.distributed.context import DistributedContext
from bertmp.training.distributed.launch import Processes, is_first, join
from bertmp.training.distributed.parallelize import checkpoint_activations

__all__ = ["DistributedContext", "Processes", "checkpoint_activations", "is_first", "join"]
