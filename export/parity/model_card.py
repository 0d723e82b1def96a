"""The model card of a bundle, in Hugging Face's format, from the figures of a parity run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bertmp.export.bundle import BUILD_ENGINE, EXPORT, Bundle
from bertmp.export.parity.certificate import checkpoint_sha256, not_checked
from bertmp.report.markdown import code, front_matter, plain, table

if TYPE_CHECKING:
    from bertmp.export.parity.result import ParityReport, StageReport
    from bertmp.metrics.comparison import MetricComparison

MODEL_CARD = "MODEL_CARD.md"

_PIPELINE = {
    "classification": "text-classification",
    "multi-label-classification": "text-classification",
    "regression": "text-classification",  # the Hub has no other for one number per text
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "pretraining": "fill-mask",
    "masked-lm": "fill-mask",
    "encoder": "feature-extraction",
}
_HUB_METRICS = {
    "macro_f1": "f1",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mlm_accuracy": "accuracy",
    "nsp_accuracy": "accuracy",
    "mlm_perplexity": "perplexity",
}
"""Our name of a metric → the Hub's, where they differ."""

_SIZES = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden size",
    "num_attention_heads": "attention heads",
    "intermediate_size": "size of the feed-forward layer",
    "vocab_size": "tokens in the vocabulary",
    "max_position_embeddings": "positions",
}
_MOST_LABELS = 100
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def model_card(bundle: Bundle, result: ParityReport) -> str:
    """The card's text: Markdown with YAML front matter.

    Args:
        bundle: the bundle, whose stages before parity are fresh.
        result: what parity found.
    """
    name = bundle.folder.resolve().name
    sections = {
        "": _verdict(result),
        "The model": _model(bundle),
        "How it was made": _making(bundle, result),
        "Accuracy": _accuracy(result),
        "What was not checked": _unchecked(result),
        "How to run it": _running(result),
        "Files": _files(bundle, result),
    }
    lines = [front_matter(_metadata(name, bundle, result)), "", f"# {plain(name)}"]
    for title, section in sections.items():
        lines += ["", *([f"## {title}", ""] if title else []), *section]
    return "\n".join(lines) + "\n"


def _metadata(name: str, bundle: Bundle, result: ParityReport) -> dict[str, Any]:
    """What the Hub reads; the language and the licence are not known here."""
    pipeline = _PIPELINE.get(bundle.task, "")
    scores = [
        {"type": _HUB_METRICS.get(metric, metric), "name": f"{metric} of {stage}", "value": value}
        for stage, metric, value in _values(result)
    ]
    dataset = {"type": "custom", "name": result.data.file.name, "args": {"sha256": result.data.sha256}}
    found = {"task": {"type": pipeline}, "dataset": dataset, "metrics": scores}
    return {
        "library_name": "onnx",
        "pipeline_tag": pipeline,
        "base_model": _base_model(bundle),
        "tags": ["bert", "onnx", result.contents.low_precision if bundle.low_graph else ""],
        "metrics": list(dict.fromkeys(one["type"] for one in scores)),
        "model-index": [{"name": name, "results": [found]}] if scores else [],
    }


def _values(result: ParityReport) -> Iterator[tuple[str, str, float]]:
    """Stage, metric and value: the reference's first."""
    measured = [(stage, metric) for stage in result.stages for metric in stage.task_metrics]
    reference = {metric.name: metric.before for _, metric in measured}
    yield from ((result.reference, name, value) for name, value in reference.items())
    yield from ((stage.name, metric.name, metric.after) for stage, metric in measured)


def _base_model(bundle: Bundle) -> str:
    """The Hub's name of the model that this one was made of; empty where the configuration has none."""
    name = str(bundle.config.get("_name_or_path") or "")
    checkpoint = str(bundle.manifest.stages[EXPORT].settings.get("checkpoint") or "")
    return name if _HUB_ID.fullmatch(name) and not checkpoint.endswith(name) else ""


def _verdict(result: ParityReport) -> Iterator[str]:
    yield f"Parity with the FP32 checkpoint: **{result.verdict}** ({plain(result.headline())})."
    if result.note:
        yield f"\n{plain(result.note)}"
    failed = [f"- {plain(f'{gate.stage} {gate.name}: {gate.sentence}')}" for gate in result.failed_gates]
    if failed:
        yield from ("", *failed)


def _model(bundle: Bundle) -> Iterator[str]:
    config, labels = bundle.config, bundle.labels
    pairs = ", of pairs of texts" if config.get("text_pairs") else ""
    sizes = (f"{config[key]:,} {words}" for key, words in _SIZES.items() if isinstance(config.get(key), int))
    yield f"- Task: {plain(bundle.task)}{pairs}"
    yield f"- Architecture: {plain(str(config.get('model_type', 'bert')))}, {', '.join(sizes)}"
    if base := _base_model(bundle):
        yield f"- Base model: {code(base)}"
    if labels:
        more = f" and {len(labels) - _MOST_LABELS:,} more" if len(labels) > _MOST_LABELS else ""
        yield f"- {len(labels):,} labels: {', '.join(map(code, labels[:_MOST_LABELS]))}{more}"


def _making(bundle: Bundle, result: ParityReport) -> Iterator[str]:
    contents = result.contents
    opset = bundle.manifest.stages[EXPORT].settings.get("opset")
    yield f"- Exported to ONNX{f' with opset {plain(str(opset))}' if opset else ''}"
    if bundle.low_graph:
        kinds = {kind: kind if kind == "integer" else kind.upper() for kind in contents.precisions}
        nodes = ", ".join(f"{number:,} {kinds[kind]}" for kind, number in contents.precisions.items())
        ratio = f"; {contents.size_ratio:.3f} of the FP32 file's size" if contents.size_ratio else ""
        yield f"- Precision of the nodes of {code(bundle.low_graph)}: {nodes}{ratio}"
    if built := bundle.manifest.stages.get(BUILD_ENGINE):
        named = (str(built.results.get(key, "")) for key in ("builder", "builder_version"))
        yield f"- Engine built with {plain(' '.join(named).strip())}"
    tools = ", ".join(f"{tool} {version}" for tool, version in result.environment.items())
    yield f"- Checked on {plain(result.created)} with {plain(tools)}"


def _accuracy(result: ParityReport) -> Iterator[str]:
    data = result.data
    kind = "labelled" if data.labelled else "unlabelled"
    against = f"; every stage is compared with {code(result.reference)}" if result.reference else ""
    file = f"{code(data.file.name)} (SHA-256 {code(data.sha256)})"
    yield f"On {data.texts:,} {kind} examples of {file}{against}."
    yield ""
    yield from table(
        ("Stage", "Verdict", "Largest error", "Labels changed", "Accuracy"),
        [(code(stage.name), result.verdict_on(stage), *_figures(stage)) for stage in result.stages],
    )
    scores = [(stage, metric) for stage in result.stages for metric in stage.task_metrics]
    if scores:
        columns = ("Stage", "Metric", "FP32", "Value", "Difference", "Non-inferiority")
        yield from ("", *table(columns, [_score(stage, metric) for stage, metric in scores]))


def _figures(stage: StageReport) -> tuple[str, str, str]:
    found = stage.measures
    if found is None:
        return "", "", ""
    accuracy = "" if found.accuracy is None else f"{found.accuracy:.4f}"
    if stage.status == "reference":
        return "", "", accuracy
    return f"{found.max_error:.2e}", str(len(found.flips)), accuracy


def _score(stage: StageReport, metric: MetricComparison) -> tuple[str, ...]:
    found = metric.non_inferiority
    difference = found.difference
    interval = f"{difference.confidence:.0%} interval {difference.low:+.4f} to {difference.high:+.4f}"
    needed = f", about {found.rows_needed:,} examples would settle it" if found.rows_needed else ""
    return (
        code(stage.name),
        metric.name.replace("_", " "),
        f"{metric.before:.4f}",
        f"{metric.after:.4f}",
        f"{difference.estimate:+.4f}, {interval}",
        f"{found.verdict} (margin {found.margin:.4f}){needed}",
    )


def _unchecked(result: ParityReport) -> Iterator[str]:
    found = not_checked(result)
    if not found:
        yield "Every stage was checked."
    for one in found:
        counts = " (the verdict is incomplete without it)" if one["counts"] else ""
        yield f"- {plain(one['stage'])}: {plain(one['reason'])}{counts}"


def _running(result: ParityReport) -> Iterator[str]:
    """The commands that take the bundle as it is: `deploy` refuses one whose verdict is failed."""
    yield "```console"
    yield "$ bertmp predict BUNDLE --data texts.txt --out answers.jsonl"
    if result.verdict != "failed":
        accepted = " --allow-incomplete" if result.verdict == "incomplete" else ""
        yield f"$ bertmp deploy BUNDLE --name NAME{accepted}"
    yield "```"


def _files(bundle: Bundle, result: ParityReport) -> list[str]:
    rows = [(code(file.name), f"{file.size:,}", code(file.sha256)) for file in result.contents.files]
    outside: Mapping[str, str] = {"the checkpoint's weights": checkpoint_sha256(bundle.manifest)}
    rows += [(name, "", code(digest)) for name, digest in outside.items() if digest]
    return table(("File", "Bytes", "SHA-256"), rows)
