"""`bertmp explain`: any ONNX graph in, what its precision amounts to out."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

from onnx import ModelProto

from bertmp.core.errors import InputError
from bertmp.core.options import keywords_of
from bertmp.core.progress import ProgressCallback
from bertmp.export.bundle import Bundle
from bertmp.export.export_options import ExplainOptions
from bertmp.export.graph.loading import load_graph, name_nodes
from bertmp.export.graph.nodes import name_of
from bertmp.export.graph.types import opset_of
from bertmp.export.lint.casts import cast_findings, count_casts
from bertmp.export.lint.findings import SEVERITIES, BlockSummary, Explanation, Finding, TensorSummary
from bertmp.export.lint.graph_view import FP16, GraphView
from bertmp.export.lint.structure import find_masks, mask_findings, structure_findings
from bertmp.export.lint.values import block_weights, measure_tensors, range_findings, weigh, weight_findings
from bertmp.export.precision.calibration import Calibration, read_calibration, read_tokenizer
from bertmp.export.precision.graph_inputs import LONGEST, UnknownInput
from bertmp.export.precision.made_up import made_up_inputs, made_up_note

_RECORDED = ("source", "file", "sha256", "texts")

_REDECLARE = "export the graph again, or use what 'bertmp convert' writes: other tools may refuse this one"


@keywords_of(ExplainOptions)
def explain(options: ExplainOptions) -> Explanation:
    """Reports what a graph's precision amounts to, whoever converted it: FP32, FP16, BF16 or a mixture.

    The graph is run on the CPU, on calibration examples or on inputs made from the vocabulary, with every
    16-bit tensor rounded to its type; where it takes inputs of unknown roles, only the weights and the
    structure are looked at.

    Raises:
        InputError: the file is not an ONNX graph or incomplete; the examples cannot be read or do not fit the
            graph's inputs.
    """
    path = options.graph
    if path.is_dir():
        path = Bundle.open(path).lowest_graph
    notes: list[str] = []
    model = load_graph(path, notes.append)
    name_nodes(model)
    texts, unasked = _examples(model, options, path.parent)
    view = GraphView(model)
    tensors, trouble = _measured(view, texts, options.progress) if texts else ((), [])
    casts = count_casts(view)
    findings = [
        *(Finding("warning", "declared-shapes", "", note, _REDECLARE) for note in notes),
        *structure_findings(view),
        *trouble,
        *range_findings(tensors, view),
        *mask_findings(view),
        *weight_findings(view),
        *cast_findings(casts, view),
    ]
    return Explanation(
        graph=path,
        opset=opset_of(model),
        made_by=" ".join(part for part in (model.producer_name, model.producer_version) if part),
        nodes=dict(Counter(view.precision(node) for node in view.nodes if not view.is_cast(node))),
        weights=weigh(view),
        blocks=_blocks(view, tensors),
        tensors=tensors,
        masks=find_masks(view),
        casts=casts,
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
        calibration={name: getattr(texts, name) for name in _RECORDED} if texts else None,
        notes=unasked,
    )


def _examples(
    model: ModelProto, options: ExplainOptions, folder: Path
) -> tuple[Calibration | None, tuple[str, ...]]:
    """What the graph is run on, None where it takes inputs of unknown roles; and what to say of it."""
    tokenizer = options.tokenizer or folder
    if options.calibration is not None:
        texts = read_calibration(
            options.calibration,
            tokenizer,
            model,
            options.columns(),
            names=options.inputs,
            progress=options.progress,
        )
        return texts, ()
    if options.tokenizer is not None:
        read_tokenizer(options.tokenizer, LONGEST)
    try:
        made_up = made_up_inputs(model, tokenizer, options.inputs)
    except UnknownInput as error:
        return None, (f"ranges: not measured, {error}",)
    return made_up, (made_up_note(made_up),)


def _measured(
    view: GraphView, texts: Calibration, progress: ProgressCallback
) -> tuple[tuple[TensorSummary, ...], list[Finding]]:
    """What calibration shows; that ONNX Runtime does not load the graph is a finding, too."""
    try:
        return measure_tensors(view, texts, partial(progress, "running the examples")), []
    except InputError as error:
        if error.where == texts.file:
            raise
        sentence = f"ONNX Runtime does not load the graph, so nothing was measured: {error}"
        return (), [Finding("error", "does-not-load", "", sentence, "fix the error that it names")]


def _blocks(view: GraphView, tensors: tuple[TensorSummary, ...]) -> tuple[BlockSummary, ...]:
    weights = block_weights(view)
    nodes: dict[str, Counter[str]] = {}
    for node in view.nodes:
        if not view.is_cast(node):
            nodes.setdefault(view.blocks[name_of(node)], Counter())[view.precision(node)] += 1
    blocks = []
    for name, counts in nodes.items():
        if set(counts) == {"integer"}:
            continue
        own = [one for one in tensors if one.block == name and one.name not in view.on_mask_paths]
        worst = min(own, key=lambda tensor: tensor.headroom, default=None)
        largest = weights.get(name, 0.0)
        others = [tensor.subnormal for tensor in own if not view.is_from_softmax(tensor.name)]
        block = BlockSummary(
            name=name,
            nodes=dict(counts),
            weights_largest=largest,
            largest=worst.largest if worst else None,
            headroom=worst.headroom if worst else FP16.largest / largest if largest else float("inf"),
            subnormal=max(others, default=None),
            tensor=worst.name if worst else "",
        )
        blocks.append(block)
    return tuple(blocks)
