"""`bertmp deploy`, `bertmp rollback` and `bertmp models`: which version of a model answers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bertmp.core.errors import BertmpError, InputError
from bertmp.export.bundle.bundle import Bundle
from bertmp.export.engine.triton_releases import release_of_server
from bertmp.serve import repository as repositories
from bertmp.serve import rollout
from bertmp.serve import version_log as versions
from bertmp.serve.deployable import Candidate, Engine, inspect
from bertmp.serve.model_config import read_contract
from bertmp.serve.repository import ModelFolders, numbered
from bertmp.serve.triton_client import Transport, connect
from bertmp.serve.version_log import VersionRecord

REPOSITORY = Path("model_repository")


@dataclass(frozen=True)
class Deployment:
    """What a deployment or a rollback led to.

    Attributes:
        name: the model.
        version: the version that answers now.
        repository: where it lies.
        new: False where an identical version was live already, and after a rollback.
        parity: `passed`, or `not checked`.
        server: the server that took it; None where none was named.
        notes: what else is worth knowing.
    """

    name: str
    version: int
    repository: str
    new: bool
    parity: str
    server: str | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "notes": list(self.notes)}


def deploy(
    bundle: Path,
    name: str,
    repository: Path = REPOSITORY,
    server: str | None = None,
    for_triton: str | None = None,
) -> Deployment:
    """Writes a bundle as the newest version of a model, and brings it into service.

    An identical version that is live already stays as it is. Where the server cannot answer with the new
    version, it is taken back, and the one before it goes on answering.

    Args:
        bundle: the bundle's folder.
        name: the text model's name; its encoder is called `NAME_encoder`.
        repository: the model repository; made where there is none.
        server: the HTTP or gRPC address of a Triton that serves this repository; without it, the version
            answers when the repository is served next.
        for_triton: the release that serves the repository, e.g. `25.10`; without it the one that the engine
            was built for, and the server's own where it runs engines.

    Errors: InputError for a bundle that is stale or no classifier, for an engine of another TensorRT than
    the release has, for labels or inputs other than the live version's, and for a dead server; GateFailed
    where parity did not pass or the server refuses it.
    """
    candidate = inspect(Bundle.open(Path(bundle)))
    if for_triton is not None and candidate.engine is not None:
        candidate.engine.require_release(for_triton)
    folders = ModelFolders(Path(repository), name)
    with _connected(server) as transport, folders.locked():
        if transport is not None and candidate.engine is not None:
            _require_servers_release(candidate.engine, folders, transport)
        folders.sweep()
        live = folders.live()
        if live is not None:
            _require_same_contract(folders, candidate)
        records = versions.load(folders.text)
        current = next((entry for entry in records if entry.version == live), None)
        if current is not None and current.fingerprint == candidate.fingerprint:
            return _keep(folders, candidate, current, transport)
        return _promote(folders, candidate, transport)


def _connected(server: str | None) -> Any:
    """The connection, or nothing, for a `with` statement.

    Errors: InputError where the server is dead: before anything is written.
    """
    return nullcontext() if server is None else connect(server)


def _require_servers_release(engine: Engine, folders: ModelFolders, transport: Transport) -> None:
    """Checks the engine against the server's own TensorRT, where the live version runs on it.

    Errors: InputError where they differ. A server that is on its processor loads no engine, and one that has
    not loaded the model yet says for itself whether it takes the engine.
    """
    serving = {entry["name"] for entry in transport.index() if entry.get("state") == "READY"}
    if folders.encoder.name not in serving:
        return
    if transport.config(folders.encoder.name).get("platform") != "tensorrt_plan":
        return
    release = release_of_server(transport.server_version())
    if release is not None:
        engine.require_release(release.name)


def _require_same_contract(folders: ModelFolders, candidate: Candidate) -> None:
    served = read_contract(folders.repository, folders.name)
    if (difference := served.difference(candidate.contract)) is not None:
        raise InputError(
            f"the bundle differs from the live version in its {difference}",
            folders.text,
            "deploy it under another name",
        )


def _keep(
    folders: ModelFolders, candidate: Candidate, current: VersionRecord, transport: Transport | None
) -> Deployment:
    current = replace(current, parity=candidate.parity)
    versions.save(folders.text, versions.replaced(versions.load(folders.text), current))
    if transport is not None:
        rollout.promote(transport, folders, current.version)
    return _deployment(folders, current, transport, False, ("an identical version is live", *candidate.notes))


def _promote(folders: ModelFolders, candidate: Candidate, transport: Transport | None) -> Deployment:
    version = folders.next_version()
    entry = VersionRecord(folders.name, version, "live", candidate.fingerprint, candidate.parity)
    folders.write_configs(candidate.contract, candidate.engine.profiles if candidate.engine else None)
    folders.write_version(
        version, candidate.fill_encoder, lambda folder: candidate.fill_text(folders.name, folder)
    )
    # From here on Triton takes this version at its next start: the record says so before a server is asked.
    versions.save(folders.text, [*versions.with_live(versions.load(folders.text), version), entry])
    try:
        if transport is not None:
            rollout.promote(transport, folders, version)
    except BaseException as error:
        _take_back(folders, entry, transport, error)
        raise
    return _deployment(folders, entry, transport, True, candidate.notes)


def _take_back(
    folders: ModelFolders, entry: VersionRecord, transport: Transport | None, error: BaseException
) -> None:
    folders.remove(entry.version)
    if transport is not None:
        rollout.withdraw(transport, folders, entry.version)
    reason = str(error) if isinstance(error, BertmpError) else "interrupted"
    refused = replace(entry, state="refused", note=reason)
    records = versions.replaced(versions.load(folders.text), refused)
    versions.save(folders.text, versions.with_live(records, folders.live()))


def rollback(name: str, repository: Path = REPOSITORY, server: str | None = None) -> Deployment:
    """Retires a model's live version; the one before it answers.

    Args:
        name: the text model's name.
        repository: the model repository.
        server: the HTTP or gRPC address of a Triton that serves this repository.

    Errors: InputError for an unknown model, one without an earlier version, or a dead server; GateFailed
    where the earlier version does not come up, in which case the live one stays.
    """
    folders = _deployed(Path(repository), name)
    with _connected(server) as transport, folders.locked():
        standing = numbered(folders.text)
        if len(standing) < 2:
            raise InputError(f"'{name}' has no earlier version", folders.text, "deploy one")
        version, gone = standing[-2], standing[-1]
        folders.retire(folders.text, gone)
        try:
            if transport is not None:
                rollout.settle(transport, folders, gone)
        except BaseException:
            folders.restore(folders.text, gone)
            if transport is not None:
                transport.load(folders.text.name)
            raise
        folders.retire(folders.encoder, gone)
        if transport is not None:
            transport.load(folders.encoder.name)
        records = [
            replace(entry, state="retired") if entry.version == gone else entry
            for entry in versions.load(folders.text)
        ]
        records = versions.with_live(records, version)
        versions.save(folders.text, records)
        entry = next(entry for entry in records if entry.version == version)
        return _deployment(folders, entry, transport, False, (f"version {gone} is retired",))


def models(repository: Path = REPOSITORY) -> list[VersionRecord]:
    """Every version of every model in the repository, by name and version.

    Errors: InputError where there is no such folder or a record is damaged.
    """
    folder = Path(repository)
    return [entry for name in repositories.all_models(folder) for entry in versions.load(folder / name)]


def _deployed(repository: Path, name: str) -> ModelFolders:
    known = repositories.all_models(repository)
    if name not in known:
        there = f"it has {', '.join(known)}" if known else "nothing is deployed there"
        raise InputError(f"no model '{name}' in the repository", repository, there)
    return ModelFolders(repository, name)


def _deployment(
    folders: ModelFolders,
    entry: VersionRecord,
    transport: Transport | None,
    new: bool,
    notes: tuple[str, ...],
) -> Deployment:
    address = None if transport is None else f"{transport.protocol}://{transport.address}"
    return Deployment(
        folders.name, entry.version, str(folders.repository), new, entry.parity_in_words, address, notes
    )
