"""What a bundle offers for deployment, and whether it may be deployed: read and judged, nothing written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertmp.core.errors import GateFailed, InputError
from bertmp.core.io import write_json
from bertmp.export.bundle import bundle as names
from bertmp.export.bundle.bundle import Bundle
from bertmp.export.bundle.manifest import Manifest, StageRecord
from bertmp.export.engine import triton_releases as releases
from bertmp.export.engine.profiles import parse_profile
from bertmp.serve import model_config as configs
from bertmp.serve.model_config import MAX_BATCH, Contract
from bertmp.serve.server_config import BACKENDS

TEXT_CODE = BACKENDS / "text_classifier" / "model.py"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Engine:
    """A TensorRT engine that Triton can load.

    Attributes:
        plan: its file.
        profiles: the number of its optimisation profiles.
        version: the TensorRT that built it; empty where the manifest does not say.
        version_compatible: whether later versions load it, too.
        for_triton: the release that it was built for; None where none was named.
    """

    plan: Path
    profiles: int
    version: str = ""
    version_compatible: bool = False
    for_triton: str | None = None

    def require_release(self, name: str) -> None:
        """Checks the engine against a Triton release.

        Errors: InputError where the release is unknown or has another TensorRT.
        """
        if self.version:
            release = releases.find_release(name)
            releases.require_match(release, "tensorrt", self.version, self.version_compatible, str(self.plan))


@dataclass(frozen=True)
class Candidate:
    """A bundle that may be deployed.

    Attributes:
        bundle: where its files are.
        graphs: the FP32 graph's files; the first is the graph itself.
        contract: what clients will rely on.
        pad_id: the token that fills short rows.
        engine: the TensorRT engine; None where there is none that Triton loads.
        parity: what its parity found; None where it was not checked.
        fingerprint: SHA-256 over everything that decides the answers.
        notes: what whoever deploys it should know.
    """

    bundle: Bundle
    graphs: tuple[str, ...]
    contract: Contract
    pad_id: int
    engine: Engine | None
    parity: Mapping[str, Any] | None
    fingerprint: str
    notes: tuple[str, ...]

    def fill_encoder(self, folder: Path) -> None:
        """Copies what the encoder's version is made of into an empty folder."""
        for name in self.graphs:
            shutil.copyfile(self.bundle.folder / name, folder / name)
        if self.engine is not None:
            shutil.copyfile(self.engine.plan, folder / "model.plan")

    def fill_text(self, name: str, folder: Path) -> None:
        """Writes what the text model's version is made of into an empty folder."""
        shutil.copyfile(TEXT_CODE, folder / "model.py")
        shutil.copyfile(self.bundle.folder / TOKENIZER, folder / TOKENIZER)
        write_json(folder / "settings.json", configs.text_settings(name, self.contract, self.pad_id))


def inspect(bundle: Bundle) -> Candidate:
    """Judges a bundle.

    Errors: InputError where it is stale, no classifier, or has an engine that takes fewer texts than a
    request may have; GateFailed where its parity did not pass.
    """
    manifest = bundle.manifest
    exported = manifest.stage(names.EXPORT, bundle.folder, "bertmp export")
    task = exported.settings.get("task", "classification")
    if task != "classification" or not bundle.labels:
        raise InputError(
            f"the bundle is no text classifier: its task is {task}", bundle.folder, "deploy a classifier"
        )
    if TOKENIZER not in exported.outputs:
        raise InputError(f"the bundle has no {TOKENIZER}", bundle.folder, "export the checkpoint again")
    graphs = (
        names.FP32_GRAPH,
        *(name for name in exported.outputs if name.startswith(f"{names.FP32_GRAPH}.")),
    )
    contract = configs.contract_of(bundle.config, bundle.labels)
    engine, notes = _engine(manifest, bundle)
    parity = _parity(manifest, bundle)
    return Candidate(
        bundle=bundle,
        graphs=graphs,
        contract=contract,
        pad_id=bundle.tokenizer.pad_id,
        engine=engine,
        parity=parity,
        fingerprint=_fingerprint(manifest, graphs, contract, engine),
        notes=(*notes, *(["parity: not checked"] if parity is None else [])),
    )


def _engine(manifest: Manifest, bundle: Bundle) -> tuple[Engine | None, list[str]]:
    if names.BUILD_ENGINE not in manifest.stages:
        return None, ["the bundle has no engine: it can be served on a processor alone"]
    built = manifest.stage(names.BUILD_ENGINE, bundle.folder, "bertmp build-engine")
    builder = built.results.get("builder")
    if builder != "tensorrt":
        return None, [f"the engine of {builder} is not deployed: Triton loads TensorRT's own alone"]
    profiles = [parse_profile(str(text)) for text in _profiles(built)]
    most = max((profile.max.batch for profile in profiles), default=0)
    if most < MAX_BATCH:
        raise InputError(
            f"the engine takes at most {most} texts, a request may have {MAX_BATCH}",
            bundle.folder / names.ENGINE,
            "build it anew with larger profiles",
        )
    results = built.results
    engine = Engine(
        bundle.folder / names.ENGINE,
        len(profiles),
        str(results.get("builder_version", "")),
        bool(results.get("version_compatible")),
        results.get("for_triton"),
    )
    _require_weights(results, engine)
    if engine.for_triton is not None:
        engine.require_release(engine.for_triton)
    return engine, []


def _require_weights(results: Mapping[str, Any], engine: Engine) -> None:
    """Errors: InputError for an engine that Triton would run without its weights."""
    if results.get("weights") == "stripped":
        raise InputError(
            "the engine is without its weights, and Triton does not put them back", engine.plan,
            "build it with --weights full",
        )  # fmt: skip


def _profiles(built: StageRecord) -> list[str]:
    return list(built.results.get("profiles") or built.settings.get("profiles") or [])


def _parity(manifest: Manifest, bundle: Bundle) -> dict[str, Any] | None:
    """The parity's scalars.

    Errors: InputError where it is stale; GateFailed where it did not pass.
    """
    if names.PARITY not in manifest.stages:
        return None
    checked = manifest.stage(names.PARITY, bundle.folder, "bertmp parity")
    if not checked.results.get("passed"):
        failed = ", ".join(map(str, checked.results.get("failed_gates", []))) or "see its report"
        raise GateFailed(
            f"the bundle's parity did not pass: {failed}", bundle.folder, "mend it and check again"
        )
    plain = {
        key: value for key, value in checked.results.items() if isinstance(value, (str, int, float, bool))
    }
    return {**plain, "checked": checked.created}


def _fingerprint(
    manifest: Manifest, graphs: tuple[str, ...], contract: Contract, engine: Engine | None
) -> str:
    files = manifest.stages[names.EXPORT].outputs
    parts = {name: files[name] for name in (*graphs, TOKENIZER)}
    if engine is not None:
        parts["model.plan"] = manifest.stages[names.BUILD_ENGINE].outputs[names.ENGINE]
    parts["model.py"] = hashlib.sha256(TEXT_CODE.read_bytes()).hexdigest()
    whole = json.dumps([parts, contract.__dict__], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()
