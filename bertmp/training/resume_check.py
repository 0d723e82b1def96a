"""Checks that a state is resumed with the data, model and options that it was saved with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.io import sha256_file
from bertmp.core.options import declared_options, renamed
from bertmp.model.checkpoint import LoadedCheckpoint
from bertmp.training.amp import PrecisionPolicy
from bertmp.training.train_options import TrainOptions


class OtherRun(InputError):
    """The state found was saved by another run."""


def run_identity(settings: TrainOptions, loaded: LoadedCheckpoint, policy: PrecisionPolicy) -> dict[str, Any]:
    """What a resumed run must share with the run that saved the state.

    Args:
        loaded: the checkpoint that the run starts from.
        policy: what `auto` resolves to on this machine.

    Returns:
        Name → plain JSON value; names that end in ` contents` hold a SHA-256.
    """
    # Options that change paths, how a step's work is divided, monitoring and output
    # are resumable. Dividing the work otherwise changes the rounding and what dropout draws, nothing else;
    # every other option changes what is learned, so it must be the same.
    options = settings.to_json()
    fixed = [declared for declared in declared_options(TrainOptions) if not declared.info.resumable]
    return {
        "data contents": _sha256_of(settings.data),
        "model contents": _model(settings.model),
        "tokenizer contents": loaded.tokenizer.fingerprint(),
        "--epochs": settings.epochs if settings.steps is None else None,
        "--precision": policy.mode,
        "--loss-scale": policy.static_scale or "dynamic",
        **{
            f"--{declared.name.replace('_', '-')}": options[declared.name]
            for declared in fixed
            if declared.name in options
        },
    }


def _model(path: Path) -> str:
    """The SHA-256 of a model's configuration and weights."""
    names = ("config.json", "*.safetensors", "*.bin")
    files = [path] if path.is_file() else sorted(file for name in names for file in path.glob(name))
    return "-".join(sha256_file(file) for file in files)


def _sha256_of(path: Path) -> str:
    """The SHA-256 of a file, or of the names and contents of all files in a folder."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def check_identity(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Compares the identity of a saved state with that of this run.

    Raises:
        OtherRun: they differ; names the first difference.
    """
    todo = "resume with the options of the run, or start in another folder"
    former = {
        f"--{new}".replace("_", "-"): f"--{old}".replace("_", "-")
        for old, new in renamed(TrainOptions).items()
    }
    for name, value in wanted.items():
        was = found.get(name, found.get(former.get(name, "")))  # version 0.1 used the former names
        if was == value:
            continue
        if name.endswith(" contents"):  # a SHA-256, of no use in a message
            raise OtherRun(f"the state was made with another {name.removesuffix(' contents')}", folder, todo)
        raise OtherRun(f"the state was made with {name} {was}, now it is {value}", folder, todo)
