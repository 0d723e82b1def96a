"""What a bundle offers for deployment, and whether it may be deployed: nothing is written here."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bertmp.core.errors import GateFailed, InputError
from bertmp.core.hardware import machine
from bertmp.core.io import sha256_file, write_json
from bertmp.environment.server_bf16 import why_no_bf16
from bertmp.export.bundle import (
    BUILD_ENGINE,
    CONVERT,
    ENGINE,
    EXPORT,
    FP16_GRAPH,
    FP32_GRAPH,
    PARITY,
    Bundle,
)
from bertmp.export.engine.compatibility import RELEASES, find_release, releases_for, require_match
from bertmp.export.engine.engine_options import Profile, Shape, recorded_profiles, uncovered
from bertmp.export.parity.cpu_bf16_stage import CPU_BF16, NOT_SERVED
from bertmp.export.parity.signature import BundleSignature
from bertmp.serve.model_config import MAX_BATCH, SETTINGS, text_settings
from bertmp.serve.model_signature import ModelSignature, signature_of
from bertmp.serve.served_tasks import WITH_MASKS, AnswerSettings
from bertmp.serve.serving_options import CpuPrecision
from bertmp.serve.serving_table import BF16_COPIES, ServingTable
from bertmp.serve.version_code import LIBRARIES, code_files, copy_code, copy_tokenizers, missing_libraries
from bertmp.serve.version_files import PRECISION, TEXT_FILES, listed_files

FP32, BF16 = "fp32", "bf16"
TOKENIZER = "tokenizer.json"
PLAN = "model.plan"
FP16_STAGE = "onnx-fp16"
"""Parity's name for the FP16 graph."""


@dataclass(frozen=True)
class DeployableEngine:
    """A TensorRT engine that Triton can load.

    Attributes:
        plan: its file.
        profiles: its optimisation profiles.
        version: the TensorRT that built it; empty where the manifest does not name it.
        version_compatible: whether later versions of TensorRT load it, too.
        triton_release: the release that it was built for; None where none was named.
    """

    plan: Path
    profiles: tuple[Profile, ...]
    version: str = ""
    version_compatible: bool = False
    triton_release: str | None = None

    def require_release(self, name: str) -> None:
        """Checks the engine against a Triton release.

        Raises:
            InputError: the release is unknown or has another TensorRT.
        """
        if self.version:
            release = find_release(name)
            require_match(release, "tensorrt", self.version, self.version_compatible, str(self.plan))


@dataclass(frozen=True)
class Accepted:
    """What the user takes on his own word.

    Attributes:
        incomplete: a bundle whose parity left something out that counts.
        unverified: one on which parity was never run.
    """

    incomplete: bool = False
    unverified: bool = False


@dataclass(frozen=True)
class Deployable:
    """A bundle that may be deployed.

    Attributes:
        bundle: where its files are.
        graphs: the FP32 graph's files; the first is the graph itself.
        fp16_graphs: the FP16 graph's, for a GPU without an engine; none where that is not for use.
        signature: what clients will rely on.
        answering: how it answers, where its task leaves a choice.
        engine: the TensorRT engine; None where there is none that Triton loads.
        parity: the scalars of its parity; None where it was not checked.
        fingerprint: SHA-256 over everything that decides the answers.
        notes: what the user who deploys it should know.
        trusted: the signature that was checked; None where no key was trusted.
        precision: what a machine without a GPU runs its graph in, where it can: `fp32` or `bf16`.
    """

    bundle: Bundle
    graphs: tuple[str, ...]
    signature: ModelSignature
    answering: AnswerSettings
    engine: DeployableEngine | None
    parity: Mapping[str, Any] | None
    fingerprint: str
    notes: tuple[str, ...]
    trusted: BundleSignature | None = None
    fp16_graphs: tuple[str, ...] = ()
    precision: str = FP32

    @property
    def verdict(self) -> str:
        """Parity's: `passed`, `incomplete`, or `not checked`."""
        return "not checked" if self.parity is None else str(self.parity["verdict"])

    @property
    def accepted(self) -> str:
        """The verdict that is taken on the user's word; empty where it is `passed`."""
        return "" if self.verdict == "passed" else self.verdict

    @property
    def signed_by(self) -> str:
        """SHA-256 of the public key that it is signed with; empty where none was trusted."""
        return self.trusted.key if self.trusted else ""

    @property
    def encoder_files(self) -> tuple[str, ...]:
        """The names of the files of the encoder's version."""
        graphs = (*self.graphs, *self.fp16_graphs) if self.engine is None else (*self.graphs, PLAN)
        return (*graphs, *((PRECISION,) if self.low_graphs else ()))

    @property
    def gpu_graph(self) -> str:
        """The graph that a GPU runs where there is no engine."""
        return (*self.fp16_graphs, *self.graphs)[0]

    @property
    def low_graphs(self) -> dict[str, str]:
        """The graphs that are not run in FP32 on a CPU: file → precision."""
        return {} if self.precision == FP32 else {self.graphs[0]: self.precision}

    def fill_encoder(self, folder: Path) -> None:
        """Copies the files of the encoder's version into an empty folder."""
        for name in (*self.graphs, *self.fp16_graphs):
            self._copy(name, folder / name)
        if self.engine is not None:
            self._copy(ENGINE, folder / PLAN)
        if self.low_graphs:
            write_json(folder / PRECISION, self.low_graphs)

    def fill_text(self, folder: Path) -> None:
        """Writes the files of the text model's version into a folder that has at most its golden.json."""
        copy_code(folder)
        self._copy(TOKENIZER, folder / TOKENIZER)
        if not missing_libraries():
            copy_tokenizers(folder / LIBRARIES)
        tokenizer = self.bundle.tokenizer
        # What decides the answers on a CPU or by an engine: parity compares these with the bundle's.
        told = (file for file in self.encoder_files if file not in (*self.fp16_graphs, PRECISION))
        sources = {file: ENGINE if file == PLAN else file for file in told}
        sha256 = {file: self.bundle.sha256(source) for file, source in sources.items()}
        settings = text_settings(
            self.signature,
            self.answering,
            pad_id=tokenizer.pad_id,
            mask=tokenizer.id_of("[MASK]") if self.signature.task in WITH_MASKS else None,
            max_length=tokenizer.max_length,
            sha256=sha256,
        )
        listed = listed_files(self.encoder_files, folder)
        more = {
            "precision": self.low_graphs,
            "fp16_sha256": {name: self.bundle.sha256(name) for name in self.fp16_graphs},
            "text_sha256": {name: sha256_file(folder / name) for name in listed[TEXT_FILES]},
        }
        write_json(folder / SETTINGS, {**settings, **more, **listed})

    def serving(self) -> ServingTable:
        """How its text model uses this machine, if that has no GPU."""
        size = sum((self.bundle.folder / name).stat().st_size for name in self.graphs)
        copies = BF16_COPIES if self.low_graphs else 1
        return ServingTable.derive(machine(), copies * size, self.graphs[0])

    def _copy(self, name: str, target: Path) -> None:
        """Copies one of the bundle's files; the copy is what was signed, whatever happened meanwhile.

        Raises:
            GateFailed: it is not.
        """
        shutil.copyfile(self.bundle.folder / name, target)
        if self.trusted is not None and sha256_file(target) != self.trusted.files.get(name):
            what = f"{name} changed while the bundle was deployed"
            raise GateFailed(what, self.bundle.folder, "see who writes to it, and deploy it again")


NOTHING = Accepted()


def inspect_bundle(
    bundle: Bundle,
    accepts: Accepted = NOTHING,
    *,
    answering: AnswerSettings | None = None,
    trusted: BundleSignature | None = None,
    cpu_precision: CpuPrecision = "auto",
) -> Deployable:
    """Decides whether a bundle may be deployed.

    Args:
        accepts: what the user takes on his own word.
        answering: how it answers; None for the task's defaults.
        trusted: the signature that was checked; None where no key is trusted.
        cpu_precision: `fp32` where BF16 is not wanted.

    Raises:
        InputError: it is stale, for a task that is not served, or has an engine for batches smaller than
            MAX_BATCH.
        GateFailed: its parity did not pass, or was not run or is incomplete and that is not accepted.
    """
    exported = bundle.stage(EXPORT, "bertmp export")
    pairs, because = _takes_pairs(bundle)
    if TOKENIZER not in exported.outputs:
        raise InputError(f"the bundle has no {TOKENIZER}", bundle.folder, "export the checkpoint again")
    signature = signature_of(bundle.config, bundle.labels, bundle.task, pairs)
    answering = answering or AnswerSettings()
    graphs = (FP32_GRAPH, *(name for name in exported.outputs if name.startswith(f"{FP32_GRAPH}.")))
    engine, notes = _engine(bundle)
    parity, unseen = _parity(bundle, engine, accepts)
    because += _checked_inputs(bundle, pairs)
    fp16_graphs = _fp16_graphs(bundle) if engine is None else {}
    if engine is None:
        runs = "FP16 graph" if fp16_graphs else "FP32 graph (no FP16 graph has passed parity)"
        notes.append(f"without an engine for Triton, its ONNX Runtime backend runs the {runs} on a GPU")
    files = {name: exported.outputs[name] for name in (*graphs, TOKENIZER)} | fp16_graphs
    if engine is not None:
        files[PLAN] = bundle.manifest.stages[BUILD_ENGINE].outputs[ENGINE]
    files |= code_files()
    files["tokenizers"] = metadata.version("tokenizers")
    longest = bundle.tokenizer.max_length
    kept = _why_fp32(bundle) if cpu_precision == "auto" else "as --cpu-precision says"
    precision = FP32 if kept else BF16
    # Of a version in FP32 it is the same as before there was another precision.
    decides = [files, asdict(signature), asdict(answering), longest, *([] if kept else [precision])]
    content = json.dumps(decides, sort_keys=True).encode()
    if longest < signature.max_length:
        notes.append(
            f"{_LONG_TEXT[answering.long_text]} {longest} tokens, as the checkpoint's tokenizer says"
        )
    notes += because
    if signature.task == "pretraining":
        notes.append("of the pre-training head, the words for [MASK] are served: the next sentence is not")
    return Deployable(
        bundle=bundle,
        graphs=graphs,
        signature=signature,
        answering=answering,
        engine=engine,
        parity=parity,
        fingerprint=hashlib.sha256(content).hexdigest(),
        notes=(*notes, *filter(None, [missing_libraries(), unseen, kept and f"{NOT_SERVED}: {kept}"])),
        trusted=trusted,
        fp16_graphs=tuple(fp16_graphs),
        precision=precision,
    )


def _why_fp32(bundle: Bundle) -> str:
    """Why the graph is not served in BF16 on a CPU; empty where it may be."""
    if lacks := why_no_bf16():
        return lacks
    results = bundle.manifest.stages[PARITY].results if PARITY in bundle.manifest.stages else {}
    found = results.get("stages", {}).get(CPU_BF16, {})
    verdict = found.get("verdict", "not run")
    if verdict == "passed":
        return ""
    if verdict == "failed":
        return f"parity's stage {CPU_BF16} failed"
    reason = str(found.get("reason", "")).removesuffix(f": {NOT_SERVED}")
    how = verdict if verdict == "not judged" else f"not run{': ' if reason else ''}{reason}"
    return f"parity's stage {CPU_BF16} was {how}"


_LONG_TEXT = {
    "truncate": "texts are truncated to",
    "refuse": "texts are refused beyond",
    "window": "long texts are read in windows of",
}


def _takes_pairs(bundle: Bundle) -> tuple[bool, list[str]]:
    """Whether a bundle's model takes pairs of texts, and a note where its checkpoint does not say so."""
    if bundle.task in ("next-sentence", "encoder", *WITH_MASKS):
        return bundle.task == "next-sentence", []
    if "text_pairs" in bundle.config:
        return bool(bundle.config["text_pairs"]), []
    checked = bundle.manifest.stages.get(PARITY)
    if checked is None or not checked.results.get("pairs"):
        return False, []
    return True, ["it takes pairs of texts: its checkpoint does not say so, and its parity was run on pairs"]


def _checked_inputs(bundle: Bundle, pairs: bool) -> list[str]:
    """A note where parity was run on pairs of texts and the model is served for single ones.

    Raises:
        GateFailed: it was run on single texts, and the model is served for pairs.
    """
    checked = bundle.manifest.stages.get(PARITY)
    of_pairs = None if checked is None else checked.results.get("pairs")
    if of_pairs is None or bool(of_pairs) == pairs:
        return []
    if pairs:
        what = "parity was run on single texts, and the model takes pairs"
        todo = f"run 'bertmp parity {bundle.folder} --data FILE' on a file of pairs"
        raise GateFailed(what, bundle.folder, todo)
    return ["parity was run on pairs of texts, and the model is served for single ones"]


def _engine(bundle: Bundle) -> tuple[DeployableEngine | None, list[str]]:
    """The bundle's engine where Triton can load it, and notes for the user."""
    if BUILD_ENGINE not in bundle.manifest.stages:
        return None, ["the bundle has no engine"]
    built = bundle.stage(BUILD_ENGINE, "bertmp build-engine")
    results, plan = built.results, bundle.folder / ENGINE
    builder = results.get("builder")
    if builder != "tensorrt":
        return None, [f"the engine of {builder} is not deployed: Triton loads engines of TensorRT only"]
    profiles = recorded_profiles(built)
    largest = Shape(MAX_BATCH, bundle.max_positions)
    if missing := uncovered(profiles, largest):
        what = f"no profile of the engine holds {missing[0]}, and requests may have up to {largest}"
        raise InputError(what, plan, "build it again with profiles that hold every batch and length")
    if results.get("weights") == "stripped":
        what = "the engine is without its weights, and Triton does not put them back"
        raise InputError(what, plan, "build it with --weights full")
    engine = DeployableEngine(
        plan,
        profiles,
        str(results.get("builder_version", "")),
        bool(results.get("version_compatible")),
        results.get("triton_release", results.get("for_triton")),  # the second is its name in version 0.1
    )
    if engine.triton_release is not None:
        engine.require_release(engine.triton_release)
    notes = []
    if engine.version and not releases_for("tensorrt", engine.version, engine.version_compatible):
        notes.append(
            f"no Triton release in the table loads engines of TensorRT {engine.version} (the newest has "
            f"{RELEASES[0].tensorrt}): serve it with a Triton of exactly that TensorRT"
        )
    return engine, notes


def _fp16_graphs(bundle: Bundle) -> dict[str, str]:
    """The SHA-256 of the FP16 graph's files, the graph first; none where it is not there or not checked."""
    if not {CONVERT, PARITY} <= bundle.manifest.stages.keys():
        return {}
    converted, checked = bundle.stage(CONVERT, "bertmp convert"), bundle.stage(PARITY, "bertmp parity")
    stage = checked.results.get("stages", {}).get(FP16_STAGE, {})
    failed = [gate for gate in checked.results.get("failed_gates", ()) if gate.startswith(f"{FP16_STAGE}.")]
    if stage.get("status") != "run" or failed or FP16_GRAPH not in checked.inputs:
        return {}
    data = (name for name in converted.outputs if name.startswith(f"{FP16_GRAPH}."))
    return {name: converted.outputs[name] for name in (FP16_GRAPH, *data)}


def _parity(
    bundle: Bundle, engine: DeployableEngine | None, accepts: Accepted
) -> tuple[dict[str, Any] | None, str]:
    """The scalars of the bundle's parity, and what was not checked; None where nothing was.

    Raises:
        InputError: it is stale.
        GateFailed: it did not pass, or was not run or is incomplete and that is not accepted.
    """
    if PARITY not in bundle.manifest.stages:
        if not accepts.unverified:
            todo = f"run 'bertmp parity {bundle.folder} --data FILE', or deploy it with --allow-unverified"
            raise GateFailed("parity was never run on the bundle", bundle.folder, todo)
        return None, "parity: not checked"
    checked = bundle.stage(PARITY, "bertmp parity")
    results = checked.results
    verdict = results.get("verdict", "passed" if results.get("passed") else "failed")
    if verdict == "failed":
        failed = ", ".join(map(str, results.get("failed_gates", []))) or "see its report"
        todo = f"see the report, then export again or run 'bertmp parity {bundle.folder}' with other --gates"
        raise GateFailed(f"the bundle's parity did not pass: {failed}", bundle.folder, todo)
    scalars = {key: value for key, value in results.items() if isinstance(value, (str, int, float, bool))}
    missing = [
        f"{one['stage']}: {one['reason']}" for one in results.get("unchecked", ()) if not one["allowed"]
    ]
    if engine is not None and ENGINE not in checked.inputs:
        verdict = "incomplete"
        missing.append("engine: it was built after parity was run")
    note = f"parity is incomplete ({'; '.join(missing)})" if verdict == "incomplete" else ""
    if note and not accepts.incomplete:
        todo = "check it with 'bertmp parity', or deploy it with --allow-incomplete"
        raise GateFailed(f"the bundle's {note}", bundle.folder, todo)
    return {**scalars, "verdict": verdict, "checked": checked.created}, note
