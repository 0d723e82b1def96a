"""A bundle's signature, `model.sig`: made with a private key, checked with the public one, without a network.

It is OpenSSF's model signature (a Sigstore bundle with an in-toto statement): the SHA-256 of every file that
ships, so that other tools check it, too. What the checks trust is read from the signed statement.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from bertmp.core.errors import GateFailed, InputError, MissingComponent, short_message
from bertmp.core.io import sha256_file, write_text
from bertmp.export.bundle import MANIFEST, PARITY, Bundle, Manifest
from bertmp.export.parity.certificate import CERTIFICATE, Finding, certified_files

SIGNATURE = "model.sig"
PASSWORD = "BERTMP_SIGN_PASSWORD"
"""The environment variable with the password of an encrypted private key."""

_KEYS = "an elliptic-curve key (P-256, P-384 or P-521) in PEM"

SignatureState = Literal["unsigned", "damaged", "of another key", "signed"]


@dataclass(frozen=True)
class BundleSignature:
    """What a check of a bundle's signature found.

    Attributes:
        state: `signed` where it was made with the trusted key's private half; what follows is then known.
        key: SHA-256 of the public key.
        files: every file that was signed, by its name in the bundle, and its SHA-256.
        changes: what is not as it was signed.
    """

    state: SignatureState
    key: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[Finding, ...] = ()


class Signer:
    """Signs one bundle with a private key. Both are checked when this is made, before any long work."""

    def __init__(self, key: Path, folder: Path) -> None:
        """Reads the key.

        Args:
            key: PEM; of an encrypted one, the environment has the password.
            folder: the bundle.

        Raises:
            InputError: there is no such file, it holds no key that can sign, the password is wrong, or the
                bundle holds links or the key itself.
            MissingComponent: model-signing is not installed.
        """
        _require_library()
        from model_signing import signing

        _require_file(key)
        if key.resolve().is_relative_to(folder.resolve()):
            raise InputError("the private key lies in the bundle", key, "move it elsewhere")
        for name in _irregular(folder):
            what = f"{name} is a link or no regular file, and what it leads to would not be signed"
            raise InputError(what, folder, "put the file itself there")
        self._folder, self._config = folder, signing.Config()
        password = os.environ.get(PASSWORD)
        # The library's annotation says `str`; what loads the key takes bytes alone.
        encoded: Any = password.encode() if password else None
        try:
            self._config.use_elliptic_key_signer(private_key=key, password=encoded)
        except Exception as error:  # the library lets through what those below it raise
            raise _refused_key(key, encoded, error) from error

    def sign(self, unsigned: Iterable[str]) -> None:
        """Writes the bundle's signature, completely or not at all.

        Args:
            unsigned: files and folders in the bundle that do not ship, relative to it.

        Raises:
            InputError: a file cannot be read, or the disk is full.
        """
        from model_signing import hashing

        ignored = hashing.Config().set_ignored_paths(paths=[SIGNATURE, *unsigned], ignore_git_paths=False)
        with tempfile.TemporaryDirectory() as scratch:  # in the bundle, it would be signed as well
            made = Path(scratch) / SIGNATURE
            self._config.set_hashing_config(ignored).sign(self._folder.resolve(), made)
            write_text(self._folder / SIGNATURE, made.read_text(encoding="utf-8"))


def _refused_key(key: Path, password: bytes | None, error: Exception) -> InputError:
    """The one line for a private key that the library does not take."""
    if isinstance(error, TypeError) and password:
        return InputError("the private key is not encrypted", key, f"unset {PASSWORD}")
    if isinstance(error, TypeError):
        return InputError("the private key is encrypted", key, f"give its password in {PASSWORD}")
    if password and _fails_to_open(key, password):
        return InputError(f"the password in {PASSWORD} is wrong", key, "give the key's own")
    return InputError("not a private key that can sign", key, f"give {_KEYS}")


def _fails_to_open(key: Path, password: bytes) -> bool:
    """Whether a file is an encrypted private key with another password.

    One wrong password in 256 gives an error about the key's format: its padding happens to be right.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        load_pem_private_key(key.read_bytes(), None)
    except TypeError:  # it is encrypted
        try:
            load_pem_private_key(key.read_bytes(), password)
        except ValueError:
            return True
    except Exception:  # what is no key has as many kinds of errors as there are formats
        return False
    return False


def does_not_ship(bundle: Bundle, reports: Iterable[Path], files: Iterable[str]) -> list[str]:
    """What a signature leaves out: reports, whose SHA-256 the signed manifest has.

    Args:
        reports: their folders, in the bundle or elsewhere.
        files: the names of a report's files.
    """
    home, found = bundle.folder.resolve(), []
    shipped = [PurePosixPath(name) for name in (*certified_files(bundle.manifest), MANIFEST)]
    for report in (report.resolve() for report in reports):
        if report.is_relative_to(home):
            place = PurePosixPath(report.relative_to(home).as_posix())
            whole = not any(name.is_relative_to(place) for name in shipped)
            found += [place] if whole else [place / name for name in files]
    return [str(path) for path in dict.fromkeys(found) if str(path) != CERTIFICATE]


def check_signature(folder: Path, key: Path) -> BundleSignature:
    """Checks a bundle's signature against a public key, and names what has changed since.

    Args:
        folder: the bundle.
        key: the public key in PEM.

    Raises:
        InputError: there is no such key, or it is none that signatures are checked with.
        MissingComponent: model-signing is not installed.
    """
    _require_library()
    from model_signing import verifying

    config = verifying.Config()
    _require_file(key)
    try:
        config.use_elliptic_key_verifier(public_key=key)
    except Exception as error:  # as above
        raise InputError("not a public key to check signatures with", key, f"give {_KEYS}") from error
    folder = folder.resolve()
    if not (folder / SIGNATURE).is_file():
        return BundleSignature("unsigned")
    content = (folder / SIGNATURE).read_bytes()
    try:
        claimed = _parse(content)
    except (ValueError, LookupError, TypeError, AttributeError):
        return BundleSignature("damaged")
    signed = BundleSignature("signed", _key_id(key))
    ours = _recording_config()
    with tempfile.TemporaryDirectory() as scratch:  # the bytes that were parsed are those that are checked
        copy = Path(scratch) / SIGNATURE
        copy.write_bytes(content)
        try:
            config.set_hashing_config(ours).verify(folder, copy)
        except Exception as error:  # another key, or what the parsers below the library raise
            if not ours.reached:
                return BundleSignature("of another key")
            found = tuple(_differences(folder, *claimed))
            changes = found or (Finding(SIGNATURE, f"does not hold: {short_message(error)}"),)
            return replace(signed, files=claimed[0], changes=changes)
    return replace(signed, files=ours.found, changes=tuple(_not_covered(folder, ours.found)))


def require_signed(folder: Path, key: Path) -> BundleSignature:
    """Checks that a bundle is as the holder of a key signed it.

    Raises:
        GateFailed: it is unsigned, signed with another key, or has changed since.
        InputError: not a bundle, or not a public key.
        MissingComponent: model-signing is not installed.
    """
    if not (folder / SIGNATURE).is_file():
        Bundle.open(folder)  # where there is no bundle, that is what is wrong
    found = check_signature(folder, key)
    if found.state == "unsigned":
        todo = "sign it with 'bertmp parity --sign', or deploy it without --trust"
        raise GateFailed("the bundle is unsigned", folder, todo)
    if found.state != "signed":
        raise GateFailed(f"the bundle's signature {not_trusted(found, key)}", folder, "ask whoever made it")
    if found.changes:
        shown = "; ".join(one.sentence() for one in found.changes[:_SHOWN])
        more = f" and {len(found.changes) - _SHOWN} more" if len(found.changes) > _SHOWN else ""
        todo = "restore it, or run 'bertmp parity --sign' again"
        raise GateFailed(f"the bundle has changed since it was signed: {shown}{more}", folder, todo)
    return found


_SHOWN = 5
"""Changes that an error names; `verify` names all."""


def not_trusted(found: BundleSignature, key: Path) -> str:
    """Why a signature proves nothing, in words that follow its name."""
    if found.state == "damaged":
        return "is damaged, or of another kind"
    return f"was not made with the key that belongs to {key}"


def _require_library() -> None:
    try:
        import model_signing.signing
        import model_signing.verifying  # noqa: F401
    except ImportError as error:
        todo = "pip install '.[sign]' in the clone"
        raise MissingComponent(f"model-signing cannot be used: {error}", "", todo) from error


def _require_file(key: Path) -> None:
    if not key.is_file():
        raise InputError("no such file", key, f"give {_KEYS}")


def _key_id(key: Path) -> str:
    """SHA-256 of a public key, as model-signing names it in a signature."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    loaded = load_pem_public_key(key.read_bytes())
    return hashlib.sha256(loaded.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _recording_config() -> Any:
    """A hashing configuration that tells what it hashed, and that it was asked at all.

    The library asks it only after it has found that the signature is the key's: nothing else tells a bundle
    that has changed from a signature of somebody else.
    """
    from model_signing import hashing

    class Recording(hashing.Config):
        reached = False
        found: Mapping[str, str] = {}

        def hash(self, *arguments: Any, **keywords: Any) -> Any:
            self.reached = True
            manifest = super().hash(*arguments, **keywords)
            self.found = {one.identifier: one.digest.digest_hex for one in manifest.resource_descriptors()}
            return manifest

    return Recording().set_ignored_paths(paths=[], ignore_git_paths=False)


def _parse(content: bytes) -> tuple[dict[str, str], list[str]]:
    """What a signature says: each file's SHA-256, and the paths that were left out; nothing is proven yet.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: it is no signature of this kind.
    """
    bundle = json.loads(content)
    if not bundle["verificationMaterial"]["publicKey"]["hint"]:
        raise ValueError("it does not say which key it was made with")
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True))
    how = statement["predicate"]["serialization"]
    resources = statement["predicate"]["resources"]
    if how["method"] != "files" or any(one["algorithm"] != "sha256" for one in resources):
        raise ValueError("it is not about the SHA-256 of files")
    return {one["name"]: one["digest"] for one in resources}, list(how.get("ignore_paths", ()))


def _differences(folder: Path, files: Mapping[str, str], ignored: Iterable[str]) -> Iterator[Finding]:
    """Every file that is not as it was signed."""
    links = set(_irregular(folder))
    for name, digest in files.items():
        path = folder / name
        if name in links or not path.is_file():
            yield Finding(name, "is a link" if name in links else "is missing")
        elif sha256_file(path) != digest:
            yield Finding(name, "differs")
    left_out = [PurePosixPath(name) for name in ignored]
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name in files or (path.is_dir() and not path.is_symlink()):
            continue
        if name in links or not any(PurePosixPath(name).is_relative_to(one) for one in left_out):
            yield Finding(name, "was added since the bundle was signed")


def _irregular(folder: Path) -> list[str]:
    """Links and the like, whose content a signature does not hold."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or not (path.is_file() or path.is_dir())
    ]


def _not_covered(folder: Path, files: Mapping[str, str]) -> Iterator[Finding]:
    """What ships and was left out when the bundle was signed, by another tool."""
    if MANIFEST not in files:  # which says what ships
        yield Finding(MANIFEST, "was not signed")
        return
    manifest = Manifest.load(folder)
    certificate = [CERTIFICATE] if PARITY in manifest.stages else []
    for name in (*certified_files(manifest), *certificate):
        if name not in files:
            yield Finding(name, "was not signed")
