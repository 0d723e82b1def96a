"""One graph of a bundle, opened to answer texts with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertmp.core.errors import InputError
from bertmp.data.batches import close_batches, pad_batch
from bertmp.data.text_stream import TextRow
from bertmp.data.tokenizer import Encoded
from bertmp.export.answers import Answer, Decoder, Tokens, decoder_of
from bertmp.export.bundle import CONVERT, EXPORT, FP32_GRAPH, Bundle
from bertmp.export.graph.ort_sessions import arithmetic_note, best_providers, open_session
from bertmp.export.prediction.predict_options import Precision

FILLING = ("masked-lm", "pretraining")
"""The heads that answer with words for `[MASK]`."""


@dataclass(frozen=True)
class Source:
    """A graph of a bundle that was checked and is not open yet.

    Attributes:
        bundle: the bundle; none of its files has changed since they were written.
        precision: the graph's.
    """

    bundle: Bundle
    precision: Precision

    @classmethod
    def find(cls, bundle: Bundle, precision: Precision) -> Source:
        """The graph of this precision.

        Raises:
            InputError: the bundle has none, or is stale.
        """
        bundle.stage(EXPORT, "bertmp export")
        if precision != "fp32":
            if bundle.low_graph is None:
                what = f"the bundle has no {precision.upper()} graph"
                raise InputError(what, bundle.folder, f"export it again with --precision {precision}")
            if bundle.low_precision != precision:
                what = (
                    f"the bundle has no {precision.upper()} graph, but one in {bundle.low_precision.upper()}"
                )
                raise InputError(what, bundle.folder, f"use --precision {bundle.low_precision}")
            bundle.stage(CONVERT, "bertmp export")
        return cls(bundle, precision)

    @property
    def wants_pairs(self) -> bool:
        """Whether single texts make no sense: it was trained on pairs alone."""
        return self.bundle.task == "next-sentence" or bool(self.bundle.config.get("text_pairs"))

    def _decoder(self, threshold: float, pooling: str, aggregation: str) -> Decoder:
        """What turns the graph's outputs into answers."""
        task, tokenizer = self.bundle.task, self.bundle.tokenizer
        return decoder_of(
            task,
            labels=self.bundle.labels,
            tokens=tokenizer.tokens() if task in FILLING else (),
            mask=tokenizer.id_of("[MASK]") if task in FILLING else 0,
            threshold=threshold,
            pooling=pooling,
            aggregation=aggregation,
        )

    def open(
        self, *, threshold: float = 0.5, pooling: str = "mean", aggregation: str = "simple"
    ) -> Predictor:
        """Opens the graph, on the GPU where ONNX Runtime can use one, else on the CPU.

        Args:
            threshold, pooling, aggregation: how it answers, see `decoder_of`.

        Raises:
            InputError: ONNX Runtime does not load it.
            MissingComponent: it is not installed.
        """
        graph = self.bundle.folder / ((self.precision != "fp32" and self.bundle.low_graph) or FP32_GRAPH)
        try:
            session = open_session(graph, providers=best_providers())
        except InputError as error:
            if "NOT_IMPLEMENTED" not in str(error):
                raise
            what = f"ONNX Runtime has no kernels for {self.precision.upper()} graphs on this machine"
            raise InputError(what, graph, "use --precision fp32") from error
        return Predictor(self, self._decoder(threshold, pooling, aggregation), session)


CPU_ROWS, GPU_ROWS = 16, 128
"""The most rows of a batch."""
TOKENS = 4096
"""The most tokens of a batch."""
SPREAD = 4
"""The most padding tokens of a row: ONNX Runtime's CPU provider is slow on padded batches."""
VALUES = 1 << 24
"""The most logits of a batch over the vocabulary, so that they fit into 64 MiB."""


@dataclass(frozen=True)
class Predictor:
    """An open graph.

    Attributes:
        source: where it is from.
        decoder: turns its outputs into answers.
        session: ONNX Runtime's.
    """

    source: Source
    decoder: Decoder
    session: Any

    @property
    def provider(self) -> str:
        """Where it runs, such as `CPU`."""
        return str(self.session.get_providers()[0]).removesuffix("ExecutionProvider")

    @property
    def note(self) -> str:
        """How it computes, where that is not in the graph's precision; empty otherwise."""
        return arithmetic_note(self.source.precision, str(self.session.get_providers()[0]))

    def answer(self, rows: Sequence[TextRow], advance: Callable[[int], None], where: str) -> list[Answer]:
        """The answers in the order of `rows`, each with `truncated` and `tokens`.

        Args:
            advance: called with the number of rows that were answered since the last call.
            where: the data file, for messages.

        Raises:
            InputError: the graph answers with something that is not a number.
        """
        encoded = self._encode(rows)
        answers: dict[int, Answer] = {}
        for batch in self._batches([len(one) for one in encoded]):
            chosen = [encoded[row] for row in batch]
            feed = pad_batch(chosen, self.source.bundle.tokenizer.pad_id)
            outputs = dict(
                zip(self.decoder.outputs, self.session.run(list(self.decoder.outputs), feed), strict=True)
            )
            self._require_finite(outputs, [rows[row] for row in batch], where)
            read = [_tokens(encoded[row], rows[row]) for row in batch]
            for row, answer in zip(batch, self.decoder(outputs, read), strict=True):
                facts = {"truncated": encoded[row].truncated, "tokens": len(encoded[row])}
                answers[row] = {**answer, **facts}
            advance(len(batch))
        return [answers[row] for row in range(len(rows))]

    def _encode(self, rows: Sequence[TextRow]) -> list[Encoded]:
        pairs = [row.pair for row in rows if row.pair is not None]
        texts = [row.text for row in rows]
        tokenizer = self.source.bundle.tokenizer
        return tokenizer.encode(texts, pairs or None, spans=self.decoder.needs_spans)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        bundle, tokens = self.source.bundle, TOKENS
        if bundle.task in FILLING:
            tokens = min(tokens, VALUES // int(bundle.config["vocab_size"]))
        return close_batches(lengths, CPU_ROWS if self.provider == "CPU" else GPU_ROWS, SPREAD, tokens)

    def _require_finite(self, outputs: dict[str, np.ndarray], rows: Sequence[TextRow], where: str) -> None:
        for array in outputs.values():
            if np.isfinite(array).all():
                continue
            bad = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
            what = f"the {self.source.precision.upper()} graph's answer is not a finite number"
            todo = "use --precision fp32" if self.source.precision != "fp32" else "look at 'bertmp explain'"
            raise InputError(what, f"{where}, line {rows[bad].line}", todo)


def _tokens(encoded: Encoded, row: TextRow) -> Tokens:
    return Tokens(encoded.input_ids, encoded.spans, row.texts, encoded.words)
