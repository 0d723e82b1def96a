"""The command `infer`: answers are printed as they come."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bertmp.cli.command import CommandResult, progress_bar
from bertmp.core.progress import Notice, ProgressCallback
from bertmp.serve.serving_options import STANDARD_INPUT, InferOptions

if TYPE_CHECKING:
    from bertmp.serve.streaming import Reply

SHOWN = 10
"""Texts of a kind that are named one by one; the others are counted."""


def infer(options: InferOptions, as_json: bool) -> CommandResult:
    """Ask a served model about each text, or pair of texts; the answers come as they are found."""
    from bertmp.serve.infer import infer_stream

    out = sys.stdout  # the progress bar redirects the name
    # Somebody may be waiting for each answer.
    at_once = out.isatty() or tuple(options.texts) == (STANDARD_INPUT,)
    with progress_bar(log=False) as bar:
        progress = _notices(bar) if out.isatty() else bar  # there, the answers are the progress
        asked = replace(options, progress=progress, standard_input=sys.stdin.buffer)
        remarks = _Remarks(lambda text: bar(Notice(text)))
        with closing(infer_stream(asked)) as replies:
            noted = remarks.noted(replies)
            for part in _json_parts(noted) if as_json else _lines(noted, options.scores):
                out.write(part)
                if at_once:
                    out.flush()
        remarks.close()
    return CommandResult(None)


def _notices(bar: ProgressCallback) -> ProgressCallback:
    """Passes on what stays on the screen."""

    def show(message: str, completed: int | None = None, total: int | None = None, /) -> None:
        if isinstance(message, Notice):
            bar(message)

    return show


class _Remarks:
    """Says which texts were cut or refused: the first of each kind, and how many there were."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._cut, self._refused, self._texts = say, 0, 0, 0

    def noted(self, replies: Iterable[Reply]) -> Iterable[Reply]:
        for reply in replies:
            self._texts += 1
            self._note(reply)
            yield reply

    def _note(self, reply: Reply) -> None:
        from bertmp.serve.task_answers import RefusedText

        if isinstance(reply, RefusedText):
            self._refused += 1
            if self._refused <= SHOWN:
                self._say(f"{reply.where} was refused: {reply.error}")
        elif reply.truncated:
            self._cut += 1
            if self._cut <= SHOWN:
                self._say(f"text {self._texts} was too long: its first {reply.tokens} tokens were read")

    def close(self) -> None:
        """Says how many there were, where not all were named."""
        for count, what in ((self._cut, "too long"), (self._refused, "refused")):
            if count > SHOWN:
                self._say(f"{count:,} of {self._texts:,} texts were {what}")


def _json_parts(replies: Iterable[Reply]) -> Iterator[str]:
    """One array; there is nothing before the first answer."""
    before = "["
    for reply in replies:
        yield f"{before}{json.dumps(reply.to_json(), ensure_ascii=False)}"
        before = ",\n"
    yield "[]\n" if before == "[" else "]\n"


def _lines(replies: Iterable[Reply], scores: bool) -> Iterator[str]:
    """One line for each text."""
    for reply in replies:
        fields = reply.to_json()
        yield f"{_line(fields)}{_scores(fields) if scores else ''}\n"


def _scores(fields: dict[str, Any]) -> str:
    """The probability of every label, the best first."""
    ranked = sorted(fields.get("scores", {}).items(), key=lambda one: -one[1])
    return "".join(f"\t{label} {score:.4f}" for label, score in ranked)


def _line(fields: dict[str, Any]) -> str:
    """One line of what a text was answered with."""
    if "error" in fields:
        return f"refused: {fields['error']}"
    if "label" in fields:
        return f"{fields['label']}\t{fields['probability']:.4f}"
    if "labels" in fields:
        found = ", ".join(f"{name} {fields['scores'][name]:.4f}" for name in fields["labels"])
        return found or "no label"
    if "value" in fields:
        return f"{fields['value']:.6g}"
    if "embedding" in fields:
        first = " ".join(f"{one:.4f}" for one in fields["embedding"][:4])
        return f"{first} … ({len(fields['embedding'])} numbers; --json has all)"
    if "entities" in fields:
        found = "; ".join(f"{one['label']} {one['text']!r} {one['score']:.4f}" for one in fields["entities"])
        return found or "no entity"
    best = [
        [f"{word['token']} {word['score']:.4f}" for word in fill["candidates"]] for fill in fields["fills"]
    ]
    return "; ".join(", ".join(words) for words in best) or "no mask was read"
