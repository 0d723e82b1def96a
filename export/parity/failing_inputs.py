"""The inputs that a parity run failed on, as a file beside its report, for `bertmp parity --replay`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, write_json
from bertmp.data.batches import pad_batch
from bertmp.data.tokenizer import Encoded
from bertmp.export.bundle import Bundle
from bertmp.export.parity.adversarial import AdversarialInput, AdversarialSet, template_of
from bertmp.export.parity.adversarial_findings import Findings
from bertmp.export.parity.gates import Gate
from bertmp.export.parity.reading import ParityData
from bertmp.export.parity.result import StageReport
from bertmp.export.parity.stage_metrics import finite

FAILING_INPUTS = "failing-inputs.json"
FORMAT = 1
MOST_EXAMPLES = 100
"""Of the user's examples, at most so many are kept for each stage, those with the largest errors."""

_COLUMNS = ("input_ids", "attention_mask", "token_type_ids")
_TODO = f"name the {FAILING_INPUTS} that `bertmp parity` wrote"


@dataclass(frozen=True)
class FailedBatch:
    """A batch with inputs that stages failed on.

    Attributes:
        rows: all rows of the batch; the company of a row may be what it fails for.
        failing: for each failure the row's place, the stage, the largest error and what was wrong.
    """

    rows: tuple[AdversarialInput, ...]
    failing: tuple[tuple[int, str, float, str], ...]


@dataclass(frozen=True)
class Saved:
    """What a file of failing inputs holds.

    Attributes:
        asked: its inputs.
        stages: the stages that had failed on them.
        note: what is not as it was when they were saved; usually empty.
    """

    asked: AdversarialSet
    stages: tuple[str, ...]
    note: str = ""


def failed_batches(asked: AdversarialSet, found: Mapping[str, Findings]) -> list[FailedBatch]:
    """The batches of adversarial inputs in which a stage fails on a row."""
    batches = []
    for batch in asked.batches:
        failing = [
            (batch.index(one.number), stage, one.error, one.sentence)
            for stage, findings in found.items()
            for one in findings.failing
            if one.number in batch
        ]
        if failing:
            batches.append(FailedBatch(tuple(asked.inputs[number] for number in batch), tuple(failing)))
    return batches


def failed_examples(
    rows: Iterable[StageReport], gates: Mapping[str, Sequence[Gate]], examples: ParityData
) -> tuple[list[FailedBatch], int]:
    """The user's examples whose own answers break a gate, each by itself; and how many more there are."""
    failing: dict[int, list[tuple[int, str, float, str]]] = {}
    left_out = 0
    for row in rows:
        worst = _worst_rows(row, gates[row.name], examples)
        left_out += max(0, len(worst) - MOST_EXAMPLES)
        for number, (error, sentence) in list(worst.items())[:MOST_EXAMPLES]:
            failing.setdefault(number, []).append((0, row.name, error, sentence))
    return [
        FailedBatch((_example(number, examples),), tuple(found)) for number, found in failing.items()
    ], left_out


def _worst_rows(
    row: StageReport, gates: Sequence[Gate], examples: ParityData
) -> dict[int, tuple[float, str]]:
    """Example → its error and what is wrong, the largest error first."""
    metrics, failed = row.measures, {gate.name: gate for gate in gates if not gate.passed}
    if metrics is None:
        return {}
    limit = failed["max_error"].limit if "max_error" in failed else np.inf
    wrong = {
        int(unit): f"error {metrics.row_errors[unit]:.3g}"
        for unit in np.flatnonzero((metrics.row_errors > limit) | ~np.isfinite(metrics.row_errors))
    }
    flips = (
        metrics.flips if "flips" in failed else metrics.unexplained if "unexplained_flips" in failed else ()
    )
    wrong.update((flip.unit, f"its label changes, error {flip.error:.3g}") for flip in flips)
    found: dict[int, tuple[float, str]] = {}
    for unit in sorted(wrong, key=lambda unit: -metrics.row_errors[unit]):
        number = int(examples.inputs.all_units.rows[unit])
        found.setdefault(number, (float(metrics.row_errors[unit]), wrong[unit]))
    return found


def _example(number: int, examples: ParityData) -> AdversarialInput:
    inputs, units = examples.inputs, examples.inputs.all_units
    encoded = inputs.encoded[number]
    # Words and masked tokens are not what a tokenizer makes of the text.
    as_text = not encoded.first and inputs.view.task not in ("masked-lm", "pretraining")
    places = None
    if units.positions is not None:
        first, end = np.searchsorted(units.rows, [number, number + 1])
        places = tuple(units.positions[first:end].tolist())
    text = inputs.texts[number] if as_text else None
    pair = inputs.pairs[number] if as_text and inputs.pairs is not None else None
    return AdversarialInput(f"line {examples.examples.lines[number]}", encoded, text, pair, positions=places)


def save_failing(
    folder: Path, task: str, seed: int, batches: Sequence[FailedBatch], left_out: int, pad_id: int
) -> Path | None:
    """Writes the file; where nothing failed, removes that of an earlier run.

    Returns:
        The file; None where nothing failed.
    """
    path = folder / FAILING_INPUTS
    if not batches:
        path.unlink(missing_ok=True)
        return None
    inputs = [
        {
            "failing": [
                {"row": row, "stage": stage, "error": finite(error), "sentence": sentence}
                for row, stage, error, sentence in batch.failing
            ],
            "batch": _rows_to_json(batch.rows, pad_id),
        }
        for batch in batches
    ]
    write_json(path, {"format": FORMAT, "task": task, "seed": seed, "left_out": left_out, "inputs": inputs})
    return path


def _rows_to_json(rows: Sequence[AdversarialInput], pad_id: int) -> list[dict[str, Any]]:
    feed = pad_batch([row.encoded for row in rows], pad_id)
    return [
        {
            "kind": row.kind,
            "text": row.text,
            "text_pair": row.pair,
            **{name: feed[name][place].tolist() for name in _COLUMNS},
            "positions": None if row.positions is None else list(row.positions),
        }
        for place, row in enumerate(rows)
    ]


def read_failing(path: Path, bundle: Bundle) -> Saved:
    """Reads a file of failing inputs for a bundle. Texts are tokenised again, by the bundle's tokenizer.

    Raises:
        InputError: there is no such file, it is of another format or task, damaged, or has token ids that
            the model does not take.
    """
    raw = read_json(path)
    if not isinstance(raw, dict) or "inputs" not in raw or "task" not in raw:
        raise InputError("not a file of failing inputs", path, _TODO)
    if raw.get("format") != FORMAT:
        what = f"failing inputs of format {raw.get('format')}, not {FORMAT}"
        raise InputError(what, path, "run `bertmp parity` again with this version")
    if raw["task"] != bundle.task:
        what = f"inputs for a model for {raw['task']}, and the bundle's task is {bundle.task}"
        raise InputError(what, path, "name another file or bundle")
    try:
        return _saved(raw, path, bundle)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError("the file of failing inputs is damaged", path, f"{_TODO} ({error!r})") from error


def _saved(raw: Mapping[str, Any], path: Path, bundle: Bundle) -> Saved:
    inputs: list[AdversarialInput] = []
    batches: list[tuple[int, ...]] = []
    changed = 0
    for entry in raw["inputs"]:
        rows = []
        for one in entry["batch"]:
            row, again = _row(one, f"{path}, input {len(batches) + 1}", bundle)
            changed += again
            rows.append(row)
        start = len(inputs)
        if any(not len(row.encoded) for row in rows):  # its neighbours are held to what they get without it
            alone = [row for row in rows if len(row.encoded)]
            inputs += alone
            batches += [(start + place,) for place in range(len(alone))]
            places = iter(range(start, len(inputs)))
            rows = [_with_twin(row, next(places)) if len(row.encoded) else row for row in rows]
            start = len(inputs)
        inputs += rows
        batches.append(tuple(range(start, len(inputs))))
    if not any(len(row.encoded) for row in inputs):
        raise InputError("no failing inputs", path, _TODO)
    stages = dict.fromkeys(str(one["stage"]) for entry in raw["inputs"] for one in entry["failing"])
    note = f"{changed} texts are tokenised otherwise than when they were saved." if changed else ""
    made = AdversarialSet(int(raw["seed"]), tuple(inputs), tuple(batches), template_of(bundle))
    return Saved(made, tuple(stages), note)


def _with_twin(row: AdversarialInput, twin: int) -> AdversarialInput:
    return AdversarialInput(row.kind, row.encoded, row.text, row.pair, twin, row.positions)


def _row(raw: Mapping[str, Any], where: str, bundle: Bundle) -> tuple[AdversarialInput, bool]:
    """One row, and whether its text is tokenised otherwise than it was."""
    ids, mask, types = ([_whole(number) for number in raw[name]] for name in _COLUMNS)
    length = sum(mask)
    if not len(ids) == len(mask) == len(types) or mask != [1] * length + [0] * (len(mask) - length):
        raise ValueError("ids, mask and types of different lengths, or padding before a token")
    for name, numbers, size in (
        ("token id", ids, int(bundle.config["vocab_size"])),
        ("token type", types, int(bundle.config.get("type_vocab_size", 2))),
    ):
        beyond = next((number for number in numbers if not 0 <= number < size), None)
        if beyond is not None:
            what = f"{name} {beyond} is outside 0 to {size - 1}"
            raise InputError(what, where, "replay it on the model that it was saved for")
    if len(ids) > bundle.max_positions:
        what = f"a row of {len(ids)} tokens, and the model takes {bundle.max_positions}"
        raise InputError(what, where, "replay it on the model that it was saved for")
    saved, text, pair = Encoded(ids[:length], types[:length], False), raw["text"], raw["text_pair"]
    if text is not None and not (isinstance(text, str) and text.strip()):
        raise ValueError("a text that is empty or none")
    if pair is not None and not isinstance(pair, str):
        raise ValueError("a second text that is none")
    encoded = saved
    if text is not None:
        encoded = bundle.tokenizer.encode([text], None if pair is None else [pair])[0]
    places = raw["positions"]
    same = encoded.input_ids == saved.input_ids
    positions = tuple(map(_whole, places)) if places is not None and same else None
    if positions is not None and not all(0 <= place < max(1, length) for place in positions):
        raise ValueError("positions outside of the row")
    return AdversarialInput(str(raw["kind"]), encoded, text, pair, positions=positions or None), not same


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} where a whole number belongs")
    return value
