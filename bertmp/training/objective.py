"""The forward pass of a training step as a module, which DDP and FSDP2 can wrap."""

from __future__ import annotations

from torch import Tensor, nn

from bertmp.model.batch import Batch
from bertmp.model.heads import Head, LossOptions


class Objective(nn.Module):
    """A head and the options of its loss.

    Args:
        head: the model.
        options: label smoothing and class weights.
    """

    def __init__(self, head: Head, options: LossOptions) -> None:
        super().__init__()
        self.head, self.options = head, options

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss of each of the head's terms, FP32 `[losses]`."""
        return self.head.loss_sums(batch, self.options).float()

    def loss_counts(self, batch: Batch) -> list[float]:
        """The number of summands of each term; see `Head.loss_counts`."""
        return self.head.loss_counts(batch, self.options)
