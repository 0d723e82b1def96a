"""`bertmp export`: a checkpoint in, a bundle out."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import ModelProto

from bertmp.core.errors import InputError
from bertmp.core.io import atomic_folder, write_json
from bertmp.core.options import keywords_of
from bertmp.export.bundle import CONFIG, CONVERT, EXPORT, FP32_GRAPH, LABELS, LOW_GRAPHS, PLAN, Bundle
from bertmp.export.export_options import ExportOptions, PrecisionOptions
from bertmp.export.graph.loading import check_graph
from bertmp.export.graph.tracing import export_graph
from bertmp.export.graph.weights import save_graph, size_of
from bertmp.export.precision.convert import Planned, plan_precision

if TYPE_CHECKING:
    from bertmp.model.checkpoint import LoadedCheckpoint

TRAINED_RANGES = "activation-ranges.json"
"""What training writes beside the weights."""


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes:
        bundle: the folder.
        task: the head, e.g. `classification`.
        planned: the precision plan, and what was measured; None with `--no-fp16`.
        bytes_fp32, bytes_fp16: sizes of the graphs' files; the second is that of the low-precision graph,
            FP16 or BF16, and 0 with `--no-fp16`.
        seconds: wall time.
        notes: how the checkpoint was understood, where that is not obvious, and what was measured unasked.
    """

    bundle: Path
    task: str
    planned: Planned | None
    bytes_fp32: int
    bytes_fp16: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def nodes(self) -> dict[str, int]:
        """Precision → number of nodes in the low-precision graph; empty without one."""
        return self.planned.plan.counts() if self.planned else {}

    @property
    def low_graph(self) -> str | None:
        """The low-precision graph's file in the bundle; None with `--no-fp16`."""
        return LOW_GRAPHS[self.planned.plan.target] if self.planned else None

    @property
    def casts(self) -> int:
        """Casts that the conversion inserted."""
        return self.planned.casts if self.planned else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.bundle),
            "task": self.task,
            **(self.planned.summary() if self.planned else {"nodes": {}, "casts": 0}),
            "low_graph": self.low_graph,
            "bytes_fp32": self.bytes_fp32,
            "bytes_fp16": self.bytes_fp16,
            "size_ratio": self.bytes_fp16 / self.bytes_fp32 if self.bytes_fp16 else None,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


@keywords_of(ExportOptions)
def export_checkpoint(options: ExportOptions) -> ExportResult:
    """Writes a bundle: the FP32 graph, the FP16 or BF16 graph with its plan, tokenizer, labels and manifest.

    Without calibration examples, the ranges that training recorded are used, where the checkpoint has them.

    Raises:
        InputError: a bad checkpoint, one without weights for the head, an unknown task or opset, a full disk;
            and as in `plan_precision`.
    """
    from bertmp.model.checkpoint import load_checkpoint

    started = time.monotonic()
    _require_replaceable(options.out)
    options.progress("reading the checkpoint")
    loaded = load_checkpoint(options.checkpoint, options.task)
    _check_is_trained(loaded)
    with atomic_folder(options.out) as folder:
        options.progress("tracing the model")
        graph = export_graph(loaded.model, options.opset)
        save_graph(graph, folder / FP32_GRAPH)
        _write_companions(loaded, folder)
        bundle = Bundle(folder)
        _record_export(bundle, loaded, options.opset, started)
        planned = _convert(graph, bundle, options) if options.fp16 else None
    return ExportResult(
        bundle=options.out,
        task=loaded.model.task,
        planned=planned,
        bytes_fp32=size_of(options.out / FP32_GRAPH),
        bytes_fp16=size_of(options.out / LOW_GRAPHS[planned.plan.target]) if planned else 0,
        seconds=time.monotonic() - started,
        notes=(*loaded.notes(), *(planned.notes if planned else ())),
    )


def _convert(graph: ModelProto, bundle: Bundle, options: ExportOptions) -> Planned:
    """Plans the precision and writes the low-precision graph and the plan."""
    started, folder = time.monotonic(), bundle.folder
    trained = options.checkpoint / TRAINED_RANGES
    planned = plan_precision(graph, options, tokenizer=folder, trained=trained if trained.is_file() else None)
    target = folder / LOW_GRAPHS[planned.plan.target]
    check_graph(planned.graph, target)
    written = save_graph(planned.graph, target)
    planned.plan.save(folder / PLAN)
    ratio = size_of(target) / size_of(folder / FP32_GRAPH)
    bundle.record(
        CONVERT,
        inputs=[FP32_GRAPH],
        outputs=[*(file.name for file in written), PLAN],
        tools=["bertmp", "onnx", "onnx-ir", "onnxruntime", "numpy"],
        settings=options.to_json(PrecisionOptions),
        results={**planned.summary(), "size_ratio": ratio},
        seconds=time.monotonic() - started,
    )
    return planned


def _check_is_trained(loaded: LoadedCheckpoint) -> None:
    """Refuses a checkpoint without weights of the head: its outputs would be random."""
    own = [name for name in loaded.model.state_dict() if name.startswith(loaded.model.own_keys or "bert.")]
    if set(own) <= set(loaded.missing_keys):
        what = f"the checkpoint has no weights for {loaded.model.task}: {own[0]} is missing"
        raise InputError(what, loaded.folder, "train it first, or name what it is with --task")


def _require_replaceable(out: Path) -> None:
    """Checks that nothing but a bundle or an empty folder would be replaced.

    Raises:
        InputError: `out` is a file, or a folder that holds something else.
    """
    if not os.path.lexists(out):
        return
    if out.is_dir() and (not any(out.iterdir()) or (out / "manifest.json").is_file()):
        return
    what = "the folder holds something that is not a bundle" if out.is_dir() else "it is a file"
    raise InputError(what, out, "choose another --out")


def _write_companions(loaded: LoadedCheckpoint, folder: Path) -> None:
    from bertmp.model.checkpoint import copy_tokenizer

    write_json(folder / CONFIG, loaded.config.to_dict(loaded.model.architecture, loaded.model.problem))
    if loaded.model.classes:
        if broken := next((label for label in loaded.labels if "\n" in label or "\r" in label), None):
            todo = "name it in one line, in id2label of config.json"
            raise InputError(f"the label {broken!r} has a line break", loaded.folder, todo)
        (folder / LABELS).write_bytes("".join(f"{label}\n" for label in loaded.labels).encode())
    copy_tokenizer(loaded.folder, folder)
    if not (folder / "tokenizer.json").is_file():
        loaded.tokenizer.save(folder)


def _record_export(bundle: Bundle, loaded: LoadedCheckpoint, opset: int, started: float) -> None:
    from bertmp.model.weights import fingerprint

    bundle.record(
        EXPORT,
        inputs=(),
        outputs=sorted(path.name for path in bundle.folder.iterdir()),
        tools=["bertmp", "torch", "onnx", "onnxscript"],
        settings={"checkpoint": str(loaded.folder.resolve()), "opset": opset, "task": loaded.model.task},
        results={
            "checkpoint_sha256": fingerprint(loaded.folder),
            "outputs": list(loaded.model.outputs),
            "newly_initialised": list(loaded.missing_keys),
            "unused": list(loaded.unexpected_keys),
            "assumed": dict(loaded.inferred),
        },
        seconds=time.monotonic() - started,
    )
