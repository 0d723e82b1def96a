"""Asks the models that `bertmp deploy` made: texts in, answers of their task out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import Self, Unpack

from bertmp.core.errors import InputError
from bertmp.serve.connection import Connection, ConnectionOptions, possible_connections
from bertmp.serve.faults import no_server
from bertmp.serve.served_tasks import CLASSIFIES, FILES, SETTINGS
from bertmp.serve.serving_options import Protocol
from bertmp.serve.task_answers import Answer, RefusedText, answers_of
from bertmp.serve.text_requests import (
    ServedModel,
    batches,
    class_names,
    json_of,
    largest_batch,
    text_inputs,
    told_labels,
)
from bertmp.serve.triton_client import TritonClient


@dataclass(frozen=True)
class Answers:
    """A classifier's answers, in the order of the texts.

    Attributes:
        labels: one class name per text.
        probabilities: FP32 `[texts, labels]`.
        truncated: BOOL `[texts]`: whether the text was cut to the model's maximum length.
        tokens: INT32 `[texts]`: how many of its tokens were read.
        versions: the version that answered each text.
    """

    labels: list[str]
    probabilities: np.ndarray
    truncated: np.ndarray
    tokens: np.ndarray
    versions: list[int]


class Client(TritonClient):
    """Asks the models that `bertmp deploy` made. Usable from one thread; close it, or use `with`.

    A request that may succeed later (a worker that died, a full queue, a server that starts) is sent again,
    with growing pauses, until its deadline; one that the server refuses is not.

    Args:
        url: `grpc://HOST:PORT`, `grpcs://`, `http://` or `https://`; without a scheme it is found out which
            protocol the address speaks. None for gRPC on this machine, port 8001.
        protocol: `grpc` or `http`; None for the one that the address says.
        tls_ca: the authority (PEM) that must have signed the server's certificate; None for those that the
            system trusts.
        tls_cert, tls_key: the certificate (PEM) that is shown to the server, and its key.
        timeout: seconds that a request may take, its retries included.
        retry: how often it is sent again.

    Raises:
        InputError: not an address, a certificate's file that cannot be read, or, where the protocol has to
            be found out, no server.
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: Protocol | None = None,
        **options: Unpack[ConnectionOptions],
    ) -> None:
        self._connect(_answering(possible_connections(url, protocol, **options)))

    def _connect(self, connection: Connection) -> None:
        super()._connect(connection)
        self._configs: dict[str, Mapping[str, object]] = {}
        self._labels: dict[tuple[str, int], list[str]] = {}

    def for_another_thread(self) -> Client:
        """A second connection to the same server."""
        return Client._to(self.connection)

    @classmethod
    def _to(cls, connection: Connection) -> Self:
        client = cls.__new__(cls)
        client._connect(connection)
        return client

    def max_batch(self, model: str) -> int:
        """The largest batch of one request; the server is asked once per model."""
        return largest_batch(self._config_once(model))

    def _config_once(self, model: str) -> Mapping[str, object]:
        if model not in self._configs:
            self._configs[model] = self.config(model)
        return self._configs[model]

    def describe(self, model: str) -> ServedModel:
        """What a text model answers; the server is asked once per model.

        Raises:
            InputError: not a text model, an unknown one, or no server.
            ServerFault: the server does not answer any more.
        """
        return ServedModel.of_config(model, self._config_once(model), self.address)

    def ask(
        self, model: str, texts: Sequence[str], pairs: Sequence[str] | None = None, version: str = ""
    ) -> list[Answer]:
        """The answers to any number of texts, or pairs of texts, in their order.

        Args:
            pairs: the second text of each, for a model that takes pairs.
            version: the model's version; empty for the newest.

        Raises:
            RequestRefused: the server refuses a text.
            InputError: no texts, single texts for a model of pairs or the reverse, an unknown model or
                version, or no server.
            ServerFault: the server fails, is overloaded, or does not answer before the deadline.
        """
        served = self.describe(model)
        served.require_fit(model, texts, pairs, self.address)
        found: list[Answer] = []
        for first, second in batches(texts, pairs, served.max_batch):
            found += self._answers(model, served, first, second, version)
        return found

    def _answers(
        self,
        model: str,
        served: ServedModel,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        version: str,
    ) -> list[Answer]:
        """One request's answers."""
        inputs, wanted = text_inputs(texts, pairs), served.answer_outputs
        while True:
            outputs, answered = self.infer(model, inputs, wanted, version)
            if (told := told_labels(outputs)) is not None:
                self._labels[model, answered] = told
            if not served.classes or (model, answered) in self._labels:
                labels = self._labels.get((model, answered), ())
                return answers_of(served.task, labels, texts, pairs, outputs, answered)
            # Of two requests, the second may be answered by another version: this one asks for both.
            if SETTINGS in served.outputs and SETTINGS not in wanted:
                wanted = [*wanted, SETTINGS]
            else:  # a version of 0.1
                self._name_classes(model, served, texts[0], pairs[0] if pairs else None, version)

    def stream(
        self,
        model: str,
        texts: Iterable[str | tuple[str, str]],
        *,
        concurrency: int = 4,
        skip_refused: bool = False,
    ) -> Generator[Answer | RefusedText, None, None]:
        """The answers to any number of texts, or pairs of texts, in their order and in bounded memory.

        Args:
            texts: read as they are needed, in another thread.
            concurrency: how many requests are under way at the same time.
            skip_refused: whether a text that the server refuses gets a `RefusedText` and the others go on.

        Raises:
            InputError, ServerFault: see `ask`; a refused text is named by its number.
        """
        from bertmp.serve.streaming import numbered, stream

        return stream(self, model, numbered(texts), concurrency, skip_refused)

    def classify(
        self, model: str, texts: Sequence[str], version: str = "", pairs: Sequence[str] | None = None
    ) -> Answers:
        """A classifier's labels and probabilities as arrays, for any number of texts.

        Raises:
            InputError: see `ask`; or the model is not a classifier.
        """
        served = self.describe(model)
        served.require_fit(model, texts, pairs, self.address)
        if served.task not in CLASSIFIES:
            raise InputError(f"'{model}' is for {served.task}", self.address, "name a classifier")
        names, replies = ("LABEL", "PROBABILITIES", "TRUNCATED", "TOKENS"), []
        for first, second in batches(texts, pairs, served.max_batch):
            replies.append(self.infer(model, text_inputs(first, second), names, version))
        found = {name: np.concatenate([outputs[name] for outputs, _ in replies]) for name in names}
        return Answers(
            labels=[label.decode() for label in found["LABEL"].reshape(-1)],
            probabilities=found["PROBABILITIES"],
            truncated=found["TRUNCATED"].reshape(-1),
            tokens=found["TOKENS"].reshape(-1),
            versions=[answered for outputs, answered in replies for _ in outputs["LABEL"]],
        )

    def encode(
        self, model: str, inputs: Mapping[str, np.ndarray], version: str = "", output: str = "logits"
    ) -> np.ndarray:
        """One of a graph's outputs, FP32 `[batch, …]`, of an encoder model.

        Args:
            model: the encoder's name, `NAME_encoder`.
            inputs: `input_ids`, `attention_mask` and `token_type_ids`, each INT64 `[batch, length]`.

        Raises:
            InputError: an unknown model, ids that the server refuses, or no server.
        """
        return self.infer(model, inputs, (output,), version)[0][output]

    def files(self, model: str, text: str, version: str = "", pair: str | None = None) -> dict[str, str]:
        """SHA-256 of the files behind a text model's version, by name; empty where the model does not say.

        Args:
            text, pair: any that the model accepts; the files are named with an answer.

        Raises:
            InputError: an unknown model, or no server.
        """
        return self._told(FILES, model, text, version, pair)

    def settings(self, model: str, text: str, version: str = "", pair: str | None = None) -> dict[str, Any]:
        """How a text model's version answers, see `AnswerSettings`; empty where the model does not say.

        Args:
            text, pair: any that the model accepts; the settings come with an answer.

        Raises:
            InputError: an unknown model, or no server.
        """
        return self._told(SETTINGS, model, text, version, pair)

    def _told(self, output: str, model: str, text: str, version: str, pair: str | None) -> dict[str, Any]:
        """What a version says about itself, a JSON object; empty where it does not."""
        if output not in self.describe(model).outputs:
            return {}  # deployed by an earlier version of bertmp
        found, _ = self.infer(
            model, text_inputs([text], None if pair is None else [pair]), (output,), version
        )
        return json_of(found, output)

    def labels(self, model: str, text: str, pair: str | None = None) -> list[str]:
        """The model's classes in the order of its probabilities, as the server itself names them.

        Args:
            text, pair: any that the model accepts; the names come with an answer.

        Raises:
            InputError: not a text model with classes, an unknown one, or no server.
        """
        served = self.describe(model)
        if not served.classes:
            raise InputError(f"'{model}' has no classes", self.address, "name a classifier")
        return self._name_classes(model, served, text, pair)

    def _name_classes(
        self, model: str, served: ServedModel, text: str, pair: str | None, version: str = ""
    ) -> list[str]:
        inputs = text_inputs([text], None if pair is None else [pair])
        found, answered = self.infer(model, inputs, ("PROBABILITIES",), version, served.classes)
        self._labels[model, answered] = class_names(found)
        return self._labels[model, answered]


def _answering(connections: Sequence[Connection]) -> Connection:
    """The first connection at which a server answers; the only one is not tried.

    Raises:
        InputError: no server answers.
    """
    if len(connections) == 1:
        return connections[0]
    for connection in connections:
        with Client._to(connection) as client:
            if client.is_live():
                return connection
    raise no_server(" or ".join(one.protocol for one in connections), connections[0].address)
