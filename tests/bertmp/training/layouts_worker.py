"""One of several processes that train the same runs one after the other, each run in its layout.

Started by torchrun with a JSON list of the arguments of `train`. Starting processes is what costs the time,
so one start serves many layouts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from bertmp import train


def main(plan: Path) -> None:
    dist.init_process_group("gloo")
    for options in json.loads(plan.read_text(encoding="utf-8")):
        train(eval_data=Path(options["data"]), **options)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
