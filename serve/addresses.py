"""Where the servers of a repository answer: `bertmp serve` says it in a file, `bertmp deploy` reads it.

A deployment is told one address and tries a new version over both protocols.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, write_json
from bertmp.serve.client import Client
from bertmp.serve.retry import NO_RETRIES
from bertmp.serve.serve_options import RunningServer
from bertmp.serve.serving_options import Protocol

_PATTERN = ".serving-{}.json"


@contextmanager
def published(repository: Path, running: RunningServer) -> Iterator[None]:
    """Says where a server answers for the length of the block, unless the repository is read-only."""
    path = repository / _PATTERN.format(running.pid)
    with suppress(InputError):
        write_json(path, {"grpc": running.grpc, "http": running.http})
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def other_protocol(repository: Path, server: Client) -> Client | None:
    """A connection to the same server over its other protocol; None where its address is not known."""
    other: Protocol = "http" if server.protocol == "grpc" else "grpc"
    for address in _other_addresses(repository, server, other):
        client = Client(address, other, retry=NO_RETRIES)
        if client.is_live():
            return client
        client.close()
    return None


def _other_addresses(repository: Path, server: Client, other: Protocol) -> Iterator[str]:
    mine: Protocol = server.protocol
    for path in sorted(repository.glob(_PATTERN.format("*"))):
        with suppress(InputError, KeyError, TypeError):
            found = read_json(path)
            if found[mine] == server.address:
                yield str(found[other])
