"""The bundle: the folder that `export` makes and the later stages complete."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.io import read_json
from bertmp.data.tokenizer import Tokenizer
from bertmp.export.bundle.manifest import Manifest

FP32_GRAPH = "model.onnx"
FP16_GRAPH = "model.fp16.onnx"
PLAN = "precision-plan.json"
CONFIG = "config.json"
LABELS = "labels.txt"
ENGINE = "engine/model.plan"
NETWORK = "engine/network.json"

EXPORT, CONVERT, BUILD_ENGINE, PARITY = "export", "convert", "build-engine", "parity"
"""The stages' names in the manifest."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on the disk; its files are read when asked for.

    Attributes:
        folder: the bundle's folder.
    """

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Checks that `folder` is a bundle whose graphs are there.

        Errors: InputError where it is not.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError("no such bundle", folder, "make one with 'bertmp export'")
        Manifest.load(folder)
        if not (folder / FP32_GRAPH).is_file():
            raise InputError(f"the bundle has no {FP32_GRAPH}", folder, "export the checkpoint again")
        return cls(folder)

    @property
    def manifest(self) -> Manifest:
        """The manifest as it stands on the disk now."""
        return Manifest.load(self.folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`, Hugging Face's keys."""
        return dict(read_json(self.folder / CONFIG))

    @property
    def task(self) -> str:
        """The head that was exported, such as `classification`."""
        exported = self.manifest.stages.get(EXPORT)
        return str(exported.settings.get("task", "classification")) if exported else "classification"

    @property
    def max_positions(self) -> int:
        """The longest sequence the model takes, in tokens."""
        return int(self.config["max_position_embeddings"])

    @cached_property
    def labels(self) -> list[str]:
        """The classes' names, in the order of the logits; empty for a head without classes."""
        path = self.folder / LABELS
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder, self.max_positions)
