"""`bertmp deploy` and `bertmp models`: a bundle becomes the version of a model that answers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bertmp.core.errors import BertmpError, GateFailed, InputError
from bertmp.core.options import keywords_of
from bertmp.export.bundle import FP32_GRAPH, MANIFEST, Bundle
from bertmp.export.engine.compatibility import release_of_server
from bertmp.export.parity.signature import require_signed
from bertmp.serve import rollout
from bertmp.serve.addresses import other_protocol
from bertmp.serve.audit import AuditLog, recording
from bertmp.serve.canary import CanaryResult, try_version
from bertmp.serve.client import Client
from bertmp.serve.config_check import check_configs
from bertmp.serve.deployable import FP32, PLAN, Accepted, Deployable, DeployableEngine, inspect_bundle
from bertmp.serve.deployment import Deployment, complete_log, connection, deployment_of
from bertmp.serve.golden import write_golden
from bertmp.serve.golden_record import golden_cases
from bertmp.serve.model_signature import read_model_config, read_signature
from bertmp.serve.prune import remove_all_but
from bertmp.serve.repository import (
    ModelFolders,
    all_models,
    numbered,
    require_record,
    require_repository_folder,
    version_folder,
)
from bertmp.serve.serving_options import DeployOptions, ModelsOptions
from bertmp.serve.staging import copy_version, staging, take_over
from bertmp.serve.version_files import changed_files, missing_files, name_files
from bertmp.serve.version_log import VersionLog, VersionRecord


@keywords_of(DeployOptions)
def deploy(options: DeployOptions) -> Deployment:
    """Writes a bundle as the newest version of a model, and brings it into service.

    An identical version that is live already and complete on the disk stays as it is. Where the server cannot
    answer with the new version, that is taken back and the one before it goes on answering. Without a server,
    the version answers when the repository is served next. Without a Triton release, an engine is checked
    against the release that it was built for, and against the server's own where that runs engines.

    Raises:
        InputError: a bundle that is stale or for a task that is not served, an engine of another TensorRT
            than the release has, a task, labels or inputs other than the live version's, or a dead server.
        GateFailed: parity was not run or did not pass, the bundle is not as the trusted key signed it, the
            server refuses the version, or the version contradicts itself.
        MissingComponent: a key is trusted and model-signing is not installed.
    """
    require_repository_folder(options.repository)
    deployable = _inspect(options)
    if options.triton_release is not None and deployable.engine is not None:
        deployable.engine.require_release(options.triton_release)
    folders = ModelFolders(options.repository, options.name)
    with connection(options.server, options.token_file, options.repository) as server, folders.locked():
        if server is not None and deployable.engine is not None:
            _require_servers_release(deployable.engine, folders, server)
        folders.cleanup()
        result = _bring_in(folders, deployable, server)
        if options.keep is None:
            return result
        removed = remove_all_but(folders, options.keep).removed
    note = f"removed: version {', '.join(map(str, removed))} (--keep {options.keep})"
    return replace(result, notes=(*result.notes, note)) if removed else result


def _inspect(options: DeployOptions) -> Deployable:
    """Decides whether the bundle may be deployed; a refusal goes on record where there is a repository.

    Raises:
        GateFailed: it may not.
    """
    try:
        # First of all: what is not as it was signed is not read.
        trusted = None if options.trust is None else require_signed(options.bundle, options.trust)
        accepts = Accepted(options.allow_incomplete, options.allow_unverified)
        bundle = Bundle.open(options.bundle)
        return inspect_bundle(
            bundle,
            accepts,
            answering=options.answering(bundle.task),
            trusted=trusted,
            cpu_precision=options.cpu_precision,
        )
    except GateFailed as error:
        if options.repository.is_dir():
            audit = AuditLog(options.repository, options.name, "deploy")
            with recording(error):
                audit.write("inspected", "refused", bundle=options.bundle.absolute(), reason=str(error))
        raise


def _bring_in(folders: ModelFolders, deployable: Deployable, server: Client | None) -> Deployment:
    """Makes the bundle's version the live one, or finds that it is."""
    log, notes = complete_log(folders)
    deployable = replace(deployable, notes=(*notes, *deployable.notes))
    current = log.find(folders.live())
    if current is None or current.fingerprint != deployable.fingerprint:
        if current is not None:
            _require_same_signature(folders, deployable)
            _require_same_profiles(folders, deployable.engine)
        return _deploy_new(folders, log, deployable, server)
    if folders.names_signature():  # its files may be missing: the fingerprint covers the signature, too
        _require_same_signature(folders, deployable)
    missing, changed = missing_files(folders, current.version), changed_files(folders, current.version)
    if missing or changed:
        fault = f"lacks {name_files(missing)}" if missing else f"has another {name_files(changed)}"
        note = f"the identical version {current.version} {fault}: deployed again, as a new version"
        return _deploy_new(folders, log, replace(deployable, notes=(note, *deployable.notes)), server)
    signed_by = deployable.signed_by or current.signed_by
    current = replace(
        current,
        parity=deployable.parity,
        signed_by=signed_by,
        accepted=deployable.accepted,
        precision=deployable.precision,
    )
    log.put(current).with_live(current.version).save()
    audit = _audit(folders)
    audit.write("identical", "done", current.version, **_facts(deployable, server))
    notes = ("an identical version is live", *deployable.notes)
    deployed = deployment_of(folders, current, server, new=False, notes=notes)
    if server is None:
        return deployed
    # It may have been written without a server, which then answers with an earlier one still.
    with staging(folders) as staged:
        copy_version(folders, staged, current.version)
        check_configs(staged, current.version)
        found = _try(staged, server, current.version, deployable, audit)
    rollout.promote(server, folders, current.version)
    audit.write("promoted", "done", current.version)
    return replace(deployed, canary=found, notes=(*notes, *found.notes))


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


def _require_same_profiles(folders: ModelFolders, engine: DeployableEngine | None) -> None:
    """Checks that an engine has as many optimisation profiles as those of the kept versions.

    Triton's configuration names them for all versions of a model, and Triton does not load an engine that
    lacks one of them.

    Raises:
        InputError: it has not.
    """
    has_plan = [one for one in folders.kept() if (version_folder(folders.encoder, one) / PLAN).is_file()]
    config = folders.encoder / "config.pbtxt"
    if engine is None or not has_plan or not config.is_file():
        return
    named = max((len(group.profile) for group in read_model_config(config).instance_group), default=0)
    if named != (count := len(engine.profiles)):
        what = f"the engine has {count} optimisation profiles, and that of version {has_plan[-1]} has {named}"
        raise InputError(what, folders.encoder, "build it with as many, or deploy it under another name")


def _deploy_new(
    folders: ModelFolders, log: VersionLog, deployable: Deployable, server: Client | None
) -> Deployment:
    """Stages a new version, tries it where a server runs, and lets it answer; a failed one is withdrawn.

    Until it is promoted, nothing of what the live version needs has changed.
    """
    record, audit = _new_record(folders, deployable), _audit(folders)
    version, canary = record.version, None
    step, configs = "staged", folders.config_texts()
    try:
        with staging(folders) as staged:
            _stage(staged, folders, version, deployable)
            audit.write(step, "done", version, **_facts(deployable, server))
            if server is not None:
                step = "canary"
                canary = _try(staged, server, version, deployable, audit)
            step = "promoted"
            _write_configs(folders, folders, deployable)
            take_over(folders, staged, version)
        # Triton takes this version at its next start: the log records that before a server is asked.
        log.put(record).with_live(version).save()
        if server is not None:
            rollout.promote(server, folders, version)
        audit.write(step, "done", version)
    except BaseException as error:
        reason = str(error) if isinstance(error, BertmpError) else "interrupted"
        with recording(error):
            folders.restore_configs(configs)
            _withdraw(folders, log, replace(record, state="refused", note=reason), server)
            audit.write(step, "refused", version, reason=reason, live=folders.live())
        raise
    notes = (*deployable.notes, *(canary.notes if canary else ()))
    return replace(deployment_of(folders, record, server, new=True, notes=notes), canary=canary)


def _new_record(folders: ModelFolders, deployable: Deployable) -> VersionRecord:
    return VersionRecord(
        folders.name,
        folders.next_version(),
        "live",
        deployable.fingerprint,
        deployable.parity,
        signed_by=deployable.signed_by,
        accepted=deployable.accepted,
        precision=deployable.precision,
    )


def _stage(staged: ModelFolders, folders: ModelFolders, version: int, deployable: Deployable) -> None:
    """Writes the version and its configurations under the stand-in's name, and checks the configurations."""
    _write_configs(staged, folders, deployable)
    _write_version(staged, folders, version, deployable)
    check_configs(staged, version)


def _withdraw(folders: ModelFolders, log: VersionLog, refused: VersionRecord, server: Client | None) -> None:
    """Removes what there is of a version that failed; the one before it answers, and the log says both."""
    promoted = refused.version in numbered(folders.text)
    folders.remove(refused.version)
    if server is not None and promoted:
        rollout.abort(server, folders, refused.version)
    log.put(refused).with_live(folders.live()).save()


def _write_configs(target: ModelFolders, folders: ModelFolders, deployable: Deployable) -> None:
    """Writes a version's configurations to `target`, the model's own folders or its stand-in's."""
    engine = deployable.engine
    compatible = engine is not None and engine.version_compatible
    profiles = None if engine is None else len(engine.profiles)
    # A server keeps the live version's encoder loaded for a while, with this configuration too.
    live = numbered(folders.encoder)[-1:]
    has_it = all((folders.encoder / str(one) / deployable.gpu_graph).is_file() for one in live)
    gpu_graph = deployable.gpu_graph if has_it else FP32_GRAPH
    target.write_configs(deployable.signature, profiles, compatible, deployable.serving(), gpu_graph)


def _write_version(staged: ModelFolders, folders: ModelFolders, version: int, deployable: Deployable) -> None:
    names = {staged.text.name: folders.text.name, staged.encoder.name: folders.encoder.name}

    def fill_text(folder: Path) -> None:
        low = deployable.precision != FP32
        cases = golden_cases(deployable.bundle, staged, deployable.answering.pooling, low)
        write_golden(folder, [replace(case, model=names[case.model]) for case in cases])
        deployable.fill_text(folder)

    staged.write_version(version, deployable.fill_encoder, fill_text)


def _try(
    staged: ModelFolders, server: Client, version: int, deployable: Deployable, audit: AuditLog
) -> CanaryResult:
    """Has the server load the stand-in, tries it over both protocols, has it unloaded, and records it.

    Raises:
        GateFailed: it does not load, does not answer, answers otherwise than recorded, or contradicts itself.
    """
    with rollout.loaded(server, staged, version), ExitStack() as cleanup:
        other = other_protocol(staged.repository, server)
        if other is not None:
            cleanup.enter_context(other)
        clients = [client for client in (server, other) if client is not None]
        with rollout.failing_the_gate(f"version {version} of '{staged.name}' is refused"):
            found = try_version(clients, staged.text.name, version, deployable)
    figures = {name: value for name, value in found.to_json().items() if name != "consistency"}
    audit.write("canary", "done", version, **figures, largest_difference=found.consistency.difference)
    return found


def _audit(folders: ModelFolders) -> AuditLog:
    return AuditLog(folders.repository, folders.name, "deploy")


def _facts(deployable: Deployable, server: Client | None) -> dict[str, Any]:
    """What is deployed, by hash, on whose word, and where."""
    bundle = deployable.bundle
    return {
        "bundle": bundle.folder.absolute(),
        "manifest": bundle.sha256(MANIFEST),
        "fingerprint": deployable.fingerprint,
        "verdict": deployable.verdict,
        "accepted": deployable.accepted,
        "signed_by": deployable.signed_by,
        "precision": deployable.precision,
        "server": server and server.address,
    }


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
