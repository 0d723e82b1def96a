"""Where a stage of a bundle goes wrong: which two graphs say it, and on which rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto

from bertmp.core.progress import ProgressCallback
from bertmp.data.batches import pad_batch
from bertmp.export.bundle import EXPORT, FP32_GRAPH, LOW_GRAPHS, Bundle
from bertmp.export.graph.loading import load_graph
from bertmp.export.graph.ort_sessions import Feed
from bertmp.export.graph.tracing import OPSET, export_graph
from bertmp.export.parity.bundle_stages import ONNX_FP32
from bertmp.export.parity.localise import Localisation, localise
from bertmp.export.parity.stage import ParityInputs
from bertmp.export.parity.torch_stages import TorchStage

ROWS = 16
"""The most rows that are run."""

_BATCH, _TOKENS = 8, 2048
"""The most rows of a feed, and about the most tokens: what bounds the memory."""


def localise_stage(
    bundle: Bundle,
    stage_name: str,
    inputs: ParityInputs,
    rows: Sequence[int],
    progress: ProgressCallback,
    checkpoint: Path | None = None,
) -> Localisation | None:
    """Where the stage leaves FP32.

    The FP32 graph is compared with its checkpoint, exported again in memory: so what the exporter itself does
    wrong is in both. A stage of the low-precision graph is compared with the FP32 graph, in emulation.

    Args:
        rows: of `inputs`, those with the largest error, worst first.
        checkpoint: in place of the folder that the manifest names.

    Returns:
        None for a stage of another kind, without rows, or where the checkpoint is not at hand.

    Raises:
        InputError: a graph or the checkpoint is damaged.
    """
    graphs = _graphs(bundle, stage_name, checkpoint) if rows else None
    if graphs is None:
        return None
    feeds = padded_feeds(inputs, rows[:ROWS], bundle.max_positions)
    what = f"where {stage_name} goes wrong, batch"
    return localise(
        *graphs, feeds, source="the examples", progress=lambda done, total: progress(what, done, total)
    )


def _graphs(bundle: Bundle, stage_name: str, checkpoint: Path | None) -> tuple[ModelProto, ModelProto] | None:
    fp32 = bundle.folder / FP32_GRAPH
    if stage_name == ONNX_FP32:
        reference = _exported_again(bundle, checkpoint)
        return None if reference is None else (reference, load_graph(fp32))
    is_low = any(stage_name.startswith(f"onnx-{precision}") for precision in LOW_GRAPHS)
    if is_low and bundle.low_graph is not None:
        return load_graph(fp32), load_graph(bundle.folder / bundle.low_graph)
    return None


def _exported_again(bundle: Bundle, checkpoint: Path | None) -> ModelProto | None:
    """The graph of the bundle's checkpoint, traced again; None where it cannot be the reference."""
    from bertmp.model.checkpoint import load_checkpoint

    export = bundle.stage(EXPORT, "bertmp export")
    recorded = checkpoint or export.settings.get("checkpoint")
    folder = Path(str(recorded)) if recorded else None
    sha256 = str(export.results.get("checkpoint_sha256", ""))
    if folder is None or TorchStage(folder, sha256).obstacle():
        return None
    model = load_checkpoint(folder, bundle.task).model
    return export_graph(model, int(export.settings.get("opset", OPSET)))


def padded_feeds(inputs: ParityInputs, rows: Sequence[int], longest: int) -> list[Feed]:
    """The rows in small batches of similar length, each with padding: without, a wrong mask does not show.

    Args:
        rows: of `inputs`.
        longest: the model's positions; rows that fill them have no padding.
    """
    encoded = sorted((inputs.encoded[row] for row in rows), key=len)
    feeds: list[Feed] = []
    while encoded:
        size = next(n for n in range(_BATCH, 0, -1) if n == 1 or n * len(encoded[:n][-1]) <= _TOKENS)
        batch, encoded = encoded[:size], encoded[size:]
        length = min(len(batch[-1]) + 1, longest)
        feeds.append(pad_batch(batch, inputs.pad_id, (len(batch), length)))
    return feeds
