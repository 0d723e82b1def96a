"""Which files a deployed version needs, and which of them are not in the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, sha256_file
from bertmp.export.bundle import FP32_GRAPH, LABELS
from bertmp.serve.model_config import SETTINGS
from bertmp.serve.repository import CONFIGS, ModelFolders, version_folder
from bertmp.serve.served_tasks import TASKS

PRECISION = "precision.json"
"""The file of an encoder's version that names the graphs which are not run in FP32 on a CPU."""
ENCODER_FILES, TEXT_FILES = "encoder_files", "text_files"
"""The entries of settings.json with the names of the version's other files. Those of 0.1 have none."""

_LEAST_OF_ENCODER = (FP32_GRAPH,)
_LEAST_OF_TEXT = ("model.py", "tokenizer.json")


def listed_files(encoder_files: tuple[str, ...], text: Path) -> dict[str, list[str]]:
    """What settings.json says about a version's files.

    Args:
        encoder_files: the names of the encoder's.
        text: the text model's version, complete but for settings.json.
    """
    files = sorted(path.relative_to(text).as_posix() for path in text.rglob("*") if path.is_file())
    return {ENCODER_FILES: sorted(encoder_files), TEXT_FILES: files}


def missing_files(folders: ModelFolders, version: int) -> list[str]:
    """The files without which a server cannot load a version, as paths in the repository.

    A folder that is not there stands for all of its files; a settings.json that cannot be read counts as
    missing.
    """
    text, encoder = (version_folder(model, version) for model in (folders.text, folders.encoder))
    settings = _read_settings(text / SETTINGS)
    missing = [
        *_missing_in(folders.text, (*CONFIGS, *_labels(settings))),
        *_missing_in(text, (SETTINGS, *_names(settings, TEXT_FILES, _LEAST_OF_TEXT))),
        *_missing_in(folders.encoder, CONFIGS),
        *_missing_in(encoder, _names(settings, ENCODER_FILES, _LEAST_OF_ENCODER)),
    ]
    if settings is None and (text / SETTINGS).is_file():
        missing.append(text / SETTINGS)
    if not folders.encoder.is_dir():
        missing.remove(encoder)
    return [path.relative_to(folders.repository).as_posix() for path in missing]


def changed_files(folders: ModelFolders, version: int) -> list[str]:
    """The files of a version that are not what was deployed, as paths in the repository.

    Those that are missing are left out, see `missing_files`, and those whose SHA-256 was not recorded.
    """
    text, encoder = (version_folder(model, version) for model in (folders.text, folders.encoder))
    settings = _read_settings(text / SETTINGS) or {}
    found = ((encoder, "sha256"), (encoder, "fp16_sha256"), (text, "text_sha256"))
    recorded = [(folder, settings.get(key)) for folder, key in found]
    paths = {
        folder / str(name): digest
        for folder, digests in recorded
        if isinstance(digests, dict)
        for name, digest in digests.items()
    }
    changed = [path for path, digest in paths.items() if path.is_file() and sha256_file(path) != digest]
    if (encoder / PRECISION).is_file() and _read_settings(encoder / PRECISION) != settings.get("precision"):
        changed.append(encoder / PRECISION)
    return [path.relative_to(folders.repository).as_posix() for path in changed]


def name_files(paths: list[str], most: int = 3) -> str:
    """Some of the paths in words, and how many more there are."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return f"{', '.join(paths[:most])}{more}"


def _missing_in(folder: Path, names: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return [folder]
    return [folder / name for name in names if not (folder / name).is_file()]


def _names(settings: dict[str, Any] | None, key: str, least: tuple[str, ...]) -> tuple[str, ...]:
    """The names that the settings list; without a list, the least that every version has."""
    names = (settings or {}).get(key)
    return tuple(map(str, names)) if isinstance(names, list) else least


def _labels(settings: dict[str, Any] | None) -> tuple[str, ...]:
    """The file of the labels, for a task that has any."""
    task = TASKS.get((settings or {}).get("task", "classification"))
    return (LABELS,) if task is None or task.least_labels else ()


def _read_settings(path: Path) -> dict[str, Any] | None:
    """The settings of a text model's version; None where they cannot be read."""
    try:
        settings = read_json(path)
    except InputError:
        return None
    return settings if isinstance(settings, dict) else None
