"""`bertmp infer`: asks a served model about the texts of a command line, a file or standard input."""

from __future__ import annotations

import codecs
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from bertmp.core.errors import InputError
from bertmp.core.options import keywords_of
from bertmp.data.text_stream import TextFile
from bertmp.serve.client import Client
from bertmp.serve.serving_options import InferOptions
from bertmp.serve.streaming import AskedText, Reply, numbered, requests_of, stream_requests
from bertmp.serve.task_answers import Answer, RefusedText
from bertmp.serve.text_requests import ServedModel

_READ_BYTES = 1 << 16
_BOM = "\ufeff"


@keywords_of(InferOptions)
def infer(options: InferOptions) -> list[Answer | RefusedText]:
    """Asks a served text model about each text, or pair of texts.

    Raises:
        RequestRefused: a text that the server refuses; its place is named.
        InputError: no text, a file that cannot be read, pairs for a model of single texts or the reverse, an
            unknown model, or no server.
        ServerFault: the server fails, is overloaded, or does not answer before the deadline.
    """
    return list(infer_stream(options))


def infer_stream(options: InferOptions) -> Generator[Reply, None, None]:
    """As `infer`, one answer after the other, in bounded memory.

    Raises:
        InputError, ServerFault: see `infer`; a data file is checked from end to end before the first answer.
    """
    file = _checked_file(options)
    with _client(options) as client:
        served = client.describe(options.name)
        if options.scores and not served.classes:
            raise InputError(f"--scores: '{options.name}' has no classes", client.address, "leave it out")
        asked = _Asked(options, served, file)
        requests, workers = asked.requests(client.address), options.concurrency
        found = stream_requests(client, options.name, requests, workers, options.skip_refused)
        for done, reply in enumerate(found, 1):
            options.progress("answering", done, asked.total)
            yield reply


def _client(options: InferOptions) -> Client:
    return Client(
        options.url,
        options.protocol,
        tls_ca=options.tls_ca,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        timeout=options.timeout,
    )


def _checked_file(options: InferOptions) -> TextFile | None:
    """The data file, read through once.

    Raises:
        InputError: it cannot be read, or it holds pairs and the command line single texts or the reverse.
    """
    if not options.texts and options.data is None:
        raise InputError("no texts", "", "give one, a file with --data, or - for standard input")
    if options.data is None:
        return None
    file = TextFile.check(options.data, options.columns(), progress=options.progress)
    if options.texts and not options.reads_input and bool(options.text_pair) != file.pairs:
        raise InputError("pairs of texts and single texts at once", options.data, "ask one kind at a time")
    return file


@dataclass(frozen=True)
class _Asked:
    """All texts: those of the command line, then those of the file."""

    options: InferOptions
    served: ServedModel
    file: TextFile | None

    @property
    def total(self) -> int | None:
        """How many there are; None where standard input is read."""
        if self.options.reads_input:
            return None
        return len(self.options.texts) + (self.file.rows if self.file else 0)

    def requests(self, address: str) -> Iterator[Sequence[AskedText]]:
        """The texts of each request.

        Raises:
            InputError: single texts for a model of pairs, or the reverse.
        """
        options, served = self.options, self.served
        given: Iterable[str | tuple[str, str]] = options.texts
        if options.text_pair:
            given = zip(options.texts, options.text_pair, strict=True)
        if options.reads_input:
            yield from _requests_of_input(options, served)
            given = ()
        elif options.texts:
            served.require_pairs(options.name, bool(options.text_pair), address)
        rows: Iterable[AskedText] = ()
        if self.file is not None:
            served.require_pairs(options.name, self.file.pairs, address)
            place = f"{self.file.path}, line"
            rows = (AskedText(row.line, row.text, row.pair, f"{place} {row.line}") for row in self.file)
        yield from requests_of(chain(numbered(given), rows), served.max_batch)


def _requests_of_input(options: InferOptions, served: ServedModel) -> Iterator[Sequence[AskedText]]:
    """The lines of standard input, as many to a request as are there already; blank ones are left out.

    For a model of pairs, a tab separates the two texts.

    Raises:
        InputError: a line without a tab for a model of pairs, or bytes that are not of the encoding.
    """
    for lines in _available_lines(options):
        texts = []
        for number, line in lines:
            where = f"standard input, line {number}"
            text, tab, pair = line.partition("\t") if served.pairs else (line, "", "")
            if served.pairs and not tab:
                raise InputError("a line without a tab", where, "write TEXT<TAB>TEXT_PAIR")
            texts.append(AskedText(number, text, pair if served.pairs else None, where))
        yield from requests_of(texts, served.max_batch)


def _available_lines(options: InferOptions) -> Iterator[list[tuple[int, str]]]:
    """The complete lines of each read, with their numbers: a read returns what is there, and waits if
    nothing is."""
    stream, rest, number = options.standard_input, "", 0
    assert stream is not None
    encoding = options.encoding or "utf-8"
    # UTF-8's undecodable bytes go to the server, which names them.
    errors = "surrogateescape" if codecs.lookup(encoding).name == "utf-8" else "strict"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    while True:
        data = os.read(stream.fileno(), _READ_BYTES)
        try:
            rest += decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            where = f"standard input, after line {number}"
            raise InputError(f"not {encoding}: {error.reason}", where, "name another --encoding") from error
        *complete, rest = rest.split("\n")
        if not data and rest:
            complete.append(rest)
        lines = [(number + at, line.removesuffix("\r")) for at, line in enumerate(complete, 1)]
        if number == 0 and lines:
            lines[0] = (1, lines[0][1].removeprefix(_BOM))
        number += len(complete)
        if found := [(at, line) for at, line in lines if line.strip()]:
            yield found
        if not data:
            return
