"""`bertmp predict`: answers a data file's texts with a bundle's graph, row by row, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bertmp.core.errors import InputError
from bertmp.core.io import JsonSerializable, atomic_file
from bertmp.core.options import keywords_of
from bertmp.data.text_stream import TextFile, TextRow, chunks
from bertmp.export.answers import Answer
from bertmp.export.bundle import Bundle
from bertmp.export.prediction.comparison import compare, require_comparable
from bertmp.export.prediction.predict_options import Precision, PredictOptions
from bertmp.export.prediction.predictor import FILLING, Predictor, Source
from bertmp.export.prediction.writers import check_writable, format_of, row_writer

CHUNK_ROWS, CHUNK_CHARACTERS = 2048, 1 << 19
"""How much of the file is in memory at once: enough for batches of similar lengths."""


@dataclass(frozen=True)
class ComparisonResult(JsonSerializable):
    """How the answers of a second graph differ.

    Attributes:
        bundle: the second graph's bundle.
        precision: its precision.
        changed: the number of texts whose outcome (label, set of labels, entities, best fills) differs; None
            where answers are numbers.
        largest_difference: of a probability, a value or an element of an embedding.
        line: of the text with the largest difference.
    """

    bundle: Path
    precision: Precision
    changed: int | None
    largest_difference: float
    line: int


@dataclass(frozen=True)
class Prediction(JsonSerializable):
    """What was answered.

    Attributes:
        bundle: the bundle.
        task: its head, such as `classification`.
        precision: the graph's precision.
        provider: where ONNX Runtime ran it, such as `CPU`.
        out: the file of the answers.
        texts: how many texts, or pairs, were answered.
        truncated: how many of them were cut to the model's length.
        tokens: how many tokens were read.
        seconds: wall time, with everything.
        texts_per_second: over the time after the graphs were loaded.
        against: the comparison; None where none was asked for.
        notes: how a graph was computed, where that is not in its precision.
    """

    bundle: Path
    task: str
    precision: Precision
    provider: str
    out: Path
    texts: int
    truncated: int
    tokens: int
    seconds: float
    texts_per_second: float
    against: ComparisonResult | None = None
    notes: tuple[str, ...] = ()


@keywords_of(PredictOptions)
def predict(options: PredictOptions) -> Prediction:
    """Answers every text of a data file with ONNX Runtime, in the file's order.

    The file is read twice, first to check it. Nothing is written before all texts are answered.

    Raises:
        InputError: a bad or stale bundle, one without the graph asked for, a graph that ONNX Runtime does not
            load, bundles that cannot be compared, bad data, or answers that are not finite numbers.
        MissingComponent: ONNX Runtime is not installed.
    """
    started = time.monotonic()
    sources = _sources(options)
    texts = _checked_texts(options, sources)
    predictors = [
        source.open(threshold=options.threshold, pooling=options.pooling, aggregation=options.aggregation)
        for source in sources
    ]
    loaded, tally = time.monotonic(), _Tally()
    with (
        atomic_file(options.out) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        write = row_writer(format_of(options.out), stream)
        for row in _answered(options, texts, predictors):
            write(tally.count(row))
    ended = time.monotonic()
    first, *others = sources
    return Prediction(
        bundle=options.bundle,
        task=first.bundle.task,
        precision=first.precision,
        provider=predictors[0].provider,
        out=options.out,
        texts=texts.rows,
        truncated=tally.truncated,
        tokens=tally.tokens,
        seconds=ended - started,
        texts_per_second=texts.rows / (ended - loaded),
        against=tally.comparison(others[0]) if others else None,
        notes=tuple(dict.fromkeys(one.note for one in predictors if one.note)),
    )


def _sources(options: PredictOptions) -> list[Source]:
    """The graph, and the one to compare with.

    Raises:
        InputError: see `predict`.
    """
    first = Source.find(Bundle.open(options.bundle), options.precision)
    if options.against is None:
        return [first]
    other = Bundle.open(options.against)
    same = other.folder.resolve() == first.bundle.folder.resolve()
    precision = options.against_precision or options.precision
    if same and options.against_precision is None:
        precision = "fp32" if first.precision != "fp32" else cast(Precision, other.low_precision)
    second = Source.find(other, precision)
    require_comparable(first, second)
    return [first, second]


def _checked_texts(options: PredictOptions, sources: Sequence[Source]) -> TextFile:
    """The data file, read through once.

    Raises:
        InputError: it cannot be read, or holds what the bundle cannot answer or the output cannot hold.
    """
    kind, labels = format_of(options.out), sources[0].bundle.labels
    if options.out.resolve() == options.data.resolve():
        raise InputError("the answers would replace the texts", options.out, "choose another --out")
    words = [source for source in sources if source.bundle.task in FILLING]
    masks = [source.bundle.tokenizer.id_of("[MASK]") for source in words]

    def check(row: TextRow, where: str) -> None:
        check_writable(kind, row, labels, where)
        if row.pair is None and masks and "[MASK]" not in row.text:
            what = "a text without [MASK], for which there is nothing to answer"
            raise InputError(what, where, "put [MASK] where words are wanted")
        if row.pair is None and any(source.wants_pairs for source in sources):
            what = f"no {options.text_pair_column}: the model was trained on pairs of texts"
            raise InputError(what, where, "add the column, or name it with --text-pair-column")

    return TextFile.check(options.data, options.columns(), check, options.progress)


@dataclass(frozen=True)
class _Row:
    """A row to be written, and its line in the data file."""

    line: int
    fields: Mapping[str, Any]


def _answered(options: PredictOptions, texts: TextFile, predictors: Sequence[Predictor]) -> Iterator[_Row]:
    """The rows to write, in the file's order."""
    advance = _progress_of(options, texts.rows * len(predictors), len(predictors))
    for chunk in chunks(texts, CHUNK_ROWS, CHUNK_CHARACTERS):
        found = [predictor.answer(chunk, advance, str(texts.path)) for predictor in predictors]
        for row, *answers in zip(chunk, *found, strict=True):
            yield _Row(row.line, _fields(row, answers))


def _progress_of(options: PredictOptions, total: int, graphs: int) -> Callable[[int], None]:
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        options.progress("answering", done // graphs, total // graphs)

    return advance


def _fields(row: TextRow, answers: Sequence[Answer]) -> dict[str, Any]:
    pair = {} if row.pair is None else {"text_pair": row.pair}
    fields: dict[str, Any] = {"text": row.text, **pair, **answers[0]}
    if len(answers) > 1:
        found = compare(answers[0], answers[1])
        changed = {} if found.changed is None else {"changed": found.changed}
        fields |= {"against": answers[1], "difference": found.largest, **changed}
    return fields


@dataclass
class _Tally:
    """Sums over the rows, kept while they are written."""

    truncated: int = 0
    tokens: int = 0
    changed: int | None = None
    largest: float = -1.0
    line: int = 0

    def count(self, row: _Row) -> Mapping[str, Any]:
        """Counts a row in; returns its fields."""
        fields = row.fields
        self.truncated += fields["truncated"]
        self.tokens += fields["tokens"]
        if "changed" in fields:
            self.changed = (self.changed or 0) + fields["changed"]
        if fields.get("difference", -1.0) > self.largest:
            self.largest, self.line = fields["difference"], row.line
        return fields

    def comparison(self, other: Source) -> ComparisonResult:
        return ComparisonResult(other.bundle.folder, other.precision, self.changed, self.largest, self.line)
