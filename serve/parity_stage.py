"""The served model as a stage of parity: over the wire, tokenizer and softmax included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bertmp.core.errors import InputError, ServerFault
from bertmp.data.batches import close_batches, pad_batch
from bertmp.export.bundle import FP32_GRAPH
from bertmp.export.parity.stage import (
    Feed,
    ParityInputs,
    Skipped,
    StageInterrupted,
    StageOutput,
    answer_all,
)
from bertmp.serve.client import Client
from bertmp.serve.connection import SCHEMES
from bertmp.serve.deployable import PLAN
from bertmp.serve.model_signature import encoder_name
from bertmp.serve.served_answers import answers_difference, ask_texts, askable
from bertmp.serve.served_consistency import check_encoder, check_texts, running_graph
from bertmp.serve.serving_options import Protocol
from bertmp.serve.serving_table import ServingTable
from bertmp.serve.text_requests import ServedModel, text_inputs

FP32_STAGE = "onnx-fp32"
"""The bundle's stage that a served FP32 graph must agree with."""


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
        """Asks for every text's answer, and for the graph's outputs of the same token ids.

        Raises:
            InputError: an unknown model.
            StageInterrupted: the server stopped answering after it had begun.
        """
        with Client(self.url, self.protocol) as client:
            if not client.is_live():
                other = "http" if self.protocol == "grpc" else "grpc"
                hint = f"for {other}, write --server {other}://{client.address}"
                return Skipped(f"no Triton server answers over {self.protocol} at {client.address}: {hint}")
            try:
                if unfit := _unfit(client.describe(self.model), inputs):
                    return Skipped(unfit)
                return self._ask(client, inputs, advance)
            except (InputError, ServerFault) as error:
                if client.is_live():
                    raise
                what = "the server stopped answering"
                raise StageInterrupted(what, client.address, "start it again") from error

    def answered_empty(self, texts: Sequence[str]) -> Sequence[str]:
        """Those of the texts, which are empty or blank, that the model answers; see `EmptyTexts`."""
        answered = []
        with Client(self.url, self.protocol) as client:
            pairs = client.is_live() and client.describe(self.model).pairs
            for text in texts:
                try:
                    client.infer(self.model, text_inputs([text], [text] if pairs else None), ("TOKENS",))
                except (InputError, ServerFault):  # as it should; a dead server answers nothing either
                    continue
                answered.append(text)
        return answered

    def _ask(self, client: Client, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput:
        serves = running_graph(client, self.model)
        _require_same_graph(client, self.model, serves)
        texts = ask_texts(client, self.model, inputs, advance)
        newest = texts.versions[-1]
        computed = self._outputs(client, inputs, str(newest))
        found = None
        if inputs.probe is not None:
            limits = (inputs.probe, inputs.low_tolerance, inputs.profiles)
            found = check_encoder(client, self.model, newest, *limits, task=inputs.view.task)
            found = check_texts(client, self.model, newest, found)
        examples, pairs = askable(inputs)
        pair = pairs[0] if pairs else None
        served = client.files(self.model, examples[0], str(newest), pair) if inputs.files else {}
        differ = None
        if texts.probabilities is None and not serves.get("serves"):  # else the numbers say it all
            differ = answers_difference(client, self.model, inputs, str(newest))
            serves = {**serves, "serves": FP32_STAGE}
        return replace(
            computed,
            logits=computed.logits if texts.values is None else texts.values,
            probabilities=texts.probabilities,
            answers=texts.answers,
            details={
                "model": self.model,
                **serves,
                "protocol": self.protocol,
                "versions": texts.versions,
                **({"labels": texts.labels} if texts.labels else {}),
                **({} if served else {"files": "not known: deployed by an earlier version of bertmp"}),
                "truncated": texts.truncated,
            },
            consistency=found,
            answers_differ=differ,
            other_files=_other_files(served, inputs.files, serves.get("serves") == "engine"),
        )

    def _outputs(self, client: Client, inputs: ParityInputs, version: str) -> StageOutput:
        """What the encoder computes; rows of equal length share a request, so that nothing is padded."""
        encoder, lengths = encoder_name(self.model), [len(one) for one in inputs.encoded]
        asked = (
            (rows, pad_batch([inputs.encoded[row] for row in rows], inputs.pad_id))
            for rows in close_batches(lengths, client.max_batch(encoder), 0, MOST_TOKENS)
        )

        def answer(feed: Feed) -> Mapping[str, np.ndarray]:
            return client.infer(encoder, feed, inputs.view.outputs, version)[0]

        return answer_all(inputs, answer, lambda rows: None, asked)


MOST_TOKENS = 1024
"""Of one request to the encoder: outputs over a vocabulary are large."""


def _require_same_graph(client: Client, model: str, serves: Mapping[str, str]) -> None:
    """Checks that a text model that runs a graph itself runs that of its encoder, which is asked for numbers.

    Raises:
        InputError: it runs another.
    """
    table = ServingTable.read(client.config(model))
    runs, encoder = table.graph if table else "", serves["file"] or FP32_GRAPH
    if runs and runs != encoder:
        what = f"the text model runs {runs} and its encoder {encoder}"
        raise InputError(what, client.address, "name the same file in both models' configurations")


def _unfit(served: ServedModel, inputs: ParityInputs) -> str:
    """Why a served model cannot answer these examples; empty where it can."""
    task = inputs.view.task
    if served.task != task:
        return f"the served model is for {served.task}, and the bundle's task is {task}"
    if served.pairs != (inputs.pairs is not None):
        takes, given = ("pairs of texts", "single texts") if served.pairs else ("one text", "pairs")
        return f"the served model takes {takes}, and these are {given}"
    return ""


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
