"""What a resumed run must share with the run whose state it goes on from."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bertmp.core.io import sha256_file
from bertmp.model.checkpoint import LoadedCheckpoint
from bertmp.training.amp import PrecisionPolicy
from bertmp.training.train_options import TrainOptions

FREE = frozenset(
    {
        *("data", "model", "out", "eval_data"),  # the first two are compared by their contents
        "epochs",  # where steps are given, those say when the run ends
        *("precision", "loss_scale"),  # compared by the policy they come to
        *("accumulate", "workers", "data_parallel", "tensor_parallel", "shard", "activation_checkpointing"),
        *("eval_every", "save_every", "keep", "log_every", "max_skipped", "max_rollbacks", "rollback_rate"),
        *("explosion_factor", "explosion_steps", "min_scale", "keep_best", "patience"),
    }
)
"""Settings that a resumed run may change: where things lie, how a step's work is divided, what is watched
and written. Dividing the work otherwise changes the rounding and what dropout draws, and nothing else; every
other setting changes what is learned, so it must be the same."""


def identity(settings: TrainOptions, loaded: LoadedCheckpoint, policy: PrecisionPolicy) -> dict[str, Any]:
    """Name → value, all of them plain JSON; names that end in ` contents` hold fingerprints.

    Args:
        loaded: the checkpoint that the run starts from.
        policy: what `auto` has come to on this machine.
    """
    own = {name: value for name, value in asdict(settings).items() if name not in FREE}
    return {
        "data contents": contents(settings.data),
        "model contents": _model(settings.model),
        "tokenizer contents": loaded.tokenizer.fingerprint(),
        "--epochs": settings.epochs if settings.steps is None else None,
        "--precision": policy.mode,
        "--loss-scale": policy.static_scale or "dynamic",
        **{f"--{name.replace('_', '-')}": _plain(value) for name, value in own.items()},
    }


def _model(path: Path) -> str:
    """A fingerprint of what a model is read from: its configuration and weights."""
    names = ("config.json", "*.safetensors", "*.bin")
    files = [path] if path.is_file() else sorted(file for name in names for file in path.glob(name))
    return "-".join(sha256_file(file) for file in files)


def contents(path: Path) -> str:
    """A fingerprint of a file, or of every file in a folder with its name."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
