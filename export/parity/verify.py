"""`bertmp verify`: checks a bundle against its certificate, without a network, a GPU or a server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bertmp.core.errors import InputError
from bertmp.core.io import JsonSerializable, read_json, sha256_file
from bertmp.core.options import keywords_of
from bertmp.export.bundle import MANIFEST, PARITY, Bundle, Manifest
from bertmp.export.parity.certificate import (
    CERTIFICATE,
    CHECKPOINT,
    DATA,
    REPORT_OUTSIDE,
    Certificate,
    Finding,
    certified_files,
    parse_certificate,
)
from bertmp.export.parity.signature import SIGNATURE, SignatureState, check_signature, not_trusted
from bertmp.export.parity.verify_options import VerifyOptions

VERDICT = "the verdict"
"""Whose finding is that parity had not passed: nothing has changed then."""


@dataclass(frozen=True)
class Verification(JsonSerializable):
    """What `verify` found.

    Attributes:
        bundle: the bundle's folder.
        verdict: the certificate's; empty where it is missing or damaged.
        created: when the certificate was made: ISO 8601, UTC; empty as well.
        not_checked: the stages that parity had not checked, with the reason.
        matching: the subjects that are what the certificate says.
        changes: what is not; nothing may have changed in a bundle that is verified.
        not_compared: the subjects outside the bundle that are not on this machine.
        signature: `unsigned`, `not checked` (no key was given), `signed` (with the trusted key), `damaged` or
            `of another key`.
        signed_by: SHA-256 of the trusted key that it is signed with; empty otherwise.
    """

    bundle: Path
    verdict: str
    created: str
    not_checked: tuple[str, ...]
    matching: tuple[str, ...]
    changes: tuple[Finding, ...]
    not_compared: tuple[Finding, ...]
    signature: SignatureState | Literal["not checked"] = "unsigned"
    signed_by: str = ""

    @property
    def verified(self) -> bool:
        """Whether nothing has changed and the verdict is `passed`; with a trusted key, it is signed too."""
        return not self.changes

    @property
    def signed(self) -> bool:
        """Whether the holder of the trusted key vouches for the bundle and its certificate."""
        return self.signature == "signed"

    def to_json(self) -> dict[str, Any]:
        return {"verified": self.verified, **super().to_json(), "signed": self.signed}


@keywords_of(VerifyOptions)
def verify(options: VerifyOptions) -> Verification:
    """Checks a bundle against its certificate, and names what has changed since parity.

    With `trust`, it must be as the holder of that key signed it, too.

    Raises:
        InputError: not a bundle, a `checkpoint` or `data` that is not there, or no public key in `trust`.
        MissingComponent: `trust` is given and model-signing is not installed.
    """
    folder = Path(options.bundle)
    if options.trust is None:
        there = (folder / SIGNATURE).is_file()
        found = _against_certificate(options)
        return replace(found, signature="not checked" if there else "unsigned")
    signature = check_signature(folder, options.trust)
    changes = signature.changes
    if any(one.name == MANIFEST for one in changes):  # what it says now is nobody's word
        found = Verification(folder, "", "", (), (), (), ())
    else:
        found = _against_certificate(options)
    if signature.state == "unsigned":
        changes = (Finding(SIGNATURE, "is missing: the bundle is unsigned"),)
    elif signature.state != "signed":
        changes = (Finding(SIGNATURE, not_trusted(signature, options.trust)),)
    return replace(
        found,
        changes=tuple(dict.fromkeys((*changes, *found.changes))),
        signature=signature.state,
        signed_by=signature.key,
    )


def _against_certificate(options: VerifyOptions) -> Verification:
    folder = Path(options.bundle)
    if not folder.is_dir():
        raise InputError("no such bundle", folder, "make one with 'bertmp export'")
    bundle = Bundle(folder, Manifest.load(folder))
    if options.data is not None and not Path(options.data).is_file():
        raise InputError("no such file", options.data, "check the path")
    recorded = list(_against_manifest(bundle))
    try:
        if not (folder / CERTIFICATE).is_file():
            raise ValueError("is missing: run 'bertmp parity'")
        certificate = _read(folder / CERTIFICATE)
    except ValueError as error:
        known = [one for one in recorded if one.name != CERTIFICATE]
        return Verification(folder, "", "", (), (), (Finding(CERTIFICATE, str(error)), *known), ())
    outside = dict(_outside(certificate, options))
    inside = {name: bundle.folder / name for name in certificate.digests if name not in outside}
    found = {name: bundle.sha256(name) if path.is_file() else "" for name, path in inside.items()}
    found.update((name, one) for name, one in outside.items() if not isinstance(one, Finding))
    matching = tuple(name for name, digest in certificate.digests.items() if found.get(name) == digest)
    changes = [Finding(name, "differs" if found[name] else "is missing") for name in found]
    changes = [one for one in changes if one.name not in matching]
    differing, gone = _report_outside(bundle)
    return Verification(
        bundle=folder,
        verdict=certificate.verdict,
        created=certificate.created,
        not_checked=certificate.not_checked,
        matching=matching,
        changes=(*_of_verdict(certificate), *changes, *_unbound(bundle, certificate), *recorded, *differing),
        not_compared=(*(one for one in outside.values() if isinstance(one, Finding)), *gone),
    )


def _report_outside(bundle: Bundle) -> tuple[list[Finding], list[Finding]]:
    """What differs of a report that lies outside the bundle, and what of it is no longer there."""
    record = bundle.manifest.stages.get(PARITY)
    files = record.results.get(REPORT_OUTSIDE, {}) if record else {}
    there = {name: digest for name, digest in files.items() if Path(name).is_file()}
    differing = [
        Finding(name, "differs") for name, digest in there.items() if sha256_file(Path(name)) != digest
    ]
    return differing, [Finding(name, "is not there") for name in files if name not in there]


def _read(path: Path) -> Certificate:
    """Reads the certificate.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return parse_certificate(read_json(path))
    except InputError as error:
        raise ValueError(f"is damaged: {error.what}") from error
    except ValueError as error:
        raise ValueError(f"is damaged: {error}") from error


def _of_verdict(certificate: Certificate) -> list[Finding]:
    if certificate.verdict == "passed":
        return []
    return [Finding(VERDICT, f"is {certificate.verdict}, not passed")]


def _unbound(bundle: Bundle, certificate: Certificate) -> Iterator[Finding]:
    """What a stage has written since, which the certificate says nothing of."""
    for name in certified_files(bundle.manifest):
        if name not in certificate.digests:
            yield Finding(name, "is not in the certificate")


def _against_manifest(bundle: Bundle) -> Iterator[Finding]:
    """The report and the certificate must be those that parity wrote."""
    record = bundle.manifest.stages.get(PARITY)
    if record is None:
        yield Finding(MANIFEST, "has no entry of parity")
        return
    if CERTIFICATE not in record.outputs:
        yield Finding(CERTIFICATE, "is not in the manifest")
    for name, digest in record.outputs.items():
        if not (bundle.folder / name).is_file():
            yield Finding(name, "is missing")
        elif bundle.sha256(name) != digest:
            yield Finding(name, "differs")


def _outside(certificate: Certificate, options: VerifyOptions) -> Iterator[tuple[str, str | Finding]]:
    """The SHA-256 of the data and of the checkpoint, or why it is not known."""
    data = Path(options.data or certificate.data)
    yield DATA, sha256_file(data) if data.is_file() else _absent(DATA, data)
    if CHECKPOINT in certificate.digests:
        yield CHECKPOINT, _fingerprint(certificate, options.checkpoint)


def _fingerprint(certificate: Certificate, chosen: Path | None) -> str | Finding:
    """The SHA-256 of the checkpoint's weights, or why it is not known.

    Raises:
        InputError: the user chose a folder without weights.
    """
    if chosen is None and not certificate.checkpoint:
        return Finding(CHECKPOINT, "was not compared: the manifest named no folder")
    folder = Path(chosen or certificate.checkpoint)
    if chosen is None and not folder.is_dir():
        return _absent(CHECKPOINT, folder)
    try:
        from bertmp.model.weights import fingerprint
    except ImportError:  # on a machine that only serves
        return Finding(CHECKPOINT, "was not compared: torch is not installed")
    try:
        return fingerprint(folder)
    except InputError:
        if chosen is not None:
            raise
        return _absent(CHECKPOINT, folder)


def _absent(name: str, path: Path) -> Finding:
    return Finding(name, f"was not compared: it is not on this machine ({path})")
