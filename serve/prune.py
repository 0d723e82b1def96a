"""`bertmp prune`, and `deploy --keep`: removes versions that are no longer needed for a rollback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bertmp.core.errors import DiskFull, InputError
from bertmp.core.io import JsonSerializable
from bertmp.core.options import keywords_of
from bertmp.serve.audit import AuditLog
from bertmp.serve.repository import ModelFolders, require_model
from bertmp.serve.serving_options import PruneOptions
from bertmp.serve.version_log import VersionLog


@dataclass(frozen=True)
class Pruned(JsonSerializable):
    """What was removed and what is kept, as numbers of versions, lowest first.

    Attributes:
        name: the model.
        kept: the live version and the newest others.
        removed: those whose files are gone.
    """

    name: str
    kept: tuple[int, ...]
    removed: tuple[int, ...]


@keywords_of(PruneOptions)
def prune(options: PruneOptions) -> Pruned:
    """Removes a model's older versions but for the newest `keep`, of which the live one is one.

    A server that runs holds what it has loaded: nothing that answers is removed.

    Raises:
        InputError: an unknown model, or a record of versions that is damaged.
    """
    folders = require_model(options.repository, options.name)
    with folders.locked():
        return remove_all_but(folders, options.keep)


def remove_all_but(folders: ModelFolders, keep: int) -> Pruned:
    """The same under a lock that the caller holds."""
    kept, removed = choose(folders.kept(), folders.live(), keep)
    log = VersionLog.load(folders.text)
    for version in removed:
        # The record first: after a crash, files without a use are better than a version without files.
        record = log.find(version)
        if record is not None:
            log = log.put(replace(record, state="pruned"))
            try:
                log.save()
            except DiskFull:  # removing the version frees space for its record
                folders.remove(version)
                log.save()
        folders.remove(version)
        AuditLog(folders.repository, folders.name, "prune").write("removed", "done", version)
    return Pruned(folders.name, kept, removed)


def choose(versions: Sequence[int], live: int | None, keep: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which versions stay and which go.

    Args:
        versions: all whose files are there.
        live: the one that answers, which stays; None where none does.
        keep: how many stay, at least 1.

    Raises:
        InputError: fewer than 1.
    """
    if keep < 1:
        raise InputError("no version would be kept", f"--keep {keep}", "keep at least 1")
    others = sorted(set(versions) - {live}, reverse=True)
    stay = {*others[: keep - (live is not None)], *([] if live is None else [live])}
    return tuple(sorted(stay)), tuple(sorted(set(versions) - stay))
