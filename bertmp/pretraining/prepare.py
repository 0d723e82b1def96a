"""Tokenizes a corpus once, in several processes, into a store that training maps into memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from bertmp.core.errors import BertmpError, InputError
from bertmp.core.hardware import machine
from bertmp.core.io import atomic_folder, sha256_file
from bertmp.core.options import keywords_of
from bertmp.core.progress import ProgressCallback
from bertmp.data.data_options import PrepareOptions
from bertmp.data.readers import Columns
from bertmp.data.tokenizer import Tokenizer
from bertmp.environment.downloads import downloaded
from bertmp.pretraining.corpus import Corpus, DocumentChunk, open_corpus
from bertmp.pretraining.token_store import Counts, StoreWriter, is_store

WORK_CHARACTERS = 1 << 18
"""Characters that a process tokenizes per task: about ten milliseconds of work."""
MAX_SENTENCE_TOKENS = 512
"""Tokens of a sentence; a longer one is split, so that truncation does not lose its text."""


@dataclass(frozen=True)
class CorpusResult:
    """The result of `prepare`.

    Attributes:
        store: the folder.
        counts: what it holds.
        seconds: duration.
    """

    store: Path
    counts: Counts
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {"store": str(self.store), **asdict(self.counts), "seconds": self.seconds}


@keywords_of(PrepareOptions)
def prepare(options: PrepareOptions) -> CorpusResult:
    """Tokenizes a corpus into a folder that pre-training maps into memory.

    Raises:
        InputError: the corpus is missing, of an unknown kind, not UTF-8, without text or a single sentence;
            or `out` holds something else.
    """
    model = downloaded(options.model)
    tokenizer = Tokenizer.load(model if model.is_dir() else model.parent)
    columns = options.columns()
    return prepare_store(options.data, columns, tokenizer, options.out, options.num_workers, options.progress)


def prepare_store(
    data: Path,
    columns: Columns,
    tokenizer: Tokenizer,
    out: Path,
    workers: int | None,
    progress: ProgressCallback,
) -> CorpusResult:
    """`prepare` with a loaded tokenizer."""
    if out.exists() and not is_store(out) and (not out.is_dir() or any(out.iterdir())):
        what = "the folder holds something that is not a prepared corpus"
        raise InputError(what, out, "choose another --out")
    started = time.perf_counter()
    corpus = open_corpus(data, columns)
    source = {"name": data.name, "sha256": sha256_file(data)}
    source.update(text_column=columns.text, text_pair_column=columns.text_pair)
    groups = tokenized(corpus, tokenizer, workers or machine().cores)
    with atomic_folder(out) as folder, closing(groups):
        writer = StoreWriter(folder, tokenizer, corpus.pairs)
        for chunk, position in groups:
            writer.append(*chunk)
            progress("preparing", position, corpus.size)
        counts = writer.close(source)
        if counts.sentences == 0:
            raise InputError("the corpus has no text", data, "give it sentences")
        if counts.sentences == 1:
            raise InputError("the corpus is one sentence", data, "pre-training needs more text")
    return CorpusResult(out, counts, time.perf_counter() - started)


Chunk = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]
"""The arguments of `StoreWriter.append`."""


def tokenized(corpus: Corpus, tokenizer: Tokenizer, workers: int) -> Generator[tuple[Chunk, int], None, None]:
    """The token ids of the corpus, in its order, each with the position reached in the file.

    Only a few tasks per process are queued, so that memory does not grow with the corpus. A corpus of one
    task is tokenized in this process.
    """
    groups = _grouped(corpus.chunks())
    first = list(islice(groups, 2))
    groups = chain(first, groups)
    if len(first) < 2 or workers == 1:
        for chunks in groups:
            yield _tokenize(tokenizer, chunks, corpus.pairs), chunks[-1].position
        return
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(tokenizer,))
    under_way: deque[tuple[Future[Chunk], int]] = deque()
    try:
        for chunks in groups:
            with _sigint_blocked():
                task = pool.submit(_tokenize_in_worker, chunks, corpus.pairs)
                under_way.append((task, chunks[-1].position))
            if len(under_way) > 2 * workers:
                task, position = under_way.popleft()
                yield task.result(), position
        while under_way:
            task, position = under_way.popleft()
            yield task.result(), position
    except BrokenProcessPool as error:
        todo = "check the memory, or use fewer --num-workers"
        raise BertmpError("a tokenizing process was killed", "", todo) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Blocks SIGINT: a process started here would otherwise die of Ctrl-C before it ignores the signal, and
    leave a queue locked that others wait for."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _grouped(chunks: Iterable[DocumentChunk]) -> Iterator[Sequence[DocumentChunk]]:
    group, size = list[DocumentChunk](), 0
    for chunk in chunks:
        group.append(chunk)
        size += sum(len(sentence) for sentence in chunk.sentences) + 16
        if size >= WORK_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


_worker_tokenizer: Tokenizer
"""The tokenizer of a process of the pool; set by `_start_worker`."""


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends this one
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends this process if its parent is killed."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _tokenize_in_worker(chunks: Sequence[DocumentChunk], pairs: bool) -> Chunk:
    return _tokenize(_worker_tokenizer, chunks, pairs)


def _tokenize(tokenizer: Tokenizer, chunks: Sequence[DocumentChunk], pairs: bool) -> Chunk:
    ids = iter(tokenizer.pieces([sentence for chunk in chunks for sentence in chunk.sentences]))
    sentences, sizes, dropped = list[list[int]](), list[int](), 0
    for chunk in chunks:
        own = [next(ids) for _ in chunk.sentences]
        if pairs and not all(own):
            own, dropped = [], dropped + 1
        before = len(sentences)
        sentences += own if pairs else [part for sentence in own for part in _split_long(sentence)]
        sizes.append(len(sentences) - before)
    lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
    tokens = np.fromiter(chain.from_iterable(sentences), dtype=np.uint32, count=int(lengths.sum()))
    begins = np.array([chunk.begins for chunk in chunks], dtype=bool)
    return tokens, lengths, begins, np.array(sizes, dtype=np.int64), dropped


def _split_long(sentence: list[int]) -> Iterator[list[int]]:
    """The sentence in parts of at most `MAX_SENTENCE_TOKENS` tokens; none if it is empty."""
    for first in range(0, len(sentence), MAX_SENTENCE_TOKENS):
        yield sentence[first : first + MAX_SENTENCE_TOKENS]
