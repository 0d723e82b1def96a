"""The served model as a stage of parity: over the wire, tokenizer and softmax included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bertmp.core.errors import InputError
from bertmp.data.tokenizer import Encoded
from bertmp.export.bundle import FP32_GRAPH
from bertmp.export.parity.stage import ParityInputs, Skipped, StageInterrupted, StageOutput
from bertmp.serve.client import SCHEMES, Answers, Client
from bertmp.serve.deployable import PLAN
from bertmp.serve.model_config import encoder_name
from bertmp.serve.served_consistency import check_encoder, check_texts, served_graph
from bertmp.serve.serving_options import Protocol


@dataclass(frozen=True)
class TritonStage:
    """A model on a Triton server.

    Attributes:
        url: the server's address for `protocol`.
        model: the text model's name; its encoder is asked for the logits.
        protocol: `grpc` or `http`.
        name: the stage's name: `triton`, or `triton-grpc` and `triton-http` where both are asked.
    """

    url: str
    model: str
    protocol: Protocol = "grpc"
    name: str = "triton"

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        """Asks for every text's label and probabilities, and for the logits of the same token ids.

        Raises:
            InputError: an unknown model.
            StageInterrupted: the server stopped answering after it had begun.
        """
        if inputs.view.task != "classification":
            return Skipped(f"the served model is a classifier, and the bundle's task is {inputs.view.task}")
        if inputs.pairs is not None:
            return Skipped("the served model takes one text, and these are pairs")
        with Client(self.url, self.protocol) as client:
            if not client.is_live():
                other = "http" if self.protocol == "grpc" else "grpc"
                hint = f"for {other}, write --server {other}://{client.address}"
                return Skipped(f"no Triton server answers over {self.protocol} at {client.address}: {hint}")
            try:
                return self._ask(client, inputs, advance)
            except InputError as error:
                if client.is_live():
                    raise
                what = "the server stopped answering"
                raise StageInterrupted(what, client.address, "start it again") from error

    def answered_empty(self, texts: Sequence[str]) -> Sequence[str]:
        """Those of the texts, which are empty or blank, that the model answers; see `EmptyTexts`."""
        answered = []
        with Client(self.url, self.protocol) as client:
            for text in texts:
                try:
                    client.classify(self.model, [text])
                except InputError:  # as it should; a dead server answers nothing either
                    continue
                answered.append(text)
        return answered

    def _ask(self, client: Client, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput:
        labels = client.labels(self.model, inputs.texts[0])
        serves = served_graph(client.config(encoder_name(self.model)))
        step = client.max_batch(self.model)
        logits: list[np.ndarray] = []
        answers: list[Answers] = []
        for start in range(0, len(inputs.texts), step):
            rows = slice(start, start + step)
            answers.append(client.classify(self.model, inputs.texts[rows]))
            version = str(answers[-1].versions[0])
            logits.append(self._logits(client, inputs.encoded[rows], version))
            advance(len(inputs.texts[rows]))
        found, newest = None, answers[-1].versions[-1]
        if inputs.probe is not None:
            limits = (inputs.probe, inputs.low_tolerance, inputs.profiles)
            found = check_encoder(client, self.model, newest, *limits)
            found = check_texts(client, self.model, newest, found)
        served = client.files(self.model, inputs.texts[0], str(newest)) if inputs.files else {}
        answered = [label for part in answers for label in part.labels]
        if unknown := set(answered) - set(labels):
            what = f"the server answered '{min(unknown)}', which is not one of its labels"
            raise InputError(what, "", "deploy again")
        return StageOutput(
            logits=np.concatenate(logits),
            probabilities=np.concatenate([part.probabilities for part in answers]),
            answers=np.array([labels.index(label) for label in answered]),
            details={
                "model": self.model,
                **serves,
                "protocol": self.protocol,
                "versions": sorted({version for part in answers for version in part.versions}),
                "labels": labels,
                **({} if served else {"files": "not known: deployed by an earlier version of bertmp"}),
                "truncated": int(sum(part.truncated.sum() for part in answers)),
            },
            consistency=found,
            other_files=_other_files(served, inputs.files, serves.get("serves") == "engine"),
        )

    def _logits(self, client: Client, rows: Sequence[Encoded], version: str) -> np.ndarray:
        """Logits FP32 `[rows, labels]`; rows of equal length share a request, so that nothing is padded."""
        logits: dict[int, np.ndarray] = {}
        for length in {len(row) for row in rows}:
            numbers = [number for number, row in enumerate(rows) if len(row) == length]
            ids = np.array([rows[number].input_ids for number in numbers], dtype=np.int64)
            types = np.array([rows[number].token_type_ids for number in numbers], dtype=np.int64)
            inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
            found = client.encode(encoder_name(self.model), inputs, version)
            logits.update(zip(numbers, found, strict=True))
        return np.stack([logits[number] for number in range(len(rows))])


def _other_files(
    served: Mapping[str, str], bundle: Mapping[str, str], engine: bool
) -> tuple[str, ...] | None:
    """The files that decide a served model's answers and are not the bundle's; None where it names none.

    Args:
        engine: whether the server runs the engine and not the graph.
    """
    if not served:
        return None
    unused = FP32_GRAPH if engine else PLAN
    return tuple(name for name, sha256 in served.items() if name != unused and bundle.get(name) != sha256)


def served_stages(urls: Sequence[str], model: str, chosen: Protocol | None = None) -> tuple[TritonStage, ...]:
    """A stage for each address: `grpc://HOST:PORT`, `http://HOST:PORT`, or without a scheme over `chosen`.

    Args:
        chosen: gRPC where left out.

    Raises:
        InputError: two addresses of one protocol, or one that names another protocol than the chosen one.
    """
    protocols = [protocol_of(url, chosen or "grpc") for url in urls]
    if chosen and any(protocol != chosen for protocol in protocols):
        what = f"--protocol {chosen} and an address of another protocol"
        raise InputError(what, ", ".join(urls), "leave --protocol out")
    if len(set(protocols)) < len(protocols):
        raise InputError("two servers of one protocol", "--server", "give one for each protocol")
    names = ["triton"] if len(urls) == 1 else [f"triton-{protocol}" for protocol in protocols]
    return tuple(
        TritonStage(url, model, protocol, name)
        for url, protocol, name in zip(urls, protocols, names, strict=True)
    )


def protocol_of(url: str, default: Protocol) -> Protocol:
    """The protocol that an address names."""
    scheme, separator, host = url.partition("://")
    if not (host if separator else url).strip("/"):
        raise InputError("no server's address", f"--server {url}", "name its host and port")
    if not separator:
        return default
    protocols: tuple[Protocol, ...] = ("grpc", "http")
    found = next((protocol for protocol in protocols if scheme in SCHEMES[protocol]), None)
    if found is None:
        raise InputError(f"unknown scheme '{scheme}'", f"--server {url}", "use grpc:// or http://")
    return found
