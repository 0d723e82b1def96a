"""Resumable states: everything a run needs to go on, written whole, verified on load, kept a few deep."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bertmp.errors import InputError
from bertmp.files import atomic_folder, read_json, sha256_file, write_json

KEPT = 2
_PREFIX = "step-"


@dataclass(frozen=True)
class Position:
    """Where a run stands, in plain numbers.

    Attributes:
        step: steps done.
        skipped: of these, the ones left out because a gradient was not finite.
        seconds: training time so far.
        examples, tokens: seen so far.
    """

    step: int = 0
    skipped: int = 0
    seconds: float = 0.0
    examples: int = 0
    tokens: int = 0


def save_state(
    folder: Path, position: Position, tensors: Mapping[str, Any], identity: Mapping[str, Any]
) -> Path:
    """Writes the state after `position.step` steps under `folder`, and drops all but the newest `KEPT`.

    Args:
        tensors: state dictionaries of model, optimizer and loss scaler.
        identity: what must be the same for the state to be honoured: data, model, settings.
    """
    target = folder / f"{_PREFIX}{position.step:08d}"
    with atomic_folder(target) as temporary:
        torch.save(dict(tensors), temporary / "tensors.pt")
        digest = sha256_file(temporary / "tensors.pt")
        write_json(
            temporary / "state.json",
            {"position": asdict(position), "identity": dict(identity), "sha256": digest},
        )
    for old in _states(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_state(
    folder: Path, identity: Mapping[str, Any], warn: Callable[[str], None]
) -> tuple[Position, dict[str, Any]] | None:
    """The newest state that is whole; None where there is none.

    A damaged state is passed over for the one before, and `warn` says so.

    Errors: InputError where the state belongs to other data, another model or other settings.
    """
    for state in _states(folder):
        try:
            record = read_json(state / "state.json")
            if sha256_file(state / "tensors.pt") != record["sha256"]:
                raise InputError("checksum differs", state)
            position = Position(**record["position"])
            data = (state / "tensors.pt").read_bytes()
        except (InputError, OSError, KeyError, TypeError) as error:
            warn(f"{state.name} is damaged ({error}); falling back to the state before")
            continue
        _check_identity(record["identity"], identity, state)
        return position, torch.load(io.BytesIO(data), weights_only=True)
    return None


def _states(folder: Path) -> list[Path]:
    """The states' folders, newest first."""
    return sorted(folder.glob(f"{_PREFIX}*"), reverse=True) if folder.is_dir() else []


def _check_identity(found: Mapping[str, Any], wanted: Mapping[str, Any], state: Path) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            raise InputError(
                f"the state was made with {name} {found.get(name)!r}, now it is {value!r}",
                state,
                "resume with the settings of the run, or start in another folder",
            )
