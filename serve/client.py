"""The client: texts to labels and token ids to logits, over gRPC or HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bertmp.core.errors import InputError
from bertmp.core.options import keywords_of
from bertmp.serve.serving_options import InferOptions, Protocol, read_texts
from bertmp.serve.triton_client import SCHEMES, TritonClient


@dataclass(frozen=True)
class Answers:
    """A text model's answers, in the order of the texts.

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


@dataclass(frozen=True)
class Answer:
    """One text's answer.

    Attributes:
        probability: of the label, 0 to 1.
        version: the version that answered.
        truncated: whether the text was cut to the model's maximum length.
    """

    text: str
    label: str
    probability: float
    version: int
    truncated: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


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

    def max_batch(self, model: str) -> int:
        """The largest batch of one request; the server is asked once per model."""
        if model not in self._max_batch:
            self._max_batch[model] = max(1, int(self.config(model).get("max_batch_size", 0)))
        return self._max_batch[model]

    def classify(self, model: str, texts: Sequence[str], version: str = "") -> Answers:
        """Labels and probabilities of any number of texts, in requests of at most `max_batch`.

        Raises:
            InputError: no texts, an unknown model, a text that the server refuses, or a dead server.
        """
        if not texts:
            raise InputError("no texts", "", "give at least one")
        names, size = ("LABEL", "PROBABILITIES", "TRUNCATED", "TOKENS"), self.max_batch(model)
        replies = []
        for start in range(0, len(texts), size):
            inputs = {"TEXT": _bytes_tensor(texts[start : start + size])}
            replies.append(self.infer(model, inputs, names, version))
        found = {name: np.concatenate([outputs[name] for outputs, _ in replies]) for name in names}
        return Answers(
            labels=[label.decode() for label in found["LABEL"].reshape(-1)],
            probabilities=found["PROBABILITIES"],
            truncated=found["TRUNCATED"].reshape(-1),
            tokens=found["TOKENS"].reshape(-1),
            versions=[answered for outputs, answered in replies for _ in outputs["LABEL"]],
        )

    def encode(self, model: str, inputs: Mapping[str, np.ndarray], version: str = "") -> np.ndarray:
        """Logits FP32 `[batch, labels]` of an encoder model.

        Args:
            model: the encoder's name, `NAME_encoder`.
            inputs: `input_ids`, `attention_mask` and `token_type_ids`, each INT64 `[batch, length]`.

        Raises:
            InputError: an unknown model, ids that the server refuses, or a dead server.
        """
        return self.infer(model, inputs, ("logits",), version)[0]["logits"]

    def labels(self, model: str, text: str) -> list[str]:
        """The model's classes in the order of its probabilities, as the server itself names them.

        Args:
            text: any text that the model accepts; the names come with an answer.

        Raises:
            InputError: not a text model, an unknown one, or a dead server.
        """
        outputs = {entry["name"]: entry for entry in self.config(model)["output"]}
        if "PROBABILITIES" not in outputs:
            what, todo = f"'{model}' is not a text model", "name the model, not its encoder"
            raise InputError(what, self.address, todo)
        count = int(outputs["PROBABILITIES"]["dims"][0])
        found, _ = self.infer(model, {"TEXT": _bytes_tensor([text])}, ("PROBABILITIES",), classes=count)
        entries = [value.decode().split(":", 2) for value in found["PROBABILITIES"].reshape(-1)]
        return [label for _, label in sorted((int(index), label) for _, index, label in entries)]


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
    """Asks a served text model for the label of each text.

    Raises:
        InputError: no text, a file that cannot be read, an unknown model, a text that the server refuses, or
            a dead server.
    """
    texts = [options.texts] if isinstance(options.texts, str) else list(options.texts)
    if options.data is not None:
        texts += read_texts(options.data, options)
    if not texts:
        raise InputError("no texts", "", "give one, or a file with --data")
    with Client(options.url, options.protocol) as client:
        found = client.classify(options.name, texts)
    rows = zip(texts, found.labels, found.probabilities, found.versions, found.truncated, strict=True)
    return [
        Answer(text, label, float(probabilities.max()), version, bool(truncated))
        for text, label, probabilities, version, truncated in rows
    ]
