"""How a text model uses a machine without a GPU: the table `serving` of its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bertmp.core.hardware import Machine
from bertmp.core.io import JsonSerializable

PROCESS_BYTES = 150 * 2**20
"""What a worker takes beside its graph: Python, the libraries, the tokenizer, a run's tensors."""

BF16_COPIES = 4
"""How many times its graph a worker takes in BF16: OpenVINO keeps the weights as they are read, too."""

MAX_TOKENS = 256
"""More tokens in a run are hardly faster, and the texts of a run wait for each other."""
MAX_PADDING = 0.2
"""A run that is padded by more takes longer than the runs that it saves."""
PREFERRED_BATCH = 4
"""With more texts at once, a few more are answered per second, and the slowest in a hundred wait for half as
long again."""


@dataclass(frozen=True)
class ServingTable(JsonSerializable):
    """The table.

    Attributes:
        cores: the cores that it was derived for.
        workers: processes, each with its own copy of the graph.
        threads: of one run.
        max_tokens: the most tokens of a run, padding included.
        max_padding: the most padding of a run, as a share of its tokens.
        graph: the file that a worker runs itself; empty where it calls the encoder.
        preferred_batch: the texts that a worker takes at once, where as many wait; Triton's
            `preferred_batch_size`.
    """

    cores: int
    workers: int
    threads: int
    max_tokens: int = MAX_TOKENS
    max_padding: float = MAX_PADDING
    graph: str = ""
    preferred_batch: int = PREFERRED_BATCH

    @classmethod
    def derive(cls, machine: Machine, graph_bytes: int, graph: str) -> ServingTable:
        """One worker of one thread per core, as far as these fit into half of the memory.

        Args:
            graph_bytes: what a worker's graph takes: the size of its files, several times that in BF16.
        """
        fit = max(1, int(machine.memory_bytes // 2 // (graph_bytes + PROCESS_BYTES)))
        workers = min(machine.cores, fit)
        return cls(machine.cores, workers, machine.cores // workers, graph=graph)

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> ServingTable | None:
        """The table of a text model's configuration in Triton's JSON form; None where it has none."""
        return cls.parse(config.get("parameters", {}).get("serving", {}).get("string_value", ""))

    @classmethod
    def parse(cls, text: str) -> ServingTable | None:
        """The table of a configuration's parameter; None where it holds none."""
        values = json.loads(text) if text else {}
        return cls(**values) if "workers" in values else None

    def to_text(self) -> str:
        """As a parameter of the configuration."""
        return json.dumps(asdict(self))

    def sentence(self) -> str:
        """The table in one line."""
        return "[serving] " + ", ".join(f"{name} = {json.dumps(one)}" for name, one in asdict(self).items())
