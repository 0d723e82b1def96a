"""Keys for the tests of signatures, made when a test asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Keys(NamedTuple):
    """The files of a private key and its public one, PEM."""

    private: Path
    public: Path


def require_model_signing() -> None:
    """Skips where the extra `sign` is not installed."""
    pytest.importorskip("model_signing", reason="the extra 'sign' is not installed", exc_type=ImportError)


def make_keys(folder: Path, key: Any = None, password: bytes | None = None) -> Keys:
    """Writes a pair of keys into a new folder.

    Args:
        key: a private key of `cryptography`; a new one on P-256 if none is given.
        password: encrypts the private key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = key or ec.generate_private_key(ec.SECP256R1())
    secrecy = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    folder.mkdir()
    keys = Keys(folder / "key.pem", folder / "key.pub")
    keys.private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, secrecy))
    keys.public.write_bytes(public)
    return keys
