"""Several processes as one run.

`launch` starts the process group, `context` is what the training loop sees, `sharding` splits the model and
works on its gradients and state.
"""

from bertmp.training.distributed.context import DistributedContext
from bertmp.training.distributed.launch import Processes, is_first, join
from bertmp.training.distributed.sharding import checkpoint_activations

__all__ = ["DistributedContext", "Processes", "checkpoint_activations", "is_first", "join"]
