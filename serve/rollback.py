"""`bertmp rollback`: an earlier version answers again, or a later one that was rolled back."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bertmp.core.errors import BertmpError, InputError
from bertmp.core.options import keywords_of
from bertmp.serve import rollout
from bertmp.serve.audit import AuditLog, recording
from bertmp.serve.client import Client
from bertmp.serve.deployment import Deployment, complete_log, connection, deployment_of
from bertmp.serve.repository import ModelFolders, numbered, require_model, restore, retire
from bertmp.serve.serving_options import RollbackOptions
from bertmp.serve.version_files import changed_files, missing_files, name_files
from bertmp.serve.version_log import VersionLog


@keywords_of(RollbackOptions)
def rollback(options: RollbackOptions) -> Deployment:
    """Makes another kept version answer: the one before the live one, or the version `to`.

    Every version above it leaves Triton's sight and is kept.

    Raises:
        InputError: an unknown model, one without a record, no such version, one with missing files, or a dead
            server.
        GateFailed: the version does not start; the live one stays.
    """
    folders = require_model(options.repository, options.name)
    audit = AuditLog(folders.repository, folders.name, "rollback")
    with connection(options.server, options.token_file, options.repository) as server, folders.locked():
        folders.cleanup()
        log, notes = complete_log(folders)
        live, version = folders.live(), _chosen(folders, log, options.to)
        if missing := missing_files(folders, version):
            what = f"version {version} of '{options.name}' lacks {name_files(missing)}"
            todo = "restore it, or deploy the bundle that should answer"
            raise InputError(what, options.repository, todo)
        if changed := changed_files(folders, version):
            what = f"version {version} of '{options.name}' is not as it was deployed: {name_files(changed)}"
            todo = "restore what has changed, or deploy the bundle that should answer"
            raise InputError(what, options.repository, todo)
        before = log
        above = [one for one in log.records if one.version > version and one.state in ("live", "superseded")]
        for later in above:
            log = log.put(replace(later, state="retired"))
        log = log.with_live(version)
        record = log[version]
        facts = {
            "server": options.server,
            "fingerprint": record.fingerprint,
            "precision": record.precision,
        }
        try:
            with ExitStack() as undo:
                _switch(folders, server, version, undo)
                undo.callback(before.save)
                log.save()
                audit.write("switched", "done", version, before=live, **facts)
                undo.pop_all()
        except BertmpError as error:
            with recording(error):
                audit.write("switched", "refused", version, live=live, reason=str(error))
            raise
        _retire_encoder(folders, server, live, version)
        retired = [str(later.version) for later in above]
        verb = "is retired" if len(retired) == 1 else "are retired"
        gone = (f"version {' and '.join(retired)} {verb}",) if retired else ()
        return deployment_of(folders, record, server, new=False, notes=(*gone, *notes))


def _chosen(folders: ModelFolders, log: VersionLog, to: int | None) -> int:
    """The version that shall answer.

    Raises:
        InputError: there is none, or it answers already.
    """
    live, kept = folders.live(), folders.kept()
    if to is None:
        earlier = numbered(folders.text)[:-1]
        if not earlier:
            raise InputError(f"'{folders.name}' has no earlier version", folders.text, "deploy one")
        return earlier[-1]
    if to == live:
        raise InputError(f"version {to} of '{folders.name}' answers already", "--to", "name another")
    if to not in kept:
        record = log.find(to)
        why = f"was {record.state}" if record and record.state in ("refused", "pruned") else "is not there"
        others = ", ".join(str(version) for version in kept if version != live) or "none"
        what = f"version {to} of '{folders.name}' {why}"
        raise InputError(what, folders.text, f"kept are, beside the live one: {others}")
    return to


def _switch(folders: ModelFolders, server: Client | None, version: int, undo: ExitStack) -> None:
    """Moves folders and server to `version`; `undo` takes both back.

    Triton takes the highest number of a text model and the two highest of its encoder, so the encoder's are
    moved before the text model's, and the live one's encoder last (`_retire_encoder`): at no moment is a text
    version that answers without its encoder.
    """
    text, encoder, live = folders.text, folders.encoder, folders.live()
    if server is not None:
        undo.callback(rollout.reload, server, folders)
    if version not in numbered(encoder):
        _restore(encoder, version, undo)
    for number in numbered(encoder):
        if number > version and number != live:
            _retire(encoder, number, undo)
    if server is not None:
        server.load(encoder.name)
    if version not in numbered(text):
        _restore(text, version, undo)
    for number in numbered(text):
        if number > version:
            _retire(text, number, undo)
    if server is not None:
        rollout.switch(server, folders, live)


def _retire_encoder(folders: ModelFolders, server: Client | None, before: int | None, version: int) -> None:
    """Moves away the encoder of the version that answered `before`, which nobody calls any more."""
    if before is not None and before > version:
        retire(folders.encoder, before)
    if server is not None:
        server.load(folders.encoder.name)


def _restore(model: Path, version: int, undo: ExitStack) -> None:
    restore(model, version)
    undo.callback(retire, model, version)


def _retire(model: Path, version: int, undo: ExitStack) -> None:
    retire(model, version)
    undo.callback(restore, model, version)
