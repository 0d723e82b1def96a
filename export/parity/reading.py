"""Reading a data file for parity: its examples as token ids, and what is right of each, by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bertmp.core.errors import InputError
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.data.labels import match_labels, numbers_of, split_labels
from bertmp.data.readers import (
    Columns,
    Examples,
    is_conll,
    read_examples,
)
from bertmp.data.sentences import read_sentences
from bertmp.data.tokenizer import AT_ONCE, Encoded, Tokenizer
from bertmp.export.bundle import BUILD_ENGINE, CONVERT, EXPORT, Bundle
from bertmp.export.consistency.probe import probe_of
from bertmp.export.consistency.tolerance import low_tolerance
from bertmp.export.engine.engine_options import recorded_profiles
from bertmp.export.parity.stage import ParityInputs
from bertmp.export.parity.tasks import UNKNOWN, VIEWS, TaskView, Units, mask_tokens, units_of

_MADE_BY = (EXPORT, CONVERT, BUILD_ENGINE)


@dataclass(frozen=True)
class ParityData:
    """A data file ready for the stages.

    Attributes:
        inputs: its examples, in the file's order.
        examples: the same as they were read, with the file and each one's line.
        classes: the bundle's labels, in the order of the logits; empty for heads without.
        note: how the file's labels were matched with them, where they are not the same; usually empty.
    """

    inputs: ParityInputs
    examples: Examples
    classes: Sequence[str]
    note: str = ""


def read_inputs(
    bundle: Bundle,
    data: Path,
    columns: Columns | None = None,
    progress: ProgressCallback = null_progress,
) -> ParityData:
    """Reads `data`, with the bundle's tokenizer and its labels' order.

    Raises:
        InputError: a file that cannot be read (see `read_examples`), a bundle of a task that parity does not
            know, or a label that the bundle does not know.
    """
    view = VIEWS.get(bundle.task)
    if view is None:
        what = f"parity does not know the task {bundle.task}"
        raise InputError(what, bundle.folder, f"compare a model for {', '.join(VIEWS)}")
    columns = columns or Columns(separator=",")
    if view.kind != "multi-label":
        columns = replace(columns, separator="")
    if view.task == "token-classification" and (_has_words(data, columns)):
        examples, encoded, words = _read_words(bundle, data, columns, progress)
    else:
        examples = read_examples(data, columns, progress=progress)
        if bundle.config.get("text_pairs") and examples.pairs is None:
            what = "the model was trained on pairs of texts, and the file has single ones"
            raise InputError(what, examples.source, "name the second text's column with --text-pair-column")
        encoded, words = _encode(bundle.tokenizer, examples), None
    units = units_of(view, encoded)
    truth, note = _truth(bundle, view, examples, encoded, words, columns.separator)
    if view.task in ("masked-lm", "pretraining"):
        encoded, truth = mask_tokens(encoded, units, bundle.tokenizer.id_of("[MASK]"))
        masked = len(np.unique(units.rows))
        if masked < len(encoded):
            compared = f"{len(units)} masked tokens are compared, of {masked} of the {len(encoded)} texts."
            note = " ".join(filter(None, [note, compared]))
    pad_id, names = bundle.tokenizer.pad_id, [f"line {line}" for line in examples.lines]
    built = bundle.manifest.stages.get(BUILD_ENGINE)
    inputs = ParityInputs(
        examples.texts,
        examples.pairs,
        truth,
        encoded,
        pad_id,
        probe_of(encoded, names, pad_id, bundle.max_positions),
        low_tolerance(bundle),
        () if built is None else recorded_profiles(built),
        view,
        units,
        _files(bundle),
        bundle.folder,
    )
    return ParityData(
        inputs, examples, bundle.labels if view.kind in ("classes", "multi-label") else (), note
    )


def _encode(tokenizer: Tokenizer, examples: Examples) -> list[Encoded]:
    """The texts' token ids, packed: they stay in memory until the last stage has answered."""
    found: list[Encoded] = []
    for start in range(0, len(examples.texts), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        pairs = None if examples.pairs is None else examples.pairs[part]
        found += [row.packed() for row in tokenizer.encode(examples.texts[part], pairs)]
    return found


def _files(bundle: Bundle) -> dict[str, str]:
    """SHA-256 of the bundle's graphs, engine and tokenizer, by file name."""
    stages = [bundle.manifest.stages[name] for name in _MADE_BY if name in bundle.manifest.stages]
    return {
        Path(file).name: bundle.sha256(file)
        for stage in stages
        for file in stage.outputs
        if (bundle.folder / file).is_file()
    }


def _has_words(data: Path, columns: Columns) -> bool:
    """Whether a file has words with labels, and not texts."""
    return data.suffix in (".jsonl", ".parquet", ".conll") or is_conll(data, columns)


def _read_words(
    bundle: Bundle, data: Path, columns: Columns, progress: ProgressCallback
) -> tuple[Examples, list[Encoded], Sequence[Sequence[str]]]:
    words = "tokens" if columns.text == Columns.text else columns.text
    labels = "labels" if columns.label == Columns.label else columns.label
    sentences = read_sentences(data, words, labels, columns.encoding, progress)
    texts = [" ".join(sentence) for sentence in sentences.words]
    lines = list(range(1, len(texts) + 1))
    examples = Examples(texts, None, None, sentences.source, lines)
    return examples, bundle.tokenizer.encode_words(sentences.words), sentences.labels


def _truth(
    bundle: Bundle,
    view: TaskView,
    examples: Examples,
    encoded: Sequence[Encoded],
    words: Sequence[Sequence[str]] | None,
    separator: str,
) -> tuple[np.ndarray | None, str]:
    """What is right of each unit, and how the labels were matched with the model's classes."""
    if words is not None:
        return _truth_of_words(bundle, examples, encoded, words)
    if examples.labels is None:
        return None, ""
    if view.task == "classification":
        return _classes(bundle, examples)
    if view.task == "multi-label-classification":
        return _label_sets(bundle, examples, separator), ""
    if view.task == "regression":
        return numbers_of(examples), ""
    return None, f"The file's labels are not used: they are not those of a model for {view.task}."


def _classes(bundle: Bundle, examples: Examples) -> tuple[np.ndarray, str]:
    labels = examples.labels or ()
    match = match_labels(labels, bundle.labels)
    for line, label in zip(examples.lines, labels if match is None else (), strict=False):
        _require_known(bundle, label, f"{examples.source}, line {line}")
    assert match is not None
    return np.array([bundle.labels.index(match.classes[label]) for label in labels], np.int64), match.note


def _require_known(bundle: Bundle, label: str, where: str) -> None:
    if label not in bundle.labels:
        what = f"the model does not know the label '{label}'"
        raise InputError(what, where, f"use one of {', '.join(bundle.labels)}")


def _label_sets(bundle: Bundle, examples: Examples, separator: str) -> np.ndarray:
    """FP32 `[examples, labels]`: 1 where a text has a label."""
    found = np.zeros((len(examples), len(bundle.labels)), np.float32)
    for row, (line, labels) in enumerate(zip(examples.lines, split_labels(examples, separator), strict=True)):
        for label in sorted(labels):
            _require_known(bundle, label, f"{examples.source}, line {line}")
            found[row, bundle.labels.index(label)] = 1
    return found


def _truth_of_words(
    bundle: Bundle, examples: Examples, encoded: Sequence[Encoded], words: Sequence[Sequence[str]]
) -> tuple[np.ndarray, str]:
    """INT64 `[units]`: each word's class; words that were truncated have no unit."""
    match = match_labels([label for labels in words for label in labels], bundle.labels)
    for line, labels in zip(examples.lines, words if match is None else (), strict=False):
        for label in labels:
            _require_known(bundle, label, f"{examples.source}, sentence {line}")
    assert match is not None
    index = {label: bundle.labels.index(name) for label, name in match.classes.items()}
    truth = [
        index[labels[word]] if row.first else UNKNOWN
        for row, labels in zip(encoded, words, strict=True)
        for word in (row.first or [0])
    ]
    return np.array(truth, np.int64), match.note


def at_rows(inputs: ParityInputs, rows: Sequence[int]) -> ParityInputs:
    """Some of the examples, with their units; no probe, as their answers are not compared with each other."""
    units, starts = inputs.all_units, inputs.all_units.starts(len(inputs.encoded))
    chosen = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])
    numbers = np.repeat(np.arange(len(rows)), [starts[row + 1] - starts[row] for row in rows])
    places = None if units.positions is None else units.positions[chosen]
    return replace(
        inputs,
        texts=[inputs.texts[row] for row in rows],
        pairs=None if inputs.pairs is None else [inputs.pairs[row] for row in rows],
        truth=None if inputs.truth is None else inputs.truth[chosen],
        encoded=[inputs.encoded[row] for row in rows],
        probe=None,
        units=Units(numbers, places),
        arranged=(),
    )
