"""The client: texts to labels and token ids to logits, over gRPC or HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertmp.core.errors import InputError
from bertmp.data.readers import read_examples
from bertmp.serve.triton_client import Protocol, Transport, protocol_named


@dataclass(frozen=True)
class Answers:
    """What a text model said to a number of texts, in their order.

    Attributes:
        labels: one class name a text.
        probabilities: FP32 `[texts, labels]`.
        truncated: BOOL `[texts]`: whether the text was cut to the model's positions.
        tokens: INT32 `[texts]`: the tokens that were read of it.
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
        truncated: whether the text was cut to the model's positions.
    """

    text: str
    label: str
    probability: float
    version: int
    truncated: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Client:
    """Asks the models that `bertmp deploy` made. Usable from one thread; close it, or use `with`.

    Args:
        url: `HOST:PORT`, with or without a scheme; the loopback interface and the protocol's usual port
            where left out. Or a connection that is open already.
        protocol: `grpc` or `http`.
    """

    def __init__(self, url: str | Transport | None = None, protocol: str = "grpc") -> None:
        self.transport = url if isinstance(url, Transport) else Transport(url, protocol_named(protocol))
        self._batches: dict[str, int] = {}

    @property
    def protocol(self) -> Protocol:
        return self.transport.protocol

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()

    def close(self) -> None:
        self.transport.close()

    def max_batch(self, model: str) -> int:
        """The most rows of one request; asked once a model."""
        if model not in self._batches:
            self._batches[model] = max(1, int(self.transport.config(model).get("max_batch_size", 0)))
        return self._batches[model]

    def classify(self, model: str, texts: Sequence[str], version: str = "") -> Answers:
        """Labels and probabilities of any number of texts, sent in batches that the model takes.

        Errors: InputError for an unknown model, a text that the server refuses, or a dead server.
        """
        step = self.max_batch(model)
        parts = [
            self._classify(model, texts[start : start + step], version)
            for start in range(0, len(texts), step)
        ]
        if not parts:
            raise InputError("no texts", "", "give at least one")
        return Answers(
            labels=[label for part in parts for label in part.labels],
            probabilities=np.concatenate([part.probabilities for part in parts]),
            truncated=np.concatenate([part.truncated for part in parts]),
            tokens=np.concatenate([part.tokens for part in parts]),
            versions=[number for part in parts for number in part.versions],
        )

    def _classify(self, model: str, texts: Sequence[str], version: str) -> Answers:
        rows = np.array([_encode(text) for text in texts], dtype=object).reshape(-1, 1)
        outputs = ("LABEL", "PROBABILITIES", "TRUNCATED", "TOKENS")
        found, answered = self.transport.infer(model, {"TEXT": (rows, "BYTES")}, outputs, version)
        return Answers(
            labels=[label.decode() for label in found["LABEL"].reshape(-1)],
            probabilities=found["PROBABILITIES"],
            truncated=found["TRUNCATED"].reshape(-1),
            tokens=found["TOKENS"].reshape(-1),
            versions=[answered] * len(texts),
        )

    def encode(
        self,
        model: str,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        token_type_ids: np.ndarray,
        version: str = "",
    ) -> np.ndarray:
        """Logits FP32 `[batch, labels]` of an encoder model.

        Args:
            model: the encoder's name, `NAME_encoder`.
            input_ids, attention_mask, token_type_ids: INT64 `[batch, length]`.

        Errors: InputError for an unknown model, ids that the server refuses, or a dead server.
        """
        named = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs = {
            name: (np.ascontiguousarray(array, dtype=np.int64), "INT64") for name, array in named.items()
        }
        return self.transport.infer(model, inputs, ("logits",), version)[0]["logits"]

    def labels(self, model: str, text: str) -> list[str]:
        """The model's classes in the order of its probabilities, as the server itself names them."""
        rows = np.array([[_encode(text)]], dtype=object)
        config = self.transport.config(model)
        dims = [entry["dims"] for entry in config["output"] if entry["name"] == "PROBABILITIES"]
        if not dims:
            raise InputError(
                f"'{model}' is no text model", self.transport.address, "name the model, not its encoder"
            )
        count = int(dims[0][0])
        found, _ = self.transport.infer(model, {"TEXT": (rows, "BYTES")}, ("PROBABILITIES",), classes=count)
        entries = [value.decode().split(":", 2) for value in found["PROBABILITIES"].reshape(-1)]
        return [label for _, label in sorted((int(index), label) for _, index, label in entries)]


def _encode(text: str) -> bytes:
    # A lone surrogate (an undecodable byte of the command line) is passed on: the server says no.
    return text.encode("utf-8", errors="surrogateescape")


def infer(
    name: str,
    texts: str | Sequence[str] = (),
    file: Path | str | None = None,
    protocol: str = "grpc",
    url: str | None = None,
) -> list[Answer]:
    """Asks a served text model.

    Args:
        name: the model.
        texts: the texts, or one; those of `file` follow.
        file: a data file, of which the texts are read.
        protocol: `grpc` or `http`.
        url: the server's address; the loopback interface where left out.

    Errors: InputError where there is no text, for a file that cannot be read, an unknown model, a text
    that the server refuses, or a dead server.
    """
    own = [texts] if isinstance(texts, str) else texts
    asked = [*own, *(read_examples(Path(file)).texts if file is not None else [])]
    if not asked:
        raise InputError("no texts", "", "give one, or a file with --file")
    with Client(url, protocol) as client:
        answers = client.classify(name, asked)
    rows = zip(asked, answers.labels, answers.probabilities, answers.versions, answers.truncated, strict=True)
    return [
        Answer(text, label, float(probabilities.max()), version, bool(cut))
        for text, label, probabilities, version, cut in rows
    ]
