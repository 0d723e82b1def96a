"""gRPC encrypted by Triton, with a certificate of the server alone and with one of each side."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as library
from tritonclient.utils import InferenceServerException

from bertmp import infer
from bertmp.core.errors import InputError
from bertmp.serve.exposure import check_exposure
from bertmp.serve.serve_options import RunningServer, ServeOptions
from bertmp.serve.server import TritonServer

x509 = pytest.importorskip("cryptography.x509")
FREE: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}


class Authority:
    """A certificate authority in a folder: `ca.pem`, and `NAME.pem` with `NAME.key` of those it signs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = self._new_key("ca")
        self._certificate = self._sign("ca", self._key, is_authority=True)
        for name in ("server", "client"):
            self._sign(name, self._new_key(name))

    def path(self, name: str) -> Path:
        return self.folder / name

    def _new_key(self, name: str) -> Any:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        form = serialization.PrivateFormat.PKCS8
        encoded = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        self.path(f"{name}.key").write_bytes(encoded)
        return key

    def _sign(self, name: str, key: Any, is_authority: bool = False) -> Any:
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.x509.oid import NameOID

        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = subject if is_authority else self._certificate.subject
        now = datetime.now(timezone.utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        self.path(f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return certificate


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def label(running: RunningServer, **ssl: str) -> str:
    """The label of a text over encrypted gRPC."""
    tensor = library.InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"Who wrote Hamlet ?"]], dtype=object))
    with library.InferenceServerClient(running.grpc, ssl=True, **ssl) as client:
        found = client.infer("trec", [tensor], client_timeout=20).as_numpy("LABEL")
    return str(found.item().decode())


@contextmanager
def serving(repository: Path, authority: Authority, **more: Path) -> Iterator[RunningServer]:
    files = {"tls_cert": authority.path("server.pem"), "tls_key": authority.path("server.key")}
    with TritonServer(ServeOptions(repository, **FREE, **files, **more)) as running:
        yield running


def test_grpc_with_a_certificate_answers_encrypted_only(
    triton: None, repository: Path, authority: Authority, tmp_path: Path
) -> None:
    trusted = str(authority.path("ca.pem"))
    with serving(repository, authority) as running:
        assert (
            label(running, root_certificates=trusted)
            == infer("trec", ["Who wrote Hamlet ?"], protocol="http", url=running.http)[0].label
        )
        with pytest.raises(InputError):
            infer("trec", ["Who ?"], url=running.grpc)
        (tmp_path / "other").mkdir()
        other = Authority(tmp_path / "other")
        with pytest.raises(InferenceServerException):
            label(running, root_certificates=str(other.path("ca.pem")))


def test_grpc_with_an_authority_wants_the_clients_certificate(
    triton: None, repository: Path, authority: Authority
) -> None:
    trusted = str(authority.path("ca.pem"))
    own = {
        "private_key": str(authority.path("client.key")),
        "certificate_chain": str(authority.path("client.pem")),
    }
    with serving(repository, authority, tls_ca=authority.path("ca.pem")) as running:
        assert label(running, root_certificates=trusted, **own)
        with pytest.raises(InferenceServerException):
            label(running, root_certificates=trusted)


def test_http_stays_on_this_machine_where_grpc_is_encrypted(authority: Authority) -> None:
    files = {"tls_cert": authority.path("server.pem"), "tls_key": authority.path("server.key")}
    assert ServeOptions(Path("r"), host="0.0.0.0", **files).hosts["http"] == "127.0.0.1"
    assert ServeOptions(Path("r"), host="0.0.0.0", http_host="0.0.0.0", **files).hosts["http"] == "0.0.0.0"


def test_incomplete_or_missing_certificate_is_refused(
    triton: None, repository: Path, authority: Authority
) -> None:
    with pytest.raises(InputError, match="a certificate without its key"):
        ServeOptions(repository, tls_cert=authority.path("server.pem"))
    with pytest.raises(InputError, match="--tls-ca without"):
        ServeOptions(repository, tls_ca=authority.path("ca.pem"))
    server, client = authority.path("server.pem"), authority.path("client.key")
    with pytest.raises(InputError, match="not a certificate with its unencrypted key"):
        check_exposure(ServeOptions(repository, tls_cert=server, tls_key=client), "2.60.0")
    missing = {"tls_cert": authority.path("none.pem"), "tls_key": authority.path("server.key")}
    with pytest.raises(InputError, match="no such file"), TritonServer(ServeOptions(repository, **missing)):
        pass
