"""The reference: the FP32 checkpoint that the bundle was exported from, in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertmp.core.errors import InputError
from bertmp.export.bundle.manifest import StageRecord
from bertmp.export.parity.inputs import answer_all
from bertmp.export.parity.stage import ParityInputs, Skipped, StageOutput


@dataclass(frozen=True)
class TorchStage:
    """The checkpoint in torch on the CPU, FP32 throughout.

    Attributes:
        name: `torch-fp32`.
        folder: the checkpoint; None where the manifest has none.
        sha256: of the weights that were exported; empty where the manifest has none.
        chosen: whether the user named the folder, so that a wrong one is an error and not a reason.
    """

    name: str
    folder: Path | None
    sha256: str
    chosen: bool = False

    @classmethod
    def of(cls, export: StageRecord, checkpoint: Path | None, name: str) -> TorchStage:
        """The stage for a bundle's export entry; `checkpoint` takes the place of the folder it names."""
        recorded = export.settings.get("checkpoint")
        sha256 = export.results.get("checkpoint_sha256") or export.settings.get("checkpoint_sha256") or ""
        if checkpoint is not None:
            return cls(name, Path(checkpoint), str(sha256), chosen=True)
        return cls(name, Path(str(recorded)) if recorded else None, str(sha256))

    def obstacle(self) -> str:
        """Why the checkpoint cannot be the reference; empty where it can."""
        from bertmp.model.weights import fingerprint

        if self.folder is None:
            return "the manifest names no checkpoint"
        try:
            found = fingerprint(self.folder)
        except InputError:
            return f"the checkpoint is not on this machine: {self.folder}"
        if self.sha256 and found != self.sha256:
            return f"the checkpoint is not the one that was exported: {self.folder}"
        return ""

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        """Answers all examples.

        Raises:
            InputError: the user named a checkpoint that cannot be the reference, or its files are
                damaged.
        """
        if obstacle := self.obstacle():
            if self.chosen:
                raise InputError(
                    obstacle.split(": ")[0],
                    str(self.folder),
                    "name the folder that was exported with --checkpoint",
                )
            return Skipped(obstacle)
        assert self.folder is not None
        import torch

        from bertmp.model.checkpoint import load_checkpoint

        model = load_checkpoint(self.folder, "classification").model

        def answer(feed: dict[str, np.ndarray]) -> np.ndarray:
            return np.asarray(model(*map(torch.from_numpy, feed.values())).numpy())

        with torch.inference_mode():
            logits = answer_all(inputs, answer, advance)
        return StageOutput(logits, details={"runs on": "torch, CPU"})
