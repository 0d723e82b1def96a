"""Asks the models that `bertmp deploy` made: texts in, answers of their task out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertmp.core.errors import InputError
from bertmp.core.options import keywords_of
from bertmp.serve.served_tasks import CLASSIFIES, COMMON, FILES, SETTINGS, TASKS
from bertmp.serve.serving_options import InferOptions, Protocol
from bertmp.serve.task_answers import Answer, answers_of
from bertmp.serve.triton_client import SCHEMES, TritonClient


@dataclass(frozen=True)
class ServedModel:
    """What a text model says about itself.

    Attributes:
        task: what it answers, one of `TASKS`.
        pairs: whether it takes pairs of texts.
        max_batch: the largest batch of one request.
        outputs: the names of its outputs.
        classes: how many probabilities it gives for a text; 0 for a task without.
    """

    task: str
    pairs: bool
    max_batch: int
    outputs: tuple[str, ...]
    classes: int = 0


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

    Args:
        url: `HOST:PORT`, with or without a scheme; the loopback interface and the protocol's usual port
            where left out.
        protocol: `grpc` or `http`.
    """

    def __init__(self, url: str | None = None, protocol: Protocol = "grpc") -> None:
        super().__init__(url, protocol)
        self._max_batch: dict[str, int] = {}
        self._models: dict[str, ServedModel] = {}
        self._labels: dict[str, list[str]] = {}

    def for_another_thread(self) -> Client:
        """A second connection to the same server."""
        return Client(self._url, self.protocol)

    def max_batch(self, model: str) -> int:
        """The largest batch of one request; the server is asked once per model."""
        if model not in self._max_batch:
            self._max_batch[model] = max(1, int(self.config(model).get("max_batch_size", 0)))
        return self._max_batch[model]

    def describe(self, model: str) -> ServedModel:
        """What a text model answers; the server is asked once per model.

        Raises:
            InputError: not a text model, an unknown one, or a dead server.
        """
        if model not in self._models:
            config = self.config(model)
            inputs, outputs = ({e["name"]: e for e in config.get(k, ())} for k in ("input", "output"))
            if "TEXT" not in inputs:
                what, todo = f"'{model}' is not a text model", "name the model, not its encoder"
                raise InputError(what, self.address, todo)
            # Those of 0.1 have no such parameter: they are classifiers.
            task = config.get("parameters", {}).get("task", {}).get("string_value") or "classification"
            size = max(1, int(config.get("max_batch_size", 0)))
            classes = int(outputs["PROBABILITIES"]["dims"][0]) if "PROBABILITIES" in outputs else 0
            self._models[model] = ServedModel(task, "TEXT_PAIR" in inputs, size, tuple(outputs), classes)
        return self._models[model]

    def ask(
        self, model: str, texts: Sequence[str], pairs: Sequence[str] | None = None, version: str = ""
    ) -> list[Answer]:
        """The answers to any number of texts, or pairs of texts, in their order.

        Args:
            pairs: the second text of each, for a model that takes pairs.
            version: the model's version; empty for the newest.

        Raises:
            InputError: no texts, single texts for a model of pairs or the reverse, an unknown model, a text
                that the server refuses, or a dead server.
        """
        served = self._require_fit(model, texts, pairs)
        names = [name for name in (*TASKS[served.task].answers, *COMMON) if name not in (FILES, SETTINGS)]
        names = [name for name in names if name in served.outputs]
        labels = self.labels(model, texts[0], pairs[0] if pairs else None) if "PROBABILITIES" in names else []
        found: list[Answer] = []
        for start in range(0, len(texts), served.max_batch):
            rows = slice(start, start + served.max_batch)
            second = None if pairs is None else pairs[rows]
            outputs, answered = self.infer(model, text_inputs(texts[rows], second), names, version)
            found += answers_of(served.task, labels, texts[rows], second, outputs, answered)
        return found

    def _require_fit(self, model: str, texts: Sequence[str], pairs: Sequence[str] | None) -> ServedModel:
        if not texts:
            raise InputError("no texts", "", "give at least one")
        if pairs is not None and len(pairs) != len(texts):
            raise InputError(f"{len(texts)} texts and {len(pairs)} second texts", "", "give one for each")
        served = self.describe(model)
        if served.pairs and pairs is None:
            raise InputError(f"'{model}' takes pairs of texts", self.address, "give the second text, too")
        if pairs is not None and not served.pairs:
            raise InputError(f"'{model}' takes single texts", self.address, "leave the second text out")
        return served

    def classify(
        self, model: str, texts: Sequence[str], version: str = "", pairs: Sequence[str] | None = None
    ) -> Answers:
        """A classifier's labels and probabilities as arrays, for any number of texts.

        Raises:
            InputError: see `ask`; or the model is not a classifier.
        """
        served = self._require_fit(model, texts, pairs)
        if served.task not in CLASSIFIES:
            raise InputError(f"'{model}' is for {served.task}", self.address, "name a classifier")
        names, replies = ("LABEL", "PROBABILITIES", "TRUNCATED", "TOKENS"), []
        for start in range(0, len(texts), served.max_batch):
            rows = slice(start, start + served.max_batch)
            inputs = text_inputs(texts[rows], None if pairs is None else pairs[rows])
            replies.append(self.infer(model, inputs, names, version))
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
            InputError: an unknown model, ids that the server refuses, or a dead server.
        """
        return self.infer(model, inputs, (output,), version)[0][output]

    def files(self, model: str, text: str, version: str = "", pair: str | None = None) -> dict[str, str]:
        """SHA-256 of the files behind a text model's version, by name; empty where the model does not say.

        Args:
            text, pair: any that the model accepts; the files are named with an answer.

        Raises:
            InputError: an unknown model, or a dead server.
        """
        return self._told(FILES, model, text, version, pair)

    def settings(self, model: str, text: str, version: str = "", pair: str | None = None) -> dict[str, Any]:
        """How a text model's version answers, see `AnswerSettings`; empty where the model does not say.

        Args:
            text, pair: any that the model accepts; the settings come with an answer.

        Raises:
            InputError: an unknown model, or a dead server.
        """
        return self._told(SETTINGS, model, text, version, pair)

    def _told(self, output: str, model: str, text: str, version: str, pair: str | None) -> dict[str, Any]:
        """What a version says about itself, a JSON object; empty where it does not."""
        if output not in self.describe(model).outputs:
            return {}  # deployed by an earlier version of bertmp
        found, _ = self.infer(model, text_inputs([text], pair and [pair]), (output,), version)
        return dict(json.loads(found[output].reshape(-1)[0]))

    def labels(self, model: str, text: str, pair: str | None = None) -> list[str]:
        """The model's classes in the order of its probabilities, as the server itself names them.

        Args:
            text, pair: any that the model accepts; the names come with an answer, the first time.

        Raises:
            InputError: not a text model with classes, an unknown one, or a dead server.
        """
        if model not in self._labels:
            served = self.describe(model)
            if not served.classes:
                raise InputError(f"'{model}' has no classes", self.address, "name a classifier")
            inputs = text_inputs([text], pair and [pair])
            found, _ = self.infer(model, inputs, ("PROBABILITIES",), classes=served.classes)
            entries = [value.decode().split(":", 2) for value in found["PROBABILITIES"].reshape(-1)]
            self._labels[model] = [label for _, label in sorted((int(at), label) for _, at, label in entries)]
        return self._labels[model]


def text_inputs(texts: Sequence[str], pairs: Sequence[str] | str | None = None) -> dict[str, np.ndarray]:
    """Texts, or pairs of texts, as a text model's inputs."""
    inputs = {"TEXT": _bytes_tensor(texts)}
    return inputs if not pairs else {**inputs, "TEXT_PAIR": _bytes_tensor(pairs)}


def _bytes_tensor(texts: Sequence[str]) -> np.ndarray:
    """Texts as BYTES `[batch, 1]`."""
    # A lone surrogate (an undecodable byte of the command line) is passed on: the server refuses it.
    rows = [text.encode("utf-8", errors="surrogateescape") for text in texts]
    return np.array(rows, dtype=object).reshape(-1, 1)


def connect(url: str) -> Client:
    """A connection over the protocol that the address speaks; without a scheme, both are tried.

    Raises:
        InputError: no server answers.
    """
    scheme, separator, _ = url.partition("://")
    protocols: list[Protocol] = ["grpc" if separator and scheme in SCHEMES["grpc"] else "http"]
    if not separator and ":" in url:  # without a port, HTTP's is meant
        protocols.append("grpc")
    for protocol in protocols:
        client = Client(url, protocol)
        if client.is_live():
            return client
        client.close()
    raise InputError("no Triton server answers", url, "start one with 'bertmp serve'")


@keywords_of(InferOptions)
def infer(options: InferOptions) -> list[Answer]:
    """Asks a served text model about each text, or pair of texts.

    Raises:
        InputError: no text, a file that cannot be read, pairs for a model of single texts or the reverse, an
            unknown model, a text that the server refuses, or a dead server.
    """
    texts, pairs = options.asked()
    with Client(options.url, options.protocol) as client:
        return client.ask(options.name, texts, pairs)
