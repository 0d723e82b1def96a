"""Any number of texts through a model: several requests under way, the answers in order, memory bounded."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from bertmp.core.errors import InputError, RequestRefused
from bertmp.data.text_stream import TextRow, chunks
from bertmp.serve.task_answers import Answer, RefusedText

if TYPE_CHECKING:
    from bertmp.serve.client import Client

CHARACTERS = 1 << 19
"""The most characters of one request, unless a single text has more."""
_STOP_SECONDS = 0.2

J = TypeVar("J")
R = TypeVar("R")
Reply = Answer | RefusedText


@dataclass(frozen=True)
class AskedText(TextRow):
    """A text, or pair of texts, and its place for messages, such as `questions.txt, line 7`."""

    where: str = ""


def numbered(texts: Iterable[str | tuple[str, str]], first: int = 1) -> Iterator[AskedText]:
    """Texts, or pairs of texts, that are named by their number."""
    for number, text in enumerate(texts, first):
        one, pair = (text, None) if isinstance(text, str) else text
        yield AskedText(number, one, pair, f"text {number}")


def requests_of(texts: Iterable[AskedText], largest: int) -> Iterator[list[AskedText]]:
    """The texts of each request; single texts and pairs are not mixed.

    Args:
        largest: the most texts of one request.
    """
    for request in chunks(texts, largest, CHARACTERS):
        for one in request:
            if (one.pair is None) != (request[0].pair is None):
                what = "pairs of texts and single texts at once"
                raise InputError(what, one.where, "ask one kind at a time")
        yield request


def stream(
    client: Client, model: str, texts: Iterable[AskedText], concurrency: int = 4, skip_refused: bool = False
) -> Generator[Reply, None, None]:
    """See `Client.stream`; here each text has a place of its own."""
    requests = requests_of(texts, client.describe(model).max_batch)
    return stream_requests(client, model, requests, concurrency, skip_refused)


def stream_requests(
    client: Client,
    model: str,
    requests: Iterable[Sequence[AskedText]],
    concurrency: int = 4,
    skip_refused: bool = False,
) -> Generator[Reply, None, None]:
    """The answers to requests that each hold at most the model's largest batch.

    Raises:
        RequestRefused: a text is refused, and is not to be skipped; the answers before it have been given.
    """
    with ExitStack() as stack:
        clients: queue.SimpleQueue[Client] = queue.SimpleQueue()
        for _ in range(concurrency):
            clients.put(stack.enter_context(client.for_another_thread()))
        mine = threading.local()

        def ask(request: Sequence[AskedText]) -> list[Reply]:
            if not hasattr(mine, "client"):
                mine.client = clients.get()
            return _ask(mine.client, model, request)

        for replies in stack.enter_context(closing(in_order(requests, ask, concurrency))):
            for reply in replies:
                if isinstance(reply, RefusedText) and not skip_refused:
                    raise refusal(reply)
                yield reply


def refusal(reply: RefusedText) -> RequestRefused:
    """The error that a refused text is, where it is not to be skipped."""
    return RequestRefused(reply.error, reply.where, "change it, or have it left out with --skip-refused")


def _ask(client: Client, model: str, request: Sequence[AskedText]) -> list[Reply]:
    """One request's answers; where the server refuses it, those of its halves."""
    pairs = [one.pair for one in request if one.pair is not None]
    try:
        return list(client.ask(model, [one.text for one in request], pairs or None))
    except RequestRefused as error:
        if len(request) > 1:
            half = len(request) // 2
            parts = (request[:half], request[half:])
            return [reply for part in parts for reply in _ask(client, model, part)]
        (one,) = request
        return [RefusedText(text=one.text, text_pair=one.pair, error=error.what, where=one.where)]


def in_order(jobs: Iterable[J], run: Callable[[J], R], workers: int) -> Generator[R, None, None]:
    """The results of jobs that run in threads, in the jobs' order.

    A job is taken from `jobs`, in a thread of its own, only when few enough are held: at most three times as
    many as there are workers.
    """
    waiting: queue.Queue[Future[R] | None] = queue.Queue(maxsize=2 * workers)
    stop = threading.Event()

    def put(one: Future[R] | None) -> None:
        while not stop.is_set():
            try:
                waiting.put(one, timeout=_STOP_SECONDS)
            except queue.Full:
                continue
            return

    def feed() -> None:
        try:
            for job in jobs:
                if stop.is_set():
                    return
                put(pool.submit(run, job))
        except BaseException as error:
            failed: Future[R] = Future()
            failed.set_exception(error)
            put(failed)
        put(None)

    pool = ThreadPoolExecutor(workers)
    # A daemon: it may be waiting for a line that never comes.
    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        while (future := waiting.get()) is not None:
            yield future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
