"""The certificate of a parity run, an in-toto statement: what it is about by SHA-256, and what was found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, get_args

from bertmp.core.hardware import NvidiaDriver
from bertmp.core.io import JsonSerializable, plain
from bertmp.export.bundle import BUILD_ENGINE, CONVERT, EXPORT, FP32_GRAPH, Bundle, Manifest
from bertmp.export.parity.verdict import SERVED, Verdict

if TYPE_CHECKING:
    from bertmp.export.parity.result import ParityReport, StageReport

CERTIFICATE = "certificate.json"
REPORT_OUTSIDE = "report_outside"
"""The manifest's entry with the SHA-256 of a report that lies outside the bundle, by path."""

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:bertmp:parity-certificate:v1"
CHECKPOINT, DATA = "checkpoint", "data"
"""The names of the subjects that lie outside the bundle; every other is a file's name in it."""

_SHA256 = re.compile("[0-9a-f]{64}")


def make_certificate(bundle: Bundle, result: ParityReport, driver: NvidiaDriver) -> dict[str, Any]:
    """The statement about a bundle, as plain JSON values.

    Args:
        bundle: the bundle, whose stages before parity are fresh.
        result: what parity found.
        driver: the GPUs of this machine.
    """
    digests = {name: bundle.sha256(name) for name in certified_files(bundle.manifest)}
    digests[DATA] = result.data.sha256
    if checkpoint := checkpoint_sha256(bundle.manifest):
        digests[CHECKPOINT] = checkpoint
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in digests.items()],
        "predicateType": PREDICATE,
        "predicate": plain(_predicate(bundle, result, driver)),
    }


def checkpoint_sha256(manifest: Manifest) -> str:
    """SHA-256 of the weights that were exported; empty where the manifest has none."""
    exported = manifest.stages[EXPORT]
    # Version 0.1 kept it among the settings.
    return str(exported.results.get("checkpoint_sha256") or exported.settings.get("checkpoint_sha256") or "")


def certified_files(manifest: Manifest) -> dict[str, str]:
    """What `export`, `convert` and `build-engine` wrote: name in the bundle → SHA-256 in the manifest."""
    stages = (manifest.stages.get(name) for name in (EXPORT, CONVERT, BUILD_ENGINE))
    return {name: digest for stage in stages if stage for name, digest in stage.outputs.items()}


def _predicate(bundle: Bundle, result: ParityReport, driver: NvidiaDriver) -> dict[str, Any]:
    engine, data = result.contents.engine, result.data
    return {
        "verdict": result.verdict,
        "headline": result.headline(),
        "reference": result.reference,
        "note": result.note,
        "not_checked": not_checked(result),
        "checkpoint": bundle.manifest.stages[EXPORT].settings.get("checkpoint"),
        # From the root: the same words must not mean another file in another folder.
        "data": {**asdict(data), "file": data.file.resolve()},
        "builder": {"name": engine["builder"], "version": engine.get("builder_version")} if engine else None,
        "gpus": [{"name": gpu.name, "driver": gpu.driver, "cuda": gpu.cuda} for gpu in driver.gpus],
        "no_gpu": driver.problem,
        "served": [_served(stage) for stage in result.stages if stage.name in SERVED],
        "stages": {stage.name: _stage(stage, result) for stage in result.stages},
        "gates": [asdict(gate) for gate in result.gates],
        "adversarial": result.adversarial and result.adversarial.made(),
        "tools": dict(result.environment),
        "created": result.created,
    }


def not_checked(result: ParityReport) -> list[dict[str, Any]]:
    """Every stage that did not run, and whether the verdict waits for it."""
    counting = {one.stage: one for one in result.unchecked}
    reasons = {stage.name: stage.reason for stage in result.stages if stage.status == "not run"}
    reasons.update((name, one.reason) for name, one in counting.items())
    return [
        {"stage": name, "reason": reason, "counts": name in counting and not counting[name].allowed}
        for name, reason in reasons.items()
    ]


def _served(stage: StageReport) -> dict[str, Any]:
    """The served model and the versions that answered; empty where none did."""
    named = ("model", "versions", "protocol")
    return {
        "stage": stage.name,
        "serves": stage.serves,
        **{key: stage.details[key] for key in named if key in stage.details},
    }


def _stage(stage: StageReport, result: ParityReport) -> dict[str, Any]:
    return {
        **result.summary()["stages"][stage.name],
        "size_ratio": stage.size_ratio,
        "task_metrics": [one.to_json() for one in stage.task_metrics],
        "details": dict(stage.details),
    }


@dataclass(frozen=True)
class Finding(JsonSerializable):
    """A subject of the certificate, or a file, and what is to be said of it."""

    name: str
    what: str

    def sentence(self) -> str:
        """`model.onnx differs`."""
        return f"{self.name} {self.what}"


@dataclass(frozen=True)
class Certificate:
    """What `verify` reads of a certificate.

    Attributes:
        digests: subject → SHA-256.
        verdict: `passed`, `failed` or `incomplete`.
        checkpoint, data: where the subjects outside the bundle lay; empty where that is not known.
        created: ISO 8601, UTC.
        not_checked: the stages that were not checked, with the reason.
    """

    digests: Mapping[str, str]
    verdict: str
    checkpoint: str
    data: str
    created: str
    not_checked: tuple[str, ...]


def parse_certificate(statement: Any) -> Certificate:
    """Reads a statement.

    Raises:
        ValueError: it is no statement of this kind, or it contradicts itself.
    """
    try:
        if statement["_type"] != STATEMENT or statement["predicateType"] != PREDICATE:
            raise ValueError("it is another kind of statement")
        digests = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
        if len(digests) < len(statement["subject"]):
            raise ValueError("a subject is named twice")
        _check_subjects(digests)
        found = statement["predicate"]
        if found["verdict"] not in get_args(Verdict):
            raise ValueError("it has no verdict")
        counting = [gate for gate in found["gates"] if gate.get("counts") is not False]
        if found["verdict"] == "passed" and not all(gate["passed"] is True for gate in counting):
            raise ValueError("its verdict is passed, and one of its gates is not")
        return Certificate(
            digests=digests,
            verdict=found["verdict"],
            checkpoint=str(found["checkpoint"] or ""),
            data=str(found["data"]["file"]),
            created=str(found["created"]),
            not_checked=tuple(f"{one['stage']}: {one['reason']}" for one in found["not_checked"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("a part of the statement is missing") from error


def _check_subjects(digests: Mapping[str, str]) -> None:
    for name, digest in digests.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"the subject '{name}' is no file of the bundle")
        if not _SHA256.fullmatch(digest):
            raise ValueError(f"the subject '{name}' has no SHA-256")
    for name in (FP32_GRAPH, DATA):
        if name not in digests:
            raise ValueError(f"the subject '{name}' is missing")
