"""Resumable states of a run: written atomically, verified when loaded, and which of them are kept.

`CheckpointManager` decides when a state is saved and which one a run rolls back to.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import IO, Any, cast

import torch

from bertmp.core.errors import InputError
from bertmp.core.io import atomic_folder, read_json, sha256_file, write_json
from bertmp.core.options import declared_options, renamed
from bertmp.core.progress import ProgressCallback
from bertmp.model.checkpoint import LoadedCheckpoint
from bertmp.training.amp import PrecisionPolicy
from bertmp.training.train_options import TrainOptions

_PREFIX = "step-"
_TENSORS = "tensors.pt"
_RECORD = "state.json"


@dataclass(frozen=True)
class Position:
    """How far a run is.

    Attributes:
        step: steps done.
        skipped: of these, skipped because something was not finite.
        seconds: training time so far.
        examples, tokens: seen so far.
    """

    step: int = 0
    skipped: int = 0
    seconds: float = 0.0
    examples: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class State:
    """What a run continues from.

    Attributes:
        position: how far it is.
        progress: plain JSON: the state of monitor, log and early stopping, and the last evaluation.
        tensors: state dictionaries of model, optimizer and loss scaler.
        good: whether the monitor may roll back to it: it was saved while no fault was pending.
    """

    position: Position
    progress: Mapping[str, Any]
    tensors: Mapping[str, Any]
    good: bool = True


@dataclass(frozen=True)
class States:
    """A folder of states.

    Attributes:
        folder: holds one folder per state, such as `step-00000042`.
        keep: how many are kept; the oldest go first.
        identity: what a state must match to be loaded; see `run_identity`.
    """

    folder: Path
    keep: int
    identity: Mapping[str, Any]

    def save(self, state: State) -> Path:
        """Writes a state atomically and removes the oldest ones beyond `keep`.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        target = self.folder / _name(state.position.step)
        with atomic_folder(target) as temporary:
            write_tensors(temporary / _TENSORS, state.tensors)
            record = {
                "position": asdict(state.position),
                "progress": dict(state.progress),
                "identity": dict(self.identity),
                "good": state.good,
                "tensors": sha256_file(temporary / _TENSORS),
            }
            write_json(temporary / _RECORD, {**record, "checksum": _checksum(record)})
        for old in self._newest_first()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def newest(self, warn: ProgressCallback) -> State | None:
        """The newest intact state; None if there is none. A damaged one is skipped with a warning.

        Raises:
            InputError: the state belongs to other data, another model or other options.
        """
        return next((state for _, state in self._intact(warn)), None)

    def last_good(self, warn: ProgressCallback) -> tuple[Path, State] | None:
        """The newest intact good state and its folder."""
        return next(((folder, state) for folder, state in self._intact(warn) if state.good), None)

    def newest_step(self) -> int | None:
        """The step of the newest state, intact or not; None if there is none."""
        folders = self._newest_first()
        return int(folders[0].name.rpartition("-")[2]) if folders else None

    def drop_after(self, step: int) -> None:
        """Removes the states of later steps."""
        for folder in self._newest_first():
            if folder.name > _name(step):
                shutil.rmtree(folder, ignore_errors=True)

    def _intact(self, warn: ProgressCallback) -> Iterator[tuple[Path, State]]:
        for folder in self._newest_first():
            try:
                record = read_json(folder / _RECORD)
                checksum = record.pop("checksum")
                if checksum != _checksum(record) or record["tensors"] != sha256_file(folder / _TENSORS):
                    raise InputError("its checksum differs", folder)
                position = Position(**record["position"])
                check_identity(record["identity"], self.identity, folder)
                tensors = torch.load(folder / _TENSORS, map_location="cpu", weights_only=True)
                yield folder, State(position, record["progress"], tensors, record["good"])
            except OtherRun:
                raise
            except (InputError, OSError, KeyError, TypeError, AttributeError, *_UNREADABLE) as error:
                warn(f"{folder.name} is damaged ({error}): falling back to the state before it")

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob(f"{_PREFIX}*"), reverse=True) if self.folder.is_dir() else []


def _name(step: int) -> str:
    return f"{_PREFIX}{step:08d}"


_UNREADABLE = (RuntimeError, ValueError, EOFError, pickle.UnpicklingError)


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Writes tensors that `torch.load(weights_only=True)` reads.

    Raises:
        OSError: the disk does not take them.
    """
    stream = _Stream(FileIO(path, "w"))
    try:
        with stream:
            torch.save(dict(tensors), cast(IO[bytes], stream))
    except RuntimeError:
        # torch raises an error of its own in place of the writer's.
        if stream.error is None:
            raise
        raise stream.error from None


class _Stream(BufferedWriter):
    """A file that keeps the error of a failed write."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def remove_leftovers(run: Path) -> None:
    """Removes the unfinished files and folders that a killed process left in a run's folder."""
    for folder in (run, run / "steps", run / "last-good"):
        for path in (*folder.glob(".*.part"), *folder.glob(".*.old")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


MAX_FALLBACK_SAVES, MIN_FALLBACK_STEPS = 4, 500


class CheckpointManager:
    """Decides which states a run saves, and which one it rolls back to.

    A run that saves resumable states rolls back to those. Any other run keeps one state in `last-good/`,
    saved at the start and then at most `MAX_FALLBACK_SAVES` times, `MIN_FALLBACK_STEPS` or more apart, and
    removed at the end. It takes three times the FP32 weights on disk.

    Args:
        identity: what a state must match to be resumed; see `run_identity`.
        total: steps of the run.

    Attributes:
        states: the resumable ones, in `steps/`.
    """

    def __init__(self, settings: TrainOptions, identity: Mapping[str, Any], total: int) -> None:
        self.states = States(settings.out / "steps", settings.save_total_limit, identity)
        self._fallback = States(settings.out / "last-good", 1, {})
        self._every, self._rolls_back, self._total = settings.save_every, settings.max_rollbacks > 0, total

    def due(self, step: int) -> States | None:
        """Where to save the state after `step` steps; None if none is due."""
        if step == 0 or not self._every:
            fallback_every = max(MIN_FALLBACK_STEPS, math.ceil(self._total / MAX_FALLBACK_SAVES))
            wanted = self._rolls_back and step < self._total and step % fallback_every == 0
            return self._fallback if wanted else None
        return self.states if step % self._every == 0 else None

    def last_good(self, progress: ProgressCallback) -> tuple[Path, State] | None:
        """The state to roll back to and its folder; None if there is none."""
        return self.states.last_good(progress) or self._fallback.last_good(progress)

    def forget(self) -> None:
        """Removes the fallback state at the end of a run."""
        shutil.rmtree(self._fallback.folder, ignore_errors=True)


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
    fixed = {one.name for one in declared_options(TrainOptions) if not one.info.resumable}
    return {
        "data contents": _sha256_of(settings.data),
        "model contents": _model(settings.model),
        "tokenizer contents": loaded.tokenizer.fingerprint(),
        "--epochs": settings.epochs if settings.steps is None else None,
        "--precision": policy.mode,
        "--loss-scale": policy.static_scale or "dynamic",
        **{_flag(name): value for name, value in settings.to_json().items() if name in fixed},
    }


def _flag(name: str) -> str:
    return f"--{name}".replace("_", "-")


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
    former = {_flag(new): _flag(old) for old, new in renamed(TrainOptions).items()}
    for name, value in wanted.items():
        was = found.get(name, found.get(former.get(name, "")))  # version 0.1 used the former names
        if was != value:
            what = f"{name} {was}, now it is {value}"
            if name.endswith(" contents"):  # a SHA-256, of no use in a message
                what = f"another {name.removesuffix(' contents')}"
            raise OtherRun(f"the state was made with {what}", folder, todo)
