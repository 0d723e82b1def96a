"""One of several processes that train the same runs one after the other, each run in its layout.

Started by torchrun with a JSON file of `{"task", "data", "model", "runs": {folder: options}}`. Starting
processes is what costs the time, so one start serves many layouts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from bertmp import train


def main(plan: Path) -> None:
    wanted = json.loads(plan.read_text(encoding="utf-8"))
    dist.init_process_group("gloo")
    for out, options in wanted["runs"].items():
        evaluation = Path(wanted["data"]) if options.get("eval_every") else None
        train(wanted["task"], wanted["data"], wanted["model"], out, eval_data=evaluation, **options)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
