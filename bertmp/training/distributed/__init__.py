"""Several processes as one run: how they find each other, what each holds, and how they add up.

`processes` joins them, `world` is what the loop sees, `layouts` spreads the model over them, `pieces` and
`wholes` put together what is spread.
"""

from __future__ import annotations

from bertmp.training.distributed.activation_checkpointing import checkpoint_activations
from bertmp.training.distributed.context import DistributedContext
from bertmp.training.distributed.launch import Processes, is_first, join

__all__ = ["DistributedContext", "Processes", "checkpoint_activations", "is_first", "join"]
