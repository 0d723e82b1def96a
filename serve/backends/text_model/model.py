"""A text model for Triton's Python backend: TEXT, or TEXT and TEXT_PAIR, to the answers of its task.

The tokenizer lies beside this file, and in `lib/` the package that reads it, which stock containers lack.
Where ONNX Runtime is installed and the model's configuration says so, the graph runs in this process; else
the encoder model of the same version is called inside the server. The texts of all requests of one call are
tokenized together and grouped by length: batches without padding are the fast ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# Before the library is loaded: there is a worker for each core, so that threads of its own get in the way.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from tokenizers import Tokenizer

from .answers import Scorer, decoder_of, mean_of_windows
from .cpu_session.worker import Progress, let_live_versions_go_first
from .graph import Batching, SessionGraph, make_feed, open_graph
from .reading import BadRequest, Reader, Row, Window, read_text
from .wire import Answered, tensors

ANSWERING = ("task", "max_length", "long_text", "pooling", "aggregation", "threshold", "labels")
"""The settings that clients are told on request."""

WORDS_OF_MASKS = ("masked-lm", "pretraining")


@dataclass(eq=False)
class Asked:
    """One request, while it is answered.

    Attributes:
        wanted: the names of the outputs that it asks for.
        rows: its texts.
        scores: of each window of each row, as they are found.
        missing: how many of them are not there yet.
        error: why it is refused or fails; None where it does not.
        sent: whether the response was sent before those of the same call.
    """

    wanted: frozenset[str]
    rows: list[Row] = field(default_factory=list)
    scores: list[list[np.ndarray | None]] = field(default_factory=list)
    missing: int = 0
    error: Any = None
    sent: bool = False


@dataclass(frozen=True)
class Place:
    """Where a window belongs: its request, the row's number, and its own number in the row."""

    asked: Asked
    row: int
    at: int

    @property
    def window(self) -> Window:
        return self.asked.rows[self.row].windows[self.at]

    @property
    def length(self) -> int:
        return len(self.window)


class TritonPythonModel:
    """One worker; `settings.json` and `tokenizer.json` are in the version's folder."""

    def initialize(self, args: dict[str, str]) -> None:
        let_live_versions_go_first(args["model_name"])
        folder = os.path.join(args["model_repository"], args["model_version"])
        with open(os.path.join(folder, "settings.json"), encoding="utf-8") as stream:
            settings = json.load(stream)
        parameters = json.loads(args["model_config"]).get("parameters", {})
        step = parameters.get("length_step", {"string_value": "1"})  # of configurations of 0.1
        table = json.loads(parameters.get("serving", {"string_value": "{}"})["string_value"])
        serving = {"length_step": int(step["string_value"]), **table}
        with open(os.path.join(folder, "tokenizer.json"), "rb") as stream:
            digest = hashlib.sha256(stream.read()).hexdigest()
        self.pad_id, self.max_bytes = settings["pad_id"], settings["max_text_bytes"]
        tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        self.decoder = make_decoder(settings, tokenizer)
        self.reader = Reader(tokenizer, settings, self.decoder.needs_spans)
        self.batching = make_batching(settings, serving)
        graph = {"encoder": f"{args['model_name']}_encoder", **serving}
        graph["precision"] = settings.get("precision", {})  # the version's own, not the configuration's
        self.graph = open_graph(
            args["model_repository"], int(args["model_version"]), graph, self.decoder.outputs
        )
        told = {**{name: settings[name] for name in ANSWERING}, "precision": self.graph.precision}
        self.facts = {
            "FILES": json.dumps({**settings["sha256"], "tokenizer.json": digest}).encode(),
            "SETTINGS": json.dumps(told).encode(),
        }
        self.sends_early, self.progress = True, Progress()
        if isinstance(self.graph, SessionGraph):
            self._warm_up()

    def _warm_up(self) -> None:
        """Runs a short text: a version that cannot run does not become ready, and no text is the first."""
        window = self.reader.frame.window([[self.pad_id]] * len(self.reader.frame.types))
        for outputs in self.graph.run_all([self._feed([window], len(window))]):
            if not isinstance(outputs, dict):
                raise pb_utils.TritonModelException(outputs.message())

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers each request by itself: one that is refused or fails does not affect the others.

        Returns:
            The responses; None for those that were sent as soon as they were there.
        """
        with self.progress:
            return self._answer(requests)

    def _answer(self, requests: Sequence[Any]) -> list[Any]:
        asked = self._read_all(requests)
        places = [
            Place(one, number, at)
            for one in asked
            for number, row in enumerate(one.rows)
            for at in range(len(row.windows))
        ]
        senders = self._senders(asked, requests)
        for complete in self._run_all(places):
            if complete in senders:
                senders.pop(complete).send(
                    self._response(complete), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
                )
                complete.sent = True
        return [None if one.sent else self._response(one) for one in asked]

    def _senders(self, asked: Sequence[Asked], requests: Sequence[Any]) -> dict[Asked, Any]:
        """What sends a response before the others are there; none for a single request.

        Triton has it for models of this kind since 24.06.
        """
        if not self.sends_early or len(requests) == 1:
            return {}
        try:
            return dict(zip(asked, (request.get_response_sender() for request in requests)))  # noqa: B905
        except Exception:
            self.sends_early = False
            return {}

    def _read_all(self, requests: Sequence[Any]) -> list[Asked]:
        """The requests' texts as the graph reads them; all of them are tokenized at once."""
        asked = [Asked(frozenset(request.requested_output_names())) for request in requests]
        texts: list[list[tuple[str, ...]]] = []
        for one, request in zip(asked, requests):  # noqa: B905
            texts.append([])
            try:
                texts[-1] = self._texts(request)
            except BadRequest as error:
                one.error = refusal(error)
        self.progress.step()
        pieces = iter(self.reader.pieces([text for rows in texts for row in rows for text in row]))
        for one, rows in zip(asked, texts):  # noqa: B905
            read = [[next(pieces) for _ in row] for row in rows]
            try:
                for number, row in enumerate(rows):
                    where = name_row("text", number, len(rows))
                    one.rows.append(self.reader.row(row, read[number], where))
            except BadRequest as error:
                one.rows, one.error = [], refusal(error)
            one.scores = [[None] * len(row.windows) for row in one.rows]
            one.missing = sum(map(len, one.scores))
        return asked

    def _texts(self, request: Any) -> list[tuple[str, ...]]:
        """The request's texts, or pairs of texts, `[batch, 1]` bytes in it, as strings.

        Raises:
            BadRequest: a text is empty, too large, or not UTF-8.
        """
        names = ("TEXT", "TEXT_PAIR") if self.reader.pairs else ("TEXT",)
        columns = []
        for name in names:
            values = pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)
            kind = "text" if name == "TEXT" else "second text"
            columns.append(
                [
                    read_text(value, name_row(kind, row, len(values)), self.max_bytes)
                    for row, value in enumerate(values)
                ]
            )
        return list(zip(*columns))  # noqa: B905 (Triton checked the batch)

    def _run_all(self, places: Sequence[Place]) -> Iterator[Asked]:
        """Runs the graph on every window; yields each request that is complete while others are not."""
        groups = list(self.batching.groups([place.length for place in places]))
        batches = [[places[number] for number in members] for _, members in groups]
        feeds = [
            self._feed([place.window for place in batch], length)
            for batch, (length, _) in zip(batches, groups)  # noqa: B905
        ]
        runs = zip(batches, self.graph.run_all(feeds))  # noqa: B905
        for left, (batch, outputs) in enumerate(runs, 1 - len(batches)):
            self._score(batch, outputs)
            self.progress.step()
            for place in batch:
                place.asked.missing -= 1
                if left and not place.asked.missing:
                    yield place.asked

    def _score(self, batch: Sequence[Place], outputs: Any) -> None:
        """Puts a run's scores where they belong."""
        for row, place in enumerate(batch):
            if not isinstance(outputs, dict):
                place.asked.error = outputs
                continue
            scores = self.decoder.scores(outputs, row, place.window.ids)
            if (np.isnan(scores) | np.isposinf(scores)).any():  # minus infinity switches a class off
                place.asked.error = pb_utils.TritonError(NOT_FINITE, pb_utils.TritonError.INTERNAL)
            place.asked.scores[place.row][place.at] = scores

    def _feed(self, windows: Sequence[Window], length: int) -> dict[str, np.ndarray]:
        return make_feed(windows, min(length, self.reader.max_length), self.pad_id)

    def _response(self, asked: Asked) -> Any:
        if asked.error is not None:
            return pb_utils.InferenceResponse(error=asked.error)
        rows = [
            Answered(row, join(self.decoder, row, scores))
            for row, scores in zip(asked.rows, asked.scores)  # noqa: B905
        ]
        found = tensors(self.decoder, rows, self.facts, asked.wanted)
        outputs = [pb_utils.Tensor(name, array) for name, array in found.items()]
        return pb_utils.InferenceResponse(output_tensors=outputs)


NOT_FINITE = "the graph's answer is not a finite number"


def refusal(error: BadRequest) -> Any:
    return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)


def name_row(kind: str, row: int, rows: int) -> str:
    """What messages call a text of a request."""
    return f"{kind} {row + 1} of {rows}" if rows > 1 else f"the {kind}"


def make_decoder(settings: dict[str, Any], tokenizer: Any) -> Scorer:
    """What turns the graph's outputs into the task's answers."""
    tokens: list[str] = []
    if settings["task"] in WORDS_OF_MASKS:
        by_id = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
        tokens = [by_id.get(number, "") for number in range(max(by_id) + 1)]
    decoder = decoder_of(
        # Of a pre-training head, the words for masks are served.
        "masked-lm" if settings["task"] == "pretraining" else settings["task"],
        labels=settings["labels"],
        tokens=tokens,
        mask=settings["mask"] or 0,
        threshold=settings["threshold"],
        pooling=settings["pooling"],
        aggregation=settings["aggregation"],
    )
    assert isinstance(decoder, Scorer)
    return decoder


def make_batching(settings: dict[str, Any], serving: dict[str, Any]) -> Batching:
    """What may share a run, by the version's settings and the configuration's table `serving`."""
    rows = settings["max_batch"]
    return Batching(
        rows=rows,
        tokens=serving.get("max_tokens", rows * settings["max_length"]),
        padding=serving.get("max_padding", 0.0),
        length_step=serving.get("length_step", 1),
    )


def join(decoder: Scorer, row: Row, scores: Sequence[np.ndarray | None]) -> np.ndarray:
    """The scores of a text, from those of its windows."""
    parts = [one for one in scores if one is not None]
    if len(row.windows) == 1:
        return parts[0]
    if not decoder.per_token:
        return mean_of_windows(parts, list(map(len, row.windows)))
    taken = [
        decoder.part(parts[take.window], row.windows[take.window].ids, take.start, take.stop)
        for take in row.takes
    ]
    return np.concatenate(taken)
