"""Confusion matrices: counted by their definition, and pairs where the classes are many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bertmp import parity
from bertmp.export.parity.confusion import Confusion, confusion_of
from bertmp.export.parity.stage import ParityInputs, StageOutput
from bertmp.export.parity.tasks import UNKNOWN, VIEWS

CLASSES = ("a", "b", "c")


def outputs(answers: list[int], classes: int = 3) -> StageOutput:
    return StageOutput(np.eye(classes, dtype=np.float32)[answers])


def inputs(truth: list[int] | None, task: str = "classification") -> ParityInputs:
    right = None if truth is None else np.array(truth)
    return ParityInputs([], None, right, [], view=VIEWS[task])


def test_answers_are_counted_by_right_label_and_answer() -> None:
    answered = {"torch-fp32": outputs([0, 1, 1, 2, 0]), "onnx-fp16": outputs([0, 1, 2, 2, 1])}
    known = inputs([0, 1, 1, 0, UNKNOWN])
    found = confusion_of(answered, ["torch-fp32", "onnx-fp16"], known, CLASSES)
    assert found is not None
    assert found.to_json() == {
        "reference": "torch-fp32",
        "stage": "onnx-fp16",
        "classes": ["a", "b", "c"],
        "reference_counts": [[1, 0, 1], [0, 2, 0], [0, 0, 0]],
        "stage_counts": [[1, 0, 1], [0, 1, 1], [0, 0, 0]],
        "most_confused": [
            {"right": "a", "answer": "c", "reference": 1, "stage": 1},
            {"right": "b", "answer": "c", "reference": 0, "stage": 1},
        ],
    }


def test_many_classes_have_pairs_instead_of_a_matrix() -> None:
    before = np.diag(np.arange(30))
    after = before.copy()
    after[3, 5], after[7, 2] = 2, 9
    names = tuple(f"label {number}" for number in range(30))
    found = Confusion("torch-fp32", "onnx-fp16", names, before, after).to_json()
    assert found["stage_counts"] is None
    assert [(one["right"], one["answer"], one["stage"]) for one in found["most_confused"]] == [
        ("label 7", "label 2", 9),
        ("label 3", "label 5", 2),
    ]


@pytest.mark.parametrize(
    ("known", "compared"),
    [
        (inputs(None), ["one", "two"]),
        (inputs([0], "regression"), ["one", "two"]),
        (inputs([UNKNOWN], "token-classification"), ["one", "two"]),
        (inputs([0]), ["one"]),
        (inputs([0]), []),
    ],
    ids=["unlabelled", "a task without classes", "no known label", "the reference alone", "no reference"],
)
def test_where_there_is_nothing_to_count_there_is_none(known: ParityInputs, compared: list[str]) -> None:
    answered = {"one": outputs([0]), "two": outputs([0])}
    assert confusion_of(answered, compared, known, CLASSES) is None


def test_a_real_report_has_both_matrices(bundle: Path, labelled: Path) -> None:
    result = parity(bundle, labelled)
    assert result.confusion is not None
    assert result.confusion.before.sum() == result.data.texts
    assert np.trace(result.confusion.before) == 59  # the data file is wrong once
    assert (result.confusion.reference, result.confusion.stage) == ("torch-fp32", "onnx-fp16-emulated")
    page = (result.folder / "report.html").read_text()
    assert page.count('class="heat counts') == 2
