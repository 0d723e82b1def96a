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
from bertmp.export.parity.signature import require_signed
from bertmp.serve import rollout
from bertmp.serve.client import Client, connect
from bertmp.serve.deployable import Deployable, DeployableEngine, inspect_bundle
from bertmp.serve.model_config import read_signature
from bertmp.serve.repository import (
    ModelFolders,
    all_models,
    numbered,
    require_record,
    restore,
    retire,
)
from bertmp.serve.serving_options import DeployOptions, ModelsOptions, RollbackOptions
from bertmp.serve.version_files import missing_files, name_files
from bertmp.serve.version_log import VersionLog, VersionRecord


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
        signed_by: SHA-256 of the public key that it was checked against; empty where none was trusted.
    """

    name: str
    version: int
    repository: str
    new: bool
    parity: str
    server: str | None
    notes: tuple[str, ...] = ()
    consistency: Consistency | None = None
    signed_by: str = ""


@keywords_of(DeployOptions)
def deploy(options: DeployOptions) -> Deployment:
    """Writes a bundle as the newest version of a model, and brings it into service.

    An identical version that is live already and complete on the disk stays as it is. Where the server cannot
    answer with the new version, that is taken back and the one before it goes on answering. Without a server,
    the version answers when the repository is served next. Without a Triton release, an engine is checked
    against the release that it was built for, and against the server's own where that runs engines.

    Raises:
        InputError: a bundle that is stale or not a classifier, an engine of another TensorRT than the
            release has, labels or inputs other than the live version's, or a dead server.
        GateFailed: parity did not pass, the bundle is not as the trusted key signed it, the server refuses
            the version, or the version contradicts itself.
        MissingComponent: a key is trusted and model-signing is not installed.
    """
    # First of all: what is not as it was signed is not read.
    trusted = None if options.trust is None else require_signed(options.bundle, options.trust)
    bundle = Bundle.open(options.bundle)
    deployable = inspect_bundle(bundle, allow_incomplete=options.allow_incomplete, trusted=trusted)
    if options.triton_release is not None and deployable.engine is not None:
        deployable.engine.require_release(options.triton_release)
    folders = ModelFolders(options.repository, options.name)
    with _connection(options.server) as server, folders.locked():
        if server is not None and deployable.engine is not None:
            _require_servers_release(deployable.engine, folders, server)
        folders.cleanup()
        log, notes = _complete_log(folders)
        deployable = replace(deployable, notes=(*notes, *deployable.notes))
        current = log.find(folders.live())
        if current is None or current.fingerprint != deployable.fingerprint:
            if current is not None:
                _require_same_signature(folders, deployable)
            return _deploy_new(folders, log, deployable, server)
        if folders.names_signature():  # its files may be missing: the fingerprint covers the signature, too
            _require_same_signature(folders, deployable)
        if missing := missing_files(folders, current.version):
            lacks = f"the identical version {current.version} lacks {name_files(missing)}"
            note = f"{lacks}: deployed again, as a new version"
            return _deploy_new(folders, log, replace(deployable, notes=(note, *deployable.notes)), server)
        signed_by = deployable.signed_by or current.signed_by
        current = replace(current, parity=deployable.parity, signed_by=signed_by)
        log.put(current).with_live(current.version).save()
        found = None if server is None else rollout.promote(server, folders, current.version, deployable)
        notes = ("an identical version is live", *deployable.notes)
        return replace(_deployment(folders, current, server, new=False, notes=notes), consistency=found)


def _complete_log(folders: ModelFolders) -> tuple[VersionLog, tuple[str, ...]]:
    """The log with a record of every version that has a folder, and a note on those that had none.

    Raises:
        InputError: it is damaged.
    """
    log, versions = VersionLog.load(folders.text), numbered(folders.text)
    unknown = [str(version) for version in versions if log.find(version) is None]
    if not unknown:
        return log, ()
    what = f"{log.path.name} had no entry of version {', '.join(unknown)}"
    return log.with_folders(versions), (f"{what}: recorded from the folder, parity not checked",)


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
    if not folders.names_signature():
        what = "files that name the live version's labels or inputs are missing"
        todo = "restore them, deploy the live version's bundle again, or use another name"
        raise InputError(what, folders.text, todo)
    served = read_signature(folders.repository, folders.name)
    if (difference := served.difference(deployable.signature)) is not None:
        what = f"the bundle differs from the live version in its {difference}"
        raise InputError(what, folders.text, "deploy it under another name")


def _deploy_new(
    folders: ModelFolders, log: VersionLog, deployable: Deployable, server: Client | None
) -> Deployment:
    version = folders.next_version()
    record = VersionRecord(
        folders.name,
        version,
        "live",
        deployable.fingerprint,
        deployable.parity,
        signed_by=deployable.signed_by,
    )
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
        InputError: an unknown model, one without a record or an earlier version, an earlier version with
            missing files, or a dead server.
        GateFailed: the earlier version does not start; the live one stays.
    """
    known = all_models(options.repository)
    require_record(options.repository, options.name)
    if options.name not in known:
        todo = f"it has {', '.join(known)}" if known else "nothing is deployed there"
        raise InputError(f"no model '{options.name}' in the repository", options.repository, todo)
    folders = ModelFolders(options.repository, options.name)
    with _connection(options.server) as server, folders.locked():
        versions = numbered(folders.text)
        if len(versions) < 2:
            raise InputError(f"'{options.name}' has no earlier version", folders.text, "deploy one")
        *_, previous, live = versions
        log, notes = _complete_log(folders)
        if missing := missing_files(folders, previous):
            what = f"version {previous} of '{options.name}' lacks {name_files(missing)}"
            todo = "restore it, or deploy the bundle that should answer"
            raise InputError(what, options.repository, todo)
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
        log = log.put(replace(log[live], state="retired")).with_live(previous)
        log.save()
        notes = (f"version {live} is retired", *notes)
        return _deployment(folders, log[previous], server, new=False, notes=notes)


@keywords_of(ModelsOptions)
def models(options: ModelsOptions) -> list[VersionRecord]:
    """Lists every version of every model in the repository, by name and version.

    Raises:
        InputError: there is no such folder, or a log of versions is damaged or lost.
    """
    repository = options.repository
    known = all_models(repository)
    for path in sorted(repository.iterdir()):
        require_record(repository, path.name)
    return [record for name in known for record in VersionLog.load(repository / name).records]


def _deployment(
    folders: ModelFolders, record: VersionRecord, server: Client | None, *, new: bool, notes: tuple[str, ...]
) -> Deployment:
    address = None if server is None else f"{server.protocol}://{server.address}"
    return Deployment(
        name=folders.name,
        version=record.version,
        repository=str(folders.repository),
        new=new,
        parity=record.parity_verdict,
        server=address,
        notes=notes,
        signed_by=record.signed_by,
    )
