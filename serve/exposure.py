"""Whether a server may be reached from other machines, and what the user should know where it is."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from bertmp.core.errors import InputError
from bertmp.environment.triton_security import CVES, FIXED_RELEASE, vulnerabilities
from bertmp.serve.access import is_loopback
from bertmp.serve.serve_options import ServeOptions


def check_exposure(options: ServeOptions, version: str) -> tuple[str, ...]:
    """Checks where the server will listen; what the user should know about it.

    Args:
        version: Triton's version.

    Raises:
        InputError: beyond this machine, with a Triton of known vulnerabilities that are not accepted; or a
            file for TLS is not there.
    """
    _check_certificates(options)
    exposed = {name: host for name, host in options.hosts.items() if not is_loopback(host)}
    if not exposed:
        return ()
    if vulnerabilities(version) and not options.allow_vulnerable:
        what = f"Triton {version} has known vulnerabilities ({', '.join(CVES)}), fixed in {FIXED_RELEASE}"
        todo = "listen on 127.0.0.1, use a newer Triton, or accept the risk with --allow-vulnerable"
        raise InputError(what, ", ".join(sorted(set(exposed.values()))), todo)
    return tuple(_warnings(options, exposed, version))


def _check_certificates(options: ServeOptions) -> None:
    """Reads the files as Triton will, which says of bad ones that the port is taken.

    Raises:
        InputError: one is missing or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name in ("tls_cert", "tls_key", "tls_ca"):
        file = getattr(options, name)
        if file is not None and not file.is_file():
            raise InputError("no such file", file, f"name a PEM file with --{name.replace('_', '-')}")
    try:
        if options.tls_cert is not None and options.tls_key is not None:
            what, where = "not a certificate with its unencrypted key", options.tls_cert
            context.load_cert_chain(where, options.tls_key, password="")
        if options.tls_ca is not None:
            what, where = "not an authority's certificate", options.tls_ca
            context.load_verify_locations(where)
    except (ssl.SSLError, OSError) as error:
        raise InputError(what, where, f"give PEM files that belong together ({error})") from error


def _warnings(options: ServeOptions, exposed: dict[str, str], version: str) -> Iterator[str]:
    ports = ", ".join(f"{name} on {host}" for name, host in sorted(exposed.items()))
    yield f"warning: other machines reach {ports}: anyone there may ask the models"
    if "http" in exposed or ("grpc" in exposed and options.tls_cert is None):
        yield "warning: texts and answers are not encrypted: put a proxy with TLS in front, or use --tls-cert"
    if vulnerabilities(version):
        yield f"warning: Triton {version} has known vulnerabilities ({', '.join(CVES)}), accepted by option"
