"""`bertmp parity --replay`: the inputs that a parity run failed on, once more; no verdict on a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.io import write_json
from bertmp.core.options import keywords_of
from bertmp.export.bundle import Bundle
from bertmp.export.parity.adversarial_findings import AdversarialReport
from bertmp.export.parity.adversarial_run import ask, find_all, report_of
from bertmp.export.parity.bundle_stages import ONNX_FP32, chain
from bertmp.export.parity.failing_inputs import read_failing
from bertmp.export.parity.gates import Gate, read_limits
from bertmp.export.parity.parity_options import ReplayOptions
from bertmp.export.parity.tasks import VIEWS
from bertmp.export.parity.torch_stages import TORCH
from bertmp.export.parity.verdict import Verdict, decide_verdict, find_unchecked

REPLAY = "replay.json"
DEFAULT_FOLDER = "parity/replay"


@dataclass(frozen=True)
class ReplayReport:
    """What became of the inputs.

    Attributes:
        bundle, file, folder: the bundle, the file of failing inputs, and where `replay.json` lies.
        reference: the stage that all others were compared with; empty where none answered.
        note: what limits the comparison; usually empty.
        gates: a decision for each stage that was asked.
        not_asked: stage → why it was not asked.
        missing: the stages among them that had failed on these inputs.
        found: by stage and kind.
    """

    bundle: Path
    file: Path
    folder: Path
    reference: str
    note: str
    gates: tuple[Gate, ...]
    not_asked: Mapping[str, str]
    missing: tuple[str, ...]
    found: AdversarialReport

    @property
    def verdict(self) -> Verdict:
        """`failed` where an input still fails, `incomplete` where a stage that had failed was not asked."""
        unchecked = find_unchecked(self.not_asked.items(), self.missing, (), ())
        return decide_verdict(self.reference, all(gate.passed for gate in self.gates), unchecked)

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "bundle": str(self.bundle),
            "file": str(self.file),
            "reference": self.reference,
            "note": self.note,
            "gates": [asdict(gate) for gate in self.gates],
            "not_asked": dict(self.not_asked),
            "missing": list(self.missing),
            **self.found.to_json(),
        }


@keywords_of(ReplayOptions)
def replay(options: ReplayOptions) -> ReplayReport:
    """Asks the stages of a bundle the inputs of `failing-inputs.json` alone, in the same batches.

    Writes `replay.json`. Neither the manifest nor the report and certificate of a parity run change: what
    `deploy` reads is the verdict of `parity`.

    Raises:
        InputError: a bad or stale bundle, or a file that is not for its model.
        MissingComponent: ONNX Runtime is not installed.
    """
    opened = Bundle.open(options.bundle)
    if opened.task not in VIEWS:
        what = f"parity does not know the task {opened.task}"
        raise InputError(what, opened.folder, f"compare a model for {', '.join(VIEWS)}")
    folder = options.report or opened.folder / DEFAULT_FOLDER
    if folder.exists() and not folder.is_dir():
        raise InputError("not a folder", folder, "name another folder with --report")
    limits = read_limits(options.gates, opened.low_precision)
    saved = read_failing(options.replay, opened)
    stages = (*chain(opened, options.checkpoint), *options.extra_stages)
    answered = {
        stage.name: ask(stage, saved.asked, stage in options.extra_stages, options.progress)
        for stage in stages
    }
    reference = next((name for name in (TORCH, ONNX_FP32) if answered[name].answers), "")
    found = find_all(answered, saved.asked, limits, reference, {})
    not_asked = {name: one.skipped for name, one in answered.items() if one.skipped}
    none_fits = "none of the inputs is one that it takes"
    empty = [name for name, one in answered.items() if not (one.answers or one.failures or one.interrupted)]
    not_asked = {**dict.fromkeys(empty, none_fits), **not_asked}
    not_asked.update((name, "no --server was given") for name in saved.stages if name not in answered)
    note = "" if reference == TORCH else f"{TORCH} did not answer: {not_asked.get(TORCH, 'it failed')}."
    result = ReplayReport(
        bundle=opened.folder,
        file=options.replay,
        folder=folder,
        reference=reference,
        note=" ".join(filter(None, [note, saved.note])),
        gates=tuple(one.gate for name, one in found.items() if name not in not_asked),
        not_asked=not_asked,
        missing=tuple(name for name in saved.stages if name in not_asked),
        found=report_of(saved.asked, answered, found),
    )
    write_json(folder / REPLAY, result.to_json())
    return result
