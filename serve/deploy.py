"""`bertmp deploy`, `bertmp rollback` and `bertmp models`: which version of a model answers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from bertmp.core.errors import BertmpError, InputError
from bertmp.core.io import JsonSerializable
from bertmp.core.options import keywords_of
from bertmp.export.bundle import Bundle
from bertmp.export.consistency.check import Consistency
from bertmp.export.engine.compatibility import release_of_server
from bertmp.serve import rollout
from bertmp.serve.client import Client, connect
from bertmp.serve.deployable import Deployable, DeployableEngine, inspect_bundle
from bertmp.serve.model_config import read_signature
from bertmp.serve.repository import (
    ModelFolders,
    VersionLog,
    VersionRecord,
    all_models,
    numbered,
    restore,
    retire,
)
from bertmp.serve.serving_options import DeployOptions, ModelsOptions, RollbackOptions


@dataclass(frozen=True)
class Deployment(JsonSerializable):
    """The result of a deployment or a rollback.

    Attributes:
        name: the model.
        version: the version that answers now.
        repository: the repository that holds it.
        new: False where an identical version was live already, and after a rollback.
        parity: `passed`, or `not checked`.
        server: the server that took it; None where none was named.
        notes: what else the user should know.
        consistency: its answers compared with each other; None where no server was named, and after a
            rollback.
    """

    name: str
    version: int
    repository: str
    new: bool
    parity: str
    server: str | None
    notes: tuple[str, ...] = ()
    consistency: Consistency | None = None


@keywords_of(DeployOptions)
def deploy(options: DeployOptions) -> Deployment:
    """Writes a bundle as the newest version of a model, and brings it into service.

    An identical version that is live already stays as it is. Where the server cannot answer with the new
    version, that is taken back and the one before it goes on answering. Without a server, the version answers
    when the repository is served next. Without a Triton release, an engine is checked against the release
    that it was built for, and against the server's own where that runs engines.

    Raises:
        InputError: a bundle that is stale or not a classifier, an engine of another TensorRT than the
            release has, labels or inputs other than the live version's, or a dead server.
        GateFailed: parity did not pass, the server refuses the version, or the version contradicts itself.
    """
    deployable = inspect_bundle(Bundle.open(options.bundle), allow_incomplete=options.allow_incomplete)
    if options.triton_release is not None and deployable.engine is not None:
        deployable.engine.require_release(options.triton_release)
    folders = ModelFolders(options.repository, options.name)
    with _connection(options.server) as server, folders.locked():
        if server is not None and deployable.engine is not None:
            _require_servers_release(deployable.engine, folders, server)
        folders.cleanup()
        log, live = VersionLog.load(folders.text), folders.live()
        if live is not None:
            _require_same_signature(folders, deployable)
        current = log.find(live)
        if current is None or current.fingerprint != deployable.fingerprint:
            return _deploy_new(folders, log, deployable, server)
        current = replace(current, parity=deployable.parity)
        log.put(current).save()
        found = None if server is None else rollout.promote(server, folders, current.version, deployable)
        notes = ("an identical version is live", *deployable.notes)
        return replace(_deployment(folders, current, server, new=False, notes=notes), consistency=found)


def _connection(server: str | None) -> AbstractContextManager[Client | None]:
    """The connection to the named server, checked before anything is written.

    Raises:
        InputError: the server is dead.
    """
    return nullcontext() if server is None else connect(server)


def _require_servers_release(engine: DeployableEngine, folders: ModelFolders, server: Client) -> None:
    """Checks the engine against the server's own TensorRT, where the live version runs on it.

    A server that runs on its CPU loads no engine, and one that has not loaded the model yet reports itself
    whether it takes the engine.

    Raises:
        InputError: they differ.
    """
    encoder = folders.encoder.name
    ready = {entry["name"] for entry in server.index() if entry.get("state") == "READY"}
    if encoder not in ready or server.config(encoder).get("platform") != "tensorrt_plan":
        return
    if (release := release_of_server(server.server_version())) is not None:
        engine.require_release(release.name)


def _require_same_signature(folders: ModelFolders, deployable: Deployable) -> None:
    served = read_signature(folders.repository, folders.name)
    if (difference := served.difference(deployable.signature)) is not None:
        what = f"the bundle differs from the live version in its {difference}"
        raise InputError(what, folders.text, "deploy it under another name")


def _deploy_new(
    folders: ModelFolders, log: VersionLog, deployable: Deployable, server: Client | None
) -> Deployment:
    version = folders.next_version()
    record = VersionRecord(folders.name, version, "live", deployable.fingerprint, deployable.parity)
    engine = deployable.engine
    compatible = engine is not None and engine.version_compatible
    folders.write_configs(deployable.signature, None if engine is None else len(engine.profiles), compatible)
    folders.write_version(
        version, deployable.fill_encoder, lambda folder: deployable.fill_text(folders.name, folder)
    )
    # Triton takes this version at its next start: the log records that before a server is asked.
    log = log.put(record).with_live(version)
    log.save()
    try:
        found = None if server is None else rollout.promote(server, folders, version, deployable)
    except BaseException as error:
        folders.remove(version)
        if server is not None:
            rollout.abort(server, folders, version)
        reason = str(error) if isinstance(error, BertmpError) else "interrupted"
        log.put(replace(record, state="refused", note=reason)).with_live(folders.live()).save()
        raise
    return replace(_deployment(folders, record, server, new=True, notes=deployable.notes), consistency=found)


@keywords_of(RollbackOptions)
def rollback(options: RollbackOptions) -> Deployment:
    """Retires a model's live version; the one before it answers.

    Raises:
        InputError: an unknown model, one without an earlier version, or a dead server.
        GateFailed: the earlier version does not start; the live one stays.
    """
    known = all_models(options.repository)
    if options.name not in known:
        todo = f"it has {', '.join(known)}" if known else "nothing is deployed there"
        raise InputError(f"no model '{options.name}' in the repository", options.repository, todo)
    folders = ModelFolders(options.repository, options.name)
    with _connection(options.server) as server, folders.locked():
        versions = numbered(folders.text)
        if len(versions) < 2:
            raise InputError(f"'{options.name}' has no earlier version", folders.text, "deploy one")
        *_, previous, live = versions
        retire(folders.text, live)
        try:
            if server is not None:
                rollout.switch_to_previous(server, folders, live)
        except BaseException:
            restore(folders.text, live)
            if server is not None:
                server.load(folders.text.name)
            raise
        retire(folders.encoder, live)
        if server is not None:
            server.load(folders.encoder.name)
        log = VersionLog.load(folders.text)
        if (retired := log.find(live)) is not None:
            log = log.put(replace(retired, state="retired"))
        log = log.with_live(previous)
        log.save()
        record = log.find(previous)
        assert record is not None
        return _deployment(folders, record, server, new=False, notes=(f"version {live} is retired",))


@keywords_of(ModelsOptions)
def models(options: ModelsOptions) -> list[VersionRecord]:
    """Lists every version of every model in the repository, by name and version.

    Raises:
        InputError: there is no such folder, or a log of versions is damaged.
    """
    repository = options.repository
    return [
        record for name in all_models(repository) for record in VersionLog.load(repository / name).records
    ]


def _deployment(
    folders: ModelFolders, record: VersionRecord, server: Client | None, *, new: bool, notes: tuple[str, ...]
) -> Deployment:
    address = None if server is None else f"{server.protocol}://{server.address}"
    repository = str(folders.repository)
    return Deployment(folders.name, record.version, repository, new, record.parity_verdict, address, notes)
