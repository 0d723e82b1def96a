"""Where a server is and how it is reached: its address, the protocol, encryption, deadlines and retries."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from bertmp.core.errors import InputError
from bertmp.serve.retry import NO_RETRIES, RETRIES, RetryPolicy
from bertmp.serve.serving_options import REQUEST_TIMEOUT, Protocol

PORTS: Mapping[Protocol, int] = {"grpc": 8001, "http": 8000}
SCHEMES = {"grpc": ("", "grpc", "grpcs"), "http": ("", "http", "https")}


def parse_address(url: str | None, protocol: Protocol) -> tuple[str, bool]:
    """`host:port` and whether it is encrypted, of an address with or without a scheme and a port.

    Raises:
        InputError: an unknown protocol, a scheme of another protocol, or not an address at all.
    """
    if protocol not in PORTS:
        raise InputError(f"unknown protocol '{protocol}'", "", f"use one of {', '.join(PORTS)}")
    address = (url or "127.0.0.1").strip().rstrip("/")
    scheme, _, host = address.rpartition("://")
    if scheme not in SCHEMES[protocol]:
        raise InputError(
            f"not an address for {protocol}", address, f"begin it with {protocol}:// or without a scheme"
        )
    if not host or "/" in host:
        raise InputError("not a server's address", address, "write HOST:PORT")
    has_port = ":" in host.rpartition("]")[2]  # an IPv6 host stands in brackets
    return host if has_port else f"{host}:{PORTS[protocol]}", scheme.endswith("s")


@dataclass(frozen=True)
class Tls:
    """The files of an encrypted connection, all PEM.

    Attributes:
        ca: the authority that must have signed the server's certificate; None for those the system trusts.
        cert, key: the certificate that is shown to the server, and its key; None shows none.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @property
    def is_given(self) -> bool:
        return any((self.ca, self.cert, self.key))

    def check(self) -> None:
        """Checks that the files are there and fit.

        Raises:
            InputError: a missing or damaged file, or a certificate without its key.
        """
        if (self.cert is None) != (self.key is None):
            raise InputError("a certificate without its key, or a key alone", "", "give both")
        self.context()

    def context(self) -> ssl.SSLContext:
        """What Python's own TLS connects with.

        Raises:
            InputError: a missing or damaged file.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except (ssl.SSLError, OSError) as error:
            named = " or ".join(str(file) for file in (self.ca, self.cert, self.key) if file)
            what = "no such file" if isinstance(error, FileNotFoundError) else "not a PEM file of this kind"
            raise InputError(what, named, "check --tls-ca, --tls-cert and --tls-key") from error
        return context

    def grpc_arguments(self) -> dict[str, str | None]:
        """For tritonclient's gRPC client."""
        files = {"root_certificates": self.ca, "private_key": self.key, "certificate_chain": self.cert}
        return {name: None if file is None else str(file) for name, file in files.items()}

    def http_options(self) -> dict[str, Any]:
        """For tritonclient's HTTP client."""
        files = {"ca_certs": self.ca, "keyfile": self.key, "certfile": self.cert}
        return {name: str(file) for name, file in files.items() if file is not None}


@dataclass(frozen=True)
class Connection:
    """How a server is reached.

    Attributes:
        address: `host:port`.
        protocol: the inference protocol.
        encrypted: whether TLS is spoken.
        tls: with which files.
        timeout: seconds that a request may take, its retries included.
        retry: what happens where a request fails that may succeed later.
    """

    address: str
    protocol: Protocol
    encrypted: bool = False
    tls: Tls = Tls()
    timeout: float = REQUEST_TIMEOUT
    retry: RetryPolicy = NO_RETRIES


class ConnectionOptions(TypedDict, total=False):
    """The keywords of `Client` and `AsyncClient` alike, see `Client`."""

    tls_ca: str | Path | None
    tls_cert: str | Path | None
    tls_key: str | Path | None
    timeout: float
    retry: RetryPolicy


def possible_connections(
    url: str | None,
    protocol: Protocol | None,
    *,
    tls_ca: str | Path | None = None,
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
    timeout: float = REQUEST_TIMEOUT,
    retry: RetryPolicy = RETRIES,
) -> list[Connection]:
    """What an address may mean: one connection, or one for each protocol where none is named.

    Raises:
        InputError: not an address, one of another protocol than `protocol`, or certificates for an address
            that says that it is not encrypted.
    """
    scheme = (url or "").strip().partition("://")[0] if "://" in (url or "") else ""
    if protocol is not None:
        protocols: tuple[Protocol, ...] = (protocol,)
    elif scheme:
        protocols = ("http",) if scheme in SCHEMES["http"] else ("grpc",)
    else:
        protocols = ("grpc", "http") if url else ("grpc",)
    if scheme and protocol is None and not any(scheme in known for known in SCHEMES.values()):
        raise InputError(f"unknown scheme '{scheme}'", str(url), "use grpc://, grpcs://, http:// or https://")
    tls = Tls(*(file if file is None else Path(file) for file in (tls_ca, tls_cert, tls_key)))
    if tls.is_given:
        tls.check()
        if scheme in PORTS:
            what = f"certificates for an address without encryption, {scheme}://"
            raise InputError(what, str(url), f"begin it with {scheme}s://")
    found = []
    for one in protocols:
        address, encrypted = parse_address(url, one)
        found.append(Connection(address, one, encrypted or tls.is_given, tls, timeout, retry))
    return found
