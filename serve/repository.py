"""A Triton model repository on the disk: writing, retiring and removing versions.

A version of a text model is two folders, NAME_encoder/N and NAME/N. The encoder's is written first and
removed last, so that no text version is ever without its encoder. Nothing here decides or asks a server.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bertmp.core.errors import DiskFull, InputError
from bertmp.core.io import atomic_folder, file_lock, write_text, writing_to
from bertmp.export.bundle import FP32_GRAPH, LABELS
from bertmp.serve.audit import AUDIT
from bertmp.serve.model_config import (
    GPU_ONNX_FILE,
    REFERENCE,
    SETTINGS,
    add_outputs,
    model_files,
    set_engine,
    set_serving,
)
from bertmp.serve.model_signature import (
    ModelSignature,
    encoder_name,
    names_signature,
    read_model_config,
    read_signature,
    render,
)
from bertmp.serve.serving_table import ServingTable
from bertmp.serve.version_log import FILE, VersionLog

CANARY = "_canary"
"""How the name of a stand-in ends, under which a new version is tried: clients do not call it."""

RETIRED = ".retired"
"""Where rolled-back versions are kept: Triton takes only folders named by a number as versions."""

CPU_FILE = "configs/cpu.pbtxt"
CONFIGS = ("config.pbtxt", CPU_FILE)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class ModelFolders:
    """The two folders of one text model.

    Attributes:
        repository: the model repository.
        name: the text model's name.
        suffix: what the folders' names have behind it: nothing, or `CANARY`.
    """

    repository: Path
    name: str
    suffix: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name.endswith(("_encoder", CANARY)):
            todo = f"use letters, digits, - _ . and no ending in _encoder or {CANARY}"
            raise InputError(f"'{self.name}' cannot be a model's name", "", todo)

    @property
    def text(self) -> Path:
        return self.repository / f"{self.name}{self.suffix}"

    @property
    def encoder(self) -> Path:
        return self.repository / encoder_name(self.text.name)

    def live(self) -> int | None:
        """The version that Triton takes: the highest number; None where there is none."""
        return max(numbered(self.text), default=None)

    def kept(self) -> list[int]:
        """The versions that can answer: those that Triton sees and those that were rolled back."""
        return sorted({*numbered(self.text), *numbered(self.text / RETIRED)})

    def next_version(self) -> int:
        """A number above every one that was ever used, since Triton takes the highest."""
        used = [entry.version for entry in VersionLog.load(self.text).records]
        for folder in (self.text, self.encoder):
            used += numbered(folder) + numbered(folder / RETIRED)
        return max(used, default=0) + 1

    def locked(self) -> AbstractContextManager[None]:
        """Holds the model's lock: of two deployments at once, the second waits."""
        return file_lock(self.text / ".lock")

    def write_configs(
        self,
        signature: ModelSignature,
        profiles: int | None,
        version_compatible: bool = False,
        serving: ServingTable = REFERENCE,
        gpu_graph: str = FP32_GRAPH,
    ) -> None:
        """Writes both models' configurations.

        Files that have the same signature already stay as they are, so that a person's tuning survives;
        only what the engine and the machine decide follows them, and outputs that are new are added.

        Args:
            profiles: the engine's optimisation profiles; None where the version has no engine.
            version_compatible: whether the engine is for later versions of TensorRT, too.
            serving: how the text model uses a machine without a GPU.
            gpu_graph: the graph's file that a GPU runs where there is no engine.
        """
        keeps = self._has_signature(signature)
        files = model_files(self.text.name, signature, profiles, version_compatible, serving, gpu_graph)
        for path, content in files.items():
            if not (keeps and (self.repository / path).is_file()):
                write_text(self.repository / path, content)
        if keeps and profiles is not None:
            file = self.encoder / "config.pbtxt"
            config = read_model_config(file)
            if set_engine(config, profiles, version_compatible):
                write_text(file, render(config))
        if keeps:
            file = self.encoder / GPU_ONNX_FILE
            config = read_model_config(file)
            if config.default_model_filename != gpu_graph:
                config.default_model_filename = gpu_graph
                write_text(file, render(config))
        for path in CONFIGS if keeps else ():  # those of 0.1 lack an output
            config = read_model_config(self.text / path)
            added = add_outputs(config)
            if (path == CPU_FILE and set_serving(config, serving)) or added:
                write_text(self.text / path, render(config))

    def config_texts(self) -> dict[Path, str]:
        """What stands in the files that belong to no version, as far as they are there."""
        names = (*CONFIGS, GPU_ONNX_FILE, LABELS)
        paths = [folder / name for folder in (self.text, self.encoder) for name in names]
        return {path: path.read_text(encoding="utf-8") for path in paths if path.is_file()}

    def restore_configs(self, before: Mapping[Path, str]) -> None:
        """Brings back what `config_texts` returned."""
        for path, content in self.config_texts().items():
            if path not in before:
                path.unlink()
            elif content != before[path]:
                write_text(path, before[path])

    def serving(self) -> ServingTable | None:
        """How the text model uses a machine without a GPU; None where its configuration does not say.

        Raises:
            InputError: the configuration is missing or damaged.
        """
        config = read_model_config(self.text / CPU_FILE)
        table = ServingTable.parse(config.parameters["serving"].string_value)
        if table is None:
            return None
        # A person may have set both by themselves.
        sizes = list(config.dynamic_batching.preferred_batch_size) or [table.preferred_batch]
        workers = sum(group.count for group in config.instance_group)
        return replace(table, workers=workers, preferred_batch=max(sizes))

    def _has_signature(self, signature: ModelSignature) -> bool:
        return self.names_signature() and read_signature(self.repository, self.text.name) == signature

    def names_signature(self) -> bool:
        """Whether the files that name the model's signature are there."""
        return names_signature(self.repository, self.text.name)

    def write_version(
        self, version: int, fill_encoder: Callable[[Path], None], fill_text: Callable[[Path], None]
    ) -> None:
        """Writes both folders of a version, each completely or not at all.

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

    def remove(self, version: int) -> None:
        """Removes both folders of a version: first out of Triton's sight, then from the disk."""
        for folder in (self.text, self.encoder):
            with suppress(DiskFull):  # it may take another entry of a folder
                retire(folder, version)
            for path in (folder / RETIRED / str(version), folder / str(version)):
                shutil.rmtree(path, ignore_errors=True)

    def cleanup(self) -> None:
        """Removes what an interrupted deployment left: stand-ins, temporary folders, encoders without a text
        model."""
        staged = replace(self, suffix=CANARY)
        for folder in (staged.text, staged.encoder):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.text, self.encoder):
            for path in [*folder.glob(".*.part"), *folder.glob(".*.old")]:
                shutil.rmtree(path, ignore_errors=True)
        for version in set(numbered(self.encoder)) - set(numbered(self.text)):
            if version in numbered(self.text / RETIRED):  # a rollback was interrupted half-way
                retire(self.encoder, version)
            else:
                self.remove(version)
        for version in set(numbered(self.text)) - set(numbered(self.encoder)):
            restore(self.encoder, version)  # a rollback was interrupted before its text model moved


def is_canary(model: str) -> bool:
    """Whether a model, or an encoder, is a stand-in."""
    return model.removesuffix("_encoder").endswith(CANARY)


def version_folder(model: Path, version: int) -> Path:
    """Where a version's files are: in Triton's sight, or retired."""
    seen, retired = model / str(version), model / RETIRED / str(version)
    return retired if retired.is_dir() and not seen.is_dir() else seen


def retire(model: Path, version: int) -> None:
    """Moves a version's folder to where Triton does not look."""
    move(model / str(version), model / RETIRED / str(version))


def restore(model: Path, version: int) -> None:
    """Undoes `retire`."""
    move(model / RETIRED / str(version), model / str(version))


def move(source: Path, target: Path) -> None:
    """Moves a version's folder in one step; nothing where there is none."""
    if source.is_dir():
        with writing_to(target):
            target.parent.mkdir(exist_ok=True)
            os.replace(source, target)


def numbered(folder: Path) -> list[int]:
    """The versions in a model's folder, lowest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def servable(repository: Path) -> list[str]:
    """The models that have a version to serve, whoever made them.

    Raises:
        InputError: there is no such folder, nothing in it can be served, or a model of the Python backend
            lacks its code (Triton would wait for it for minutes).
    """
    _require_folder(repository)
    found = [path.parent for path in sorted(repository.glob("*/config.pbtxt"))]
    # A stand-in that an interrupted deployment left is tidied up by the next one.
    names = [model.name for model in found if numbered(model) and not is_canary(model.name)]
    if not names:
        raise InputError("the repository has no version to serve", repository, "run 'bertmp deploy' first")
    for model in (repository / name for name in names):
        config = read_model_config(model / "config.pbtxt")
        code = model / str(numbered(model)[-1]) / (config.default_model_filename or "model.py")
        if config.backend == "python" and not code.is_file():
            raise InputError("the version has no code", code, "deploy the model again")
    return names


def all_models(repository: Path) -> list[str]:
    """The text models that were deployed at least once, in order."""
    _require_folder(repository)
    return sorted(path.parent.name for path in repository.glob(f"*/{FILE}"))


def serving_tables(repository: Path) -> dict[str, ServingTable]:
    """How each text model uses a machine without a GPU, by its name."""
    named = [name for name in all_models(repository) if (repository / name / CPU_FILE).is_file()]
    found = {name: ModelFolders(repository, name).serving() for name in named}
    return {name: table for name, table in found.items() if table is not None}


def require_record(repository: Path, name: str) -> None:
    """Checks that a text model with versions has the record of them.

    Raises:
        InputError: it has none.
    """
    model = repository / name
    # Only ours have settings beside their code: the repository may hold models that others made.
    ours = any((model / str(version) / SETTINGS).is_file() for version in numbered(model))
    if ours and not is_canary(name) and not (model / FILE).is_file():
        todo = "restore the file, or run 'bertmp deploy': it records the versions that it finds"
        raise InputError(f"'{name}' has versions and no record of them", model / FILE, todo)


def require_model(repository: Path, name: str) -> ModelFolders:
    """The folders of a text model that was deployed.

    Raises:
        InputError: no such repository or model, or one without the record of its versions.
    """
    known = all_models(repository)
    require_record(repository, name)
    if name not in known:
        todo = f"it has {', '.join(known)}" if known else "nothing is deployed there"
        raise InputError(f"no model '{name}' in the repository", repository, todo)
    return ModelFolders(repository, name)


def _require_folder(repository: Path) -> None:
    if not repository.is_dir():
        raise InputError("no such model repository", repository, "make one with 'bertmp deploy'")
    require_repository_folder(repository)


def require_repository_folder(repository: Path) -> None:
    """Checks that a folder is a model repository, or may become one: a bundle, a run or a model may not.

    Raises:
        InputError: it has files, and no model.
    """
    if not repository.is_dir() or any(repository.glob("*/config.pbtxt")) or any(repository.glob(f"*/{FILE}")):
        return
    own = (AUDIT, "README", "LICENSE")
    files = sorted(path.name for path in repository.iterdir() if path.is_file())
    foreign = [name for name in files if not name.startswith((".", *own))]
    if foreign:
        what = f"not a model repository: it has the file {foreign[0]} and no model"
        raise InputError(what, repository, "name one, or a new or empty folder for 'bertmp deploy'")
