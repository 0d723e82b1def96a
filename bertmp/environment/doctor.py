"""`bertmp doctor`: what this machine has, and which commands can run here."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bertmp.core.hardware import Gpu, Machine, machine, nvidia_driver
from bertmp.core.io import home
from bertmp.environment.components import Component, components
from bertmp.environment.downloads import ASSETS, folder_of, is_complete
from bertmp.environment.requirements import CommandCheck, check_commands


@dataclass(frozen=True)
class Diagnosis:
    """What `bertmp doctor` found.

    Attributes:
        machine: processor, memory, system.
        gpus: the NVIDIA GPUs; empty where there are none.
        gpu_problem: why no GPU was found; empty where one was.
        driver_cuda: the newest CUDA that the driver runs; empty without a driver.
        python: the version and the path of this Python.
        components: libraries and servers, usable or not.
        home: where downloads and Triton are kept.
        assets: each asset of `bertmp download` and whether it is there and intact.
        commands: for each command, whether it can run.
    """

    machine: Machine
    gpus: tuple[Gpu, ...]
    gpu_problem: str
    driver_cuda: str
    python: str
    components: tuple[Component, ...]
    home: Path
    assets: dict[str, bool]
    commands: tuple[CommandCheck, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, the attributes' names as keys; GPUs with the types of their tensor cores."""
        return {
            **asdict(self),
            "home": str(self.home),
            "gpus": [
                {
                    **asdict(gpu),
                    "fp16_tensor_cores": gpu.fp16_tensor_cores,
                    "bf16_tensor_cores": gpu.bf16_tensor_cores,
                }
                for gpu in self.gpus
            ],
            "components": [{**asdict(part), "usable": part.usable} for part in self.components],
        }


def doctor() -> Diagnosis:
    """Looks up what this machine has; changes nothing and needs no network."""
    here, driver, found = machine(), nvidia_driver(), components()
    return Diagnosis(
        machine=here,
        gpus=driver.gpus,
        gpu_problem=driver.problem,
        driver_cuda=driver.cuda,
        python=f"{platform.python_version()} ({sys.executable})",
        components=found,
        home=home(),
        assets={name: is_complete(asset, folder_of(name)) for name, asset in ASSETS.items()},
        commands=check_commands(found, driver.gpus, here.bf16_cpu),
    )
