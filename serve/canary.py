"""Tries a version that a server has loaded, with requests over the wire, before clients get its answers."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertmp.core.errors import BertmpError, InputError
from bertmp.core.io import JsonSerializable
from bertmp.export.consistency.check import Consistency
from bertmp.export.consistency.probe import probe_of
from bertmp.export.consistency.tolerance import low_tolerance
from bertmp.export.parity.cpu_bf16_stage import CPU_BF16
from bertmp.export.parity.gates import DEFAULTS
from bertmp.export.parity.golden_examples import GoldenExample, read_golden_examples
from bertmp.serve.client import Client
from bertmp.serve.deployable import Deployable
from bertmp.serve.served_consistency import check_encoder, check_texts, running_graph, texts_for
from bertmp.serve.served_tasks import AnswerSettings

BOUND, LOW_BOUND = 1e-4, 0.05
"""How far a number of an answer may be off the one that parity recorded, in FP32 and in 16 bits; for BF16 on
a CPU see `bound_of`. They tell a wrong model from the right one; parity's gates tell precisions apart."""
TIES = 4
"""In 16 bits, one answer in so many may be another than the recorded one, as near ties are."""
LOAD_SECONDS = 1.0
LOAD_CLIENTS = 4
_ABOUT_THE_REQUEST = ("text", "text_pair", "version", "windows")


@dataclass(frozen=True)
class CanaryResult(JsonSerializable):
    """What the requests showed; a version that failed one of them is refused instead.

    Attributes:
        protocols: those that it was asked over.
        consistency: its answers compared with each other.
        golden: how many recorded answers were compared over each protocol.
        golden_error: the largest difference of a number from a recorded one; 0 where none was compared.
        requests: how many requests the load was, none of which failed.
        p50_ms, p99_ms: their latencies in milliseconds.
        notes: what was not compared.
    """

    protocols: tuple[str, ...]
    consistency: Consistency
    golden: int
    golden_error: float
    requests: int
    p50_ms: float
    p99_ms: float
    notes: tuple[str, ...] = ()


def try_version(clients: Sequence[Client], model: str, version: int, deployable: Deployable) -> CanaryResult:
    """Compares a loaded version's answers with each other and with recorded ones, and puts a load on it.

    Args:
        clients: a connection for each protocol.
        model: the text model's name on the server.
        deployable: the bundle that the version was made of.

    Raises:
        InputError: it does not answer, answers otherwise than recorded, or contradicts itself.
    """
    server, *_ = clients
    consistency = _consistency(server, model, version, deployable)
    examples, note = _recorded(deployable)
    serves = running_graph(server, model, version).get("serves")
    compared = [_compare(client, model, examples, serves) for client in clients]
    latencies = _load(clients, model, deployable)
    p50, p99 = np.percentile(latencies, (50, 99)) * 1000
    protocols = tuple(client.protocol for client in clients)
    ties = max(ties for _, ties in compared)
    other = f"{ties} of {len(examples)} recorded answers are others in 16 bits" if ties else ""
    alone = f"asked over {protocols[0]} alone: the other protocol's port is not known"
    return CanaryResult(
        protocols,
        consistency,
        golden=len(examples),
        golden_error=max((error for error, _ in compared), default=0.0),
        requests=len(latencies),
        p50_ms=round(float(p50), 3),
        p99_ms=round(float(p99), 3),
        notes=tuple(filter(None, (note, other, alone if len(clients) == 1 else ""))),
    )


def _consistency(server: Client, model: str, version: int, deployable: Deployable) -> Consistency:
    bundle, engine, signature = deployable.bundle, deployable.engine, deployable.signature
    texts, pairs = texts_for(signature.task, signature.pairs)
    encoded, names = bundle.tokenizer.encode(texts, pairs), [repr(text) for text in texts]
    probe = probe_of(encoded, names, bundle.tokenizer.pad_id, bundle.max_positions)
    profiles = () if engine is None else engine.profiles
    low = low_tolerance(bundle)
    found = check_encoder(server, model, version, probe, low, profiles, task=signature.task)
    if found.passed:
        found = check_texts(server, model, version, found)
    if not found.passed:
        todo = "look at its graph or engine: 'bertmp parity' compares its answers, too"
        raise InputError(found.sentence(), server.address, todo)
    return found


def _recorded(deployable: Deployable) -> tuple[Sequence[GoldenExample], str]:
    """The answers to compare with, and why there are none."""
    if deployable.verdict == "not checked":
        return (), "no recorded answers to compare with: parity was never run"
    if deployable.answering != AnswerSettings():
        return (), "the recorded answers were not compared: they are of other options of deploy"
    examples = read_golden_examples(deployable.bundle)
    return examples, "" if examples else "no recorded answers to compare with: run 'bertmp parity' again"


def bound_of(serves: str | None) -> float:
    """How far a number of an answer may be off the recorded one; in BF16 on a CPU, as a logit in parity.

    Args:
        serves: the stage that the version's encoder runs, where that is not the FP32 graph.
    """
    if serves is None:
        return BOUND
    return (DEFAULTS[CPU_BF16].max_error or LOW_BOUND) if serves == CPU_BF16 else LOW_BOUND


def _compare(
    client: Client, model: str, examples: Sequence[GoldenExample], serves: str | None
) -> tuple[float, int]:
    """The largest difference of a number from a recorded one, and how many answers are others.

    Those may be a few in 16 bits, where near ties fall the other way; see `may_be_a_tie`.

    Args:
        serves: see `bound_of`.

    Raises:
        InputError: more answers are others.
    """
    bound, allowed = bound_of(serves), len(examples) // TIES if serves else 0
    largest, others = 0.0, 0
    for example in examples:
        pairs = None if example.text_pair is None else [example.text_pair]
        (found,) = client.ask(model, [example.text], pairs)
        given = {key: value for key, value in found.to_json().items() if key not in _ABOUT_THE_REQUEST}
        difference = answer_difference(example.answer, given, bound)
        if difference is None and others < allowed and may_be_a_tie(example.answer, given, bound):
            others += 1
            continue
        if difference is None:
            what = f"another answer than parity recorded to {example.text!r} over {client.protocol}"
            shown = {key: given.get(key) for key in list(example.answer)[:2]}
            raise InputError(f"{what}: {shown}", client.address, "run 'bertmp parity' with --server")
        largest = max(largest, difference)
    return largest, others


def answer_difference(expected: Any, given: Any, bound: float) -> float | None:
    """How far the numbers of an answer are off the recorded ones; None where it is another answer.

    Args:
        expected: plain JSON values; what `given` has beyond it is not compared.
        bound: how far a number may be off.
    """
    if isinstance(expected, Mapping):
        if not isinstance(given, Mapping) or not expected.keys() <= given.keys():
            return None
        return _largest([answer_difference(expected[key], given[key], bound) for key in expected])
    if isinstance(expected, list):
        if not isinstance(given, list) or len(given) != len(expected):
            return None
        return _largest([answer_difference(*one, bound) for one in zip(expected, given, strict=True)])
    if isinstance(expected, float) and isinstance(given, (int, float)):
        off = abs(expected - given)
        return off if off <= bound * max(1.0, abs(expected)) and math.isfinite(off) else None
    return 0.0 if expected == given else None


def may_be_a_tie(expected: Mapping[str, Any], given: Mapping[str, Any], bound: float) -> bool:
    """Whether an answer with another word is explained by numbers that are as they should be.

    Entities and fills have no numbers of those that lost.
    """
    if "scores" in expected:
        return answer_difference(expected["scores"], given.get("scores"), bound) is not None
    return "entities" in expected or "fills" in expected


def _largest(differences: Sequence[float | None]) -> float | None:
    found = [one for one in differences if one is not None]
    return None if len(found) < len(differences) else max(found, default=0.0)


def _load(clients: Sequence[Client], model: str, deployable: Deployable) -> list[float]:
    """Puts a short load on the version: the requests' latencies in seconds.

    Raises:
        InputError: a request failed.
    """
    texts, pairs = texts_for(deployable.signature.task, deployable.signature.pairs)
    end, failed = time.monotonic() + LOAD_SECONDS, threading.Event()

    def ask(number: int) -> list[float]:
        latencies: list[float] = []
        with clients[number % len(clients)].for_another_thread() as client:
            while not failed.is_set() and (time.monotonic() < end or not latencies):
                started = time.monotonic()
                at = len(latencies) % len(texts)
                try:
                    client.ask(model, [texts[at]], pairs and [pairs[at]])
                except BertmpError:
                    failed.set()
                    raise
                latencies.append(time.monotonic() - started)
        return latencies

    with ThreadPoolExecutor(LOAD_CLIENTS) as pool:
        return [latency for one in pool.map(ask, range(LOAD_CLIENTS)) for latency in one]
