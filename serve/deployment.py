"""What a deployment or a rollback ended with, and what both begin with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bertmp.core.io import JsonSerializable
from bertmp.serve.addresses import other_protocol
from bertmp.serve.canary import CanaryResult
from bertmp.serve.client import Client
from bertmp.serve.control import connect
from bertmp.serve.deployable import FP32
from bertmp.serve.repository import ModelFolders, numbered
from bertmp.serve.serving_table import ServingTable
from bertmp.serve.version_log import VersionLog, VersionRecord


@dataclass(frozen=True)
class Deployment(JsonSerializable):
    """The result of a deployment or a rollback.

    Attributes:
        name: the model.
        version: the version that answers now.
        repository: the repository that holds it.
        new: False where an identical version was live already, and after a rollback.
        parity: `passed`, `incomplete`, or `not checked`.
        server: the server that took it; None where none was named.
        notes: what else the user should know.
        canary: what the version answered before it was promoted; None where no server was named, and after a
            rollback.
        signed_by: SHA-256 of the public key that it was checked against; empty where none was trusted.
        serving: how a machine without a GPU is used.
        precision: what that runs the version's graph in, where it can: `fp32` or `bf16`.
    """

    name: str
    version: int
    repository: str
    new: bool
    parity: str
    server: str | None
    notes: tuple[str, ...] = ()
    canary: CanaryResult | None = None
    signed_by: str = ""
    serving: ServingTable | None = None
    precision: str = FP32


def complete_log(folders: ModelFolders) -> tuple[VersionLog, tuple[str, ...]]:
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


def connection(
    server: str | None, token_file: Path | None, repository: Path
) -> AbstractContextManager[Client | None]:
    """The connection to the named server, checked before anything is written.

    Args:
        repository: what it serves.

    Raises:
        InputError: the server is dead, or its key cannot be read.
    """
    if server is None:
        return nullcontext()
    found = connect(server, token_file)
    if found.protocol == "http":
        found.load_over(other_protocol(repository, found))
    return found


def deployment_of(
    folders: ModelFolders, record: VersionRecord, server: Client | None, *, new: bool, notes: tuple[str, ...]
) -> Deployment:
    """The result of a command that made `record`'s version the one that answers."""
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
        serving=folders.serving(),
        precision=record.precision,
    )
