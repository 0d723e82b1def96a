"""The key to what changes a server: loading models, shared memory, logging and traces.

Triton asks for it on both protocols; asking a model needs none. It lies in a file that only its owner reads.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from bertmp.core.errors import InputError
from bertmp.core.io import file_lock, home, writing_to

HEADER = "bertmp-key"
RESTRICTED = ("model-repository", "shared-memory", "logging", "trace")
"""The parts of Triton's interfaces that need the key."""

_GRPC_PREFIX = "triton-grpc-protocol-"
"""What Triton puts before a header's name over gRPC."""
_KEY = re.compile(r"[A-Za-z0-9_-]{16,256}")
_SHOWN = "not-shown"


@dataclass(frozen=True)
class AccessKey:
    """The key.

    Attributes:
        value: the secret.
    """

    value: str = field(repr=False)

    def headers(self, protocol: str = "http") -> dict[str, str]:
        """The header that a request needs over `http` or `grpc`."""
        return {(_GRPC_PREFIX if protocol == "grpc" else "") + HEADER: self.value}

    def hidden_arguments(self) -> dict[str, str]:
        """Triton's arguments as everybody may see them → as Triton needs them."""
        names = ",".join(RESTRICTED)
        flags = [
            f"--{flag}={names}:{HEADER}=" for flag in ("http-restricted-api", "grpc-restricted-protocol")
        ]
        return {f"{flag}{_SHOWN}": f"{flag}{self.value}" for flag in flags}


def default_key_file() -> Path:
    """The file of this user's key."""
    return home() / "serve" / "key"


def load_or_create_key(file: Path | None) -> AccessKey:
    """The key in a file; a new one where there is no file yet.

    Raises:
        InputError: the file cannot be read or written, others may read it, or it holds no key.
    """
    path = file or default_key_file()
    if not path.exists():
        with file_lock(path.with_name(f".{path.name}.lock")):
            if not path.exists():  # another server may have made it while we waited
                _write_secret(path, secrets.token_urlsafe(32))
    return read_key(path)


def find_key(address: str, file: Path | None) -> AccessKey | None:
    """The key to show a server: that in the file, or without one, to this machine alone, the user's own.

    Args:
        address: the server's `host:port`: a key is not sent to another machine unless its file is named.

    Raises:
        InputError: the named file is not there, others may read it, or it holds no key.
    """
    if file is not None:
        return read_key(file)
    path = default_key_file()
    return read_key(path) if is_loopback(address.rpartition(":")[0]) and path.exists() else None


def read_key(path: Path) -> AccessKey:
    """The key in a file.

    Raises:
        InputError: there is no such file, others may read it, or it holds no key.
    """
    try:
        with path.open(encoding="ascii", errors="replace") as stream:
            found = os.fstat(stream.fileno())
            value = stream.read(1000).strip()
    except OSError as error:
        todo = "name the file that 'bertmp serve' uses"
        raise InputError(f"cannot read the key: {error.strerror}", path, todo) from error
    if found.st_uid not in (os.geteuid(), 0):
        raise InputError("the key file belongs to another user", path, "use one of your own")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise InputError("other users may read or change the key file", path, f"chmod 600 {path}")
    if not _KEY.fullmatch(value):
        what = "the file holds no key: 16 to 256 letters, digits, - and _"
        raise InputError(what, path, "remove it, so that 'bertmp serve' makes one")
    return AccessKey(value)


def _write_secret(path: Path, value: str) -> None:
    """Writes a file that only its owner reads, completely or not at all."""
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)  # 0600
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(f"{value}\n")
                stream.flush()
                os.fsync(descriptor)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is reached from this machine only."""
    host = host.strip("[]").rpartition("%")[0] or host.strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
