"""A batch of training examples: packed sequences and their targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bertmp.data.tokenizer import Encoded
from bertmp.model.packed import EXACT, Packed, ShapeGrid


@dataclass(frozen=True)
class Batch:
    """Sequences concatenated without padding.

    Attributes:
        input_ids, token_type_ids: INT64 `[tokens]`.
        lengths: number of tokens of each sequence.
        targets: the targets of the head's loss by name; see the heads.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    lengths: tuple[int, ...]
    targets: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    def layout(self, grid: ShapeGrid = EXACT) -> Packed:
        """The layout of the sequences, on the batch's device."""
        return Packed.of(self.lengths, self.input_ids.device, grid)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        targets = {name: tensor.to(device, non_blocking=True) for name, tensor in self.targets.items()}
        ids, types = (x.to(device, non_blocking=True) for x in (self.input_ids, self.token_type_ids))
        return Batch(ids, types, self.lengths, targets)


def pack(rows: Sequence[Encoded], targets: Mapping[str, Tensor]) -> Batch:
    """Concatenates encoded examples into one batch."""
    ids = np.fromiter((number for row in rows for number in row.input_ids), dtype=np.int64)
    types = np.fromiter((number for row in rows for number in row.token_type_ids), dtype=np.int64)
    return Batch(torch.from_numpy(ids), torch.from_numpy(types), tuple(len(row) for row in rows), targets)
