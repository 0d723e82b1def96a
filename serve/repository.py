"""A Triton model repository on the disk: writing, retiring and removing versions.

A version of a text model is two folders, NAME_encoder/N and NAME/N. The encoder's appears first and goes
last, so that no text version ever stands without its encoder. Nothing here decides or asks a server.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bertmp.core.errors import InputError
from bertmp.core.io import atomic_folder, file_lock, write_text, writing_to
from bertmp.serve import model_config as configs
from bertmp.serve import version_log as versions
from bertmp.serve.model_config import Contract, encoder_name

RETIRED = ".retired"
"""Where rolled-back versions lie: Triton takes only folders with a number for a name as versions."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class ModelFolders:
    """The two folders of one text model.

    Attributes:
        repository: the model repository.
        name: the text model's name.
    """

    repository: Path
    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name.endswith("_encoder"):
            raise InputError(
                f"'{self.name}' cannot be a model's name",
                "",
                "use letters, digits, - _ . and no ending in _encoder",
            )

    @property
    def text(self) -> Path:
        return self.repository / self.name

    @property
    def encoder(self) -> Path:
        return self.repository / encoder_name(self.name)

    def live(self) -> int | None:
        """The version that Triton takes: the highest number; None where there is none."""
        return max(numbered(self.text), default=None)

    def next_version(self) -> int:
        """A number above every one that was ever used, since Triton takes the highest."""
        used = [entry.version for entry in versions.load(self.text)]
        for folder in (self.text, self.encoder):
            used += numbered(folder) + numbered(folder / RETIRED)
        return max(used, default=0) + 1

    def locked(self) -> AbstractContextManager[None]:
        """Holds the model's lock: of two deployments at once, the second waits."""
        return file_lock(self.text / ".lock")

    def write_configs(self, contract: Contract, profiles: int | None) -> None:
        """Writes both models' configurations.

        Files that say the same contract already stay as they are, whatever else a person tuned in them;
        only the number of the engine's profiles follows the engine.

        Args:
            profiles: the engine's optimisation profiles; None where the version has no engine.
        """
        if not self._has_contract(contract):
            for file in configs.model_files(self.name, contract, profiles):
                write_text(self.repository / file.path, file.content)
        elif profiles is not None:
            path = self.encoder / "config.pbtxt"
            config = configs.parse(path)
            if configs.engine_profiles(config) != profiles:
                for group in config.instance_group:
                    group.profile[:] = [str(number) for number in range(profiles)]
                write_text(path, configs.render(config))

    def _has_contract(self, contract: Contract) -> bool:
        paths = [self.repository / file.path for file in configs.model_files(self.name, contract)]
        if not all(path.is_file() for path in paths):
            return False
        return configs.read_contract(self.repository, self.name).difference(contract) is None

    def write_version(
        self, version: int, fill_encoder: Callable[[Path], None], fill_text: Callable[[Path], None]
    ) -> None:
        """Writes both folders of a version, each whole or not at all.

        Args:
            fill_encoder, fill_text: fill the empty folder they are given.
        """
        try:
            with atomic_folder(self.encoder / str(version)) as folder:
                fill_encoder(folder)
            with atomic_folder(self.text / str(version)) as folder:
                fill_text(folder)
        except BaseException:
            self.remove(version)
            raise

    def retire(self, folder: Path, version: int) -> None:
        """Moves one version's folder, of either model, to where Triton does not look."""
        self._move(folder / str(version), folder / RETIRED / str(version))

    def restore(self, folder: Path, version: int) -> None:
        """Undoes `retire`."""
        self._move(folder / RETIRED / str(version), folder / str(version))

    @staticmethod
    def _move(source: Path, target: Path) -> None:
        if source.is_dir():
            with writing_to(target):
                target.parent.mkdir(exist_ok=True)
                os.replace(source, target)

    def remove(self, version: int) -> None:
        """Removes both folders of a version; first out of Triton's sight, then from the disk."""
        for folder in (self.text, self.encoder):
            self.retire(folder, version)
            shutil.rmtree(folder / RETIRED / str(version), ignore_errors=True)

    def sweep(self) -> None:
        """Removes what an interrupted deployment left: hidden folders, encoders without a text model."""
        for folder in (self.text, self.encoder):
            for path in [*folder.glob(".*.part"), *folder.glob(".*.old")]:
                shutil.rmtree(path, ignore_errors=True)
        for version in set(numbered(self.encoder)) - set(numbered(self.text)):
            if version in numbered(self.text / RETIRED):  # a rollback was interrupted half-way
                self.retire(self.encoder, version)
            else:
                self.remove(version)


def numbered(folder: Path) -> list[int]:
    """The versions in a model's folder, lowest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def servable(repository: Path) -> list[str]:
    """The models that have a version to serve, ours or anyone's.

    Errors: InputError where there is no such folder or nothing in it can be served, or where a model of
    the Python backend lacks its code (Triton would wait for it for minutes).
    """
    if not repository.is_dir():
        raise InputError("no such model repository", repository, "make one with 'bertmp deploy'")
    names = [path.parent.name for path in sorted(repository.glob("*/config.pbtxt")) if numbered(path.parent)]
    if not names:
        raise InputError("the repository has no version to serve", repository, "run 'bertmp deploy' first")
    for name in names:
        _require_code(repository / name)
    return names


def _require_code(model: Path) -> None:
    config = configs.parse(model / "config.pbtxt")
    code = model / str(numbered(model)[-1]) / (config.default_model_filename or "model.py")
    if config.backend == "python" and not code.is_file():
        raise InputError("the version has no code", code, "deploy the model again")


def all_models(repository: Path) -> list[str]:
    """The text models that were deployed at least once, in order."""
    if not repository.is_dir():
        raise InputError("no such model repository", repository, "make one with 'bertmp deploy'")
    return sorted(path.parent.name for path in repository.glob(f"*/{versions.FILE}"))
