"""A stand-in for a model, under whose name a new version is staged and tried."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from bertmp.core.io import write_text, writing_to
from bertmp.export.bundle import LABELS
from bertmp.serve.model_config import GPU_ONNX_FILE
from bertmp.serve.model_signature import read_model_config, render
from bertmp.serve.repository import CANARY, CONFIGS, ModelFolders, move


@contextmanager
def staging(folders: ModelFolders) -> Iterator[ModelFolders]:
    """The stand-in's folders for the length of the block; what is still in them then is removed.

    They have the model's configurations: a person's tuning is tried, too.
    """
    staged = replace(folders, suffix=CANARY)
    try:
        for source, target in ((folders.text, staged.text), (folders.encoder, staged.encoder)):
            for path in (source / name for name in (*CONFIGS, GPU_ONNX_FILE)):
                if path.is_file():
                    config = read_model_config(path)
                    config.name = target.name
                    write_text(target / path.relative_to(source), render(config))
            if (source / LABELS).is_file():
                write_text(target / LABELS, (source / LABELS).read_text(encoding="utf-8"))
        yield staged
    finally:
        for folder in (staged.text, staged.encoder):
            shutil.rmtree(folder, ignore_errors=True)


def copy_version(folders: ModelFolders, staged: ModelFolders, version: int) -> None:
    """Puts a version of the model into a stand-in's folders, too; its files are linked where that works."""
    for source, target in ((folders.encoder, staged.encoder), (folders.text, staged.text)):
        with writing_to(target):
            shutil.copytree(source / str(version), target / str(version), copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def take_over(folders: ModelFolders, staged: ModelFolders, version: int) -> None:
    """Moves a version from a stand-in's folders to the model's: the encoder first, each in one step."""
    for source, target in ((staged.encoder, folders.encoder), (staged.text, folders.text)):
        move(source / str(version), target / str(version))
