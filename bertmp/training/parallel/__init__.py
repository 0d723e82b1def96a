"""Several processes as one run: how they find each other, what each holds, and how they add up.

`processes` joins them, `world` is what the loop sees, `layouts` spreads the model over them, `pieces` and
`wholes` put together what is spread.
"""

from __future__ import annotations

from bertmp.training.parallel.checkpointing import recompute_activations
from bertmp.training.parallel.processes import Processes, is_first, join
from bertmp.training.parallel.world import World

__all__ = ["Processes", "World", "is_first", "join", "recompute_activations"]
