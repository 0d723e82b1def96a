"""Preparing a corpus: tokenised once, by several processes, into a store that training maps."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from bertmp.core.errors import BertmpError, InputError
from bertmp.core.io import atomic_folder, sha256_file
from bertmp.core.options import keywords_of
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.data.readers import Columns
from bertmp.data.tokenizer import Tokenizer
from bertmp.environment.downloads import downloaded
from bertmp.pretraining.corpus import Corpus, Piece, open_corpus
from bertmp.pretraining.prepare_options import PrepareOptions
from bertmp.pretraining.token_store import Counts, Source, StoreWriter, is_store

CHARACTERS = 1 << 18
"""Characters of one parcel of work: some ten milliseconds of tokenising."""
LONGEST = 512
"""Tokens of a sentence; a longer one is taken as several, so that none of its text is lost to truncation."""


@dataclass(frozen=True)
class Prepared:
    """What a preparation made.

    Attributes:
        store: the folder.
        seconds: it took.
    """

    store: Path
    counts: Counts
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {"store": str(self.store), **asdict(self.counts), "seconds": self.seconds}


@keywords_of(PrepareOptions)
def prepare(options: PrepareOptions) -> Prepared:
    """Tokenizes a corpus into a folder that pre-training maps into memory.

    Raises:
        InputError: the corpus is missing, of an unknown kind, not UTF-8, without text or a single sentence;
            or `out` holds something else.
    """
    model = downloaded(options.model)
    tokenizer = Tokenizer.load(model if model.is_dir() else model.parent)
    columns = Columns(options.text_column, options.text_pair_column)
    return prepare_store(options.data, columns, tokenizer, options.out, options.num_workers, options.progress)


def prepare_store(
    data: Path,
    columns: Columns,
    tokenizer: Tokenizer,
    out: Path,
    workers: int | None = None,
    progress: ProgressCallback = null_progress,
) -> Prepared:
    """`prepare`, with a tokenizer at hand."""
    if out.exists() and not is_store(out) and (not out.is_dir() or any(out.iterdir())):
        raise InputError("something that is not a prepared corpus stands there", out, "choose another --out")
    started = time.perf_counter()
    corpus = open_corpus(data, columns)
    source = Source(data.name, sha256_file(data), columns.text, columns.text_pair)
    parcels = tokenised(corpus, tokenizer, workers or available_processors())
    with atomic_folder(out) as folder, closing(parcels):
        writer = StoreWriter(folder, tokenizer, corpus.pairs)
        for parcel, position in parcels:
            writer.append(*parcel)
            progress("preparing", position, corpus.size)
        counts = writer.close(source)
        _check(counts, data)
    return Prepared(out, counts, time.perf_counter() - started)


def _check(counts: Counts, data: Path) -> None:
    if counts.sentences == 0:
        raise InputError("the corpus has no text", data, "give it sentences")
    if counts.sentences == 1:
        raise InputError("the corpus is one sentence", data, "pre-training needs more text")


def available_processors() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Parcel = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]
"""The arguments of `StoreWriter.append`."""


def tokenised(
    corpus: Corpus, tokenizer: Tokenizer, workers: int
) -> Generator[tuple[Parcel, int], None, None]:
    """The corpus in token ids, in its order, and how far each parcel brings us.

    No more than a few parcels a process are under way, so that memory does not grow with the corpus. A
    corpus of one parcel is not worth a process.
    """
    parcels = _parcels(corpus.pieces())
    first = list(_take(parcels, 2))
    tokenise = partial(_tokenise, pairs=corpus.pairs)
    if len(first) < 2 or workers == 1:
        for pieces in chain(first, parcels):
            yield tokenise(tokenizer, pieces), pieces[-1].position
        return
    pool = ProcessPoolExecutor(workers, initializer=_start, initargs=(tokenizer,))
    yield from _in_order(pool, partial(_tokenise_there, pairs=corpus.pairs), first, parcels, workers)


def _in_order(
    pool: ProcessPoolExecutor,
    work: Callable[[Sequence[Piece]], Parcel],
    first: Sequence[Sequence[Piece]],
    rest: Iterable[Sequence[Piece]],
    workers: int,
) -> Iterator[tuple[Parcel, int]]:
    under_way: deque[tuple[Future[Parcel], int]] = deque()
    try:
        for pieces in chain(first, rest):
            with _deaf_to_ctrl_c():
                under_way.append((pool.submit(work, pieces), pieces[-1].position))
            if len(under_way) > 2 * workers:
                future, position = under_way.popleft()
                yield future.result(), position
        while under_way:
            future, position = under_way.popleft()
            yield future.result(), position
    except BrokenProcessPool as error:
        raise BertmpError(
            "a process that tokenises was killed", "", "check the memory, or use fewer --num-workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Holds Ctrl-C back: a process that is started in here does not die of it before it can say that it
    leaves that to us, in the middle of a queue that others wait for."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _take(parcels: Iterator[list[Piece]], count: int) -> Iterator[list[Piece]]:
    for _, pieces in zip(range(count), parcels, strict=False):
        yield pieces


def _parcels(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    parcel: list[Piece] = []
    size = 0
    for piece in pieces:
        parcel.append(piece)
        size += sum(len(sentence) for sentence in piece.sentences) + 16
        if size >= CHARACTERS:
            yield parcel
            parcel, size = [], 0
    if parcel:
        yield parcel


_tokenizer_here: Tokenizer
"""In a process of the pool, and nowhere else: the tokenizer that it was started with."""


def _start(tokenizer: Tokenizer) -> None:
    global _tokenizer_here
    _tokenizer_here = tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started us ends us
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """Ends this process where the one that started it was killed and cannot."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _tokenise_there(pieces: Sequence[Piece], pairs: bool) -> Parcel:
    return _tokenise(_tokenizer_here, pieces, pairs)


def _tokenise(tokenizer: Tokenizer, pieces: Sequence[Piece], pairs: bool) -> Parcel:
    ids = iter(tokenizer.pieces([sentence for piece in pieces for sentence in piece.sentences]))
    sentences: list[list[int]] = []
    sizes: list[int] = []
    dropped = 0
    for piece in pieces:
        own = [next(ids) for _ in piece.sentences]
        if pairs and not all(own):
            own, dropped = [], dropped + 1
        before = len(sentences)
        sentences += own if pairs else [part for sentence in own for part in _short(sentence)]
        sizes.append(len(sentences) - before)
    lengths = np.fromiter((len(sentence) for sentence in sentences), dtype=np.int64, count=len(sentences))
    flat = (number for sentence in sentences for number in sentence)
    tokens = np.fromiter(flat, dtype=np.uint32, count=int(lengths.sum()))
    begins = np.fromiter((piece.begins for piece in pieces), dtype=bool, count=len(pieces))
    return tokens, lengths, begins, np.array(sizes, dtype=np.int64), dropped


def _short(sentence: list[int]) -> Iterator[list[int]]:
    """The sentence in parts of at most `LONGEST` tokens; nothing where it has none."""
    for first in range(0, len(sentence), LONGEST):
        yield sentence[first : first + LONGEST]
