"""Outputs as answers where random models do not lead: tag schemes, pairs, extreme logits, unused ids."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bertmp.export import answers
from bertmp.export.answers import Entities, Fills, LabelSet, Tokens, decoder_of, softmax

WORDS = "Ann Lee of New York"
SPANS = [None, (0, 0, 3), (0, 4, 7), (0, 8, 10), (0, 11, 14), (0, 15, 19), None]


def entities(labels: Sequence[str], row: Tokens | None = None) -> list[tuple[str, str]]:
    """The entities of tokens with these labels, special tokens at both ends."""
    names = sorted({*labels, "B-SPECIAL"})
    best = ["B-SPECIAL", *labels, "B-SPECIAL"]
    logits = np.stack([np.eye(len(names), dtype=np.float32)[names.index(label)] * 5 for label in best])
    read = row or Tokens(range(len(SPANS)), SPANS, (WORDS,))
    (answer,) = Entities(names)({"logits": logits[None]}, [read])
    return [(one["label"], one["text"]) for one in answer["entities"]]


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["B-PER", "I-PER", "O", "B-LOC", "I-LOC"], [("PER", "Ann Lee"), ("LOC", "New York")]),
        (["B-PER", "B-PER", "O", "I-LOC", "I-LOC"], [("PER", "Ann"), ("PER", "Lee"), ("LOC", "New York")]),
        (["B-PER", "I-LOC", "O", "O", "O"], [("PER", "Ann"), ("LOC", "Lee")]),
        (["B-PER", "E-PER", "O", "S-LOC", "S-LOC"], [("PER", "Ann Lee"), ("LOC", "New"), ("LOC", "York")]),
        (["B-PER", "L-PER", "O", "U-LOC", "O"], [("PER", "Ann Lee"), ("LOC", "New")]),
        (["NOUN", "NOUN", "ADP", "X-Y", "X-Y"], [("NOUN", "Ann Lee"), ("ADP", "of"), ("X-Y", "New York")]),
        (["O", "O", "O", "O", "O"], []),
    ],
)
def test_entities_follow_the_tags(labels: list[str], found: list[tuple[str, str]]) -> None:
    assert entities(labels) == found


def test_an_entity_does_not_reach_from_one_text_of_a_pair_into_the_other() -> None:
    spans = [None, (0, 0, 3), None, (1, 0, 3), None]
    labels = ["I-PER", "O", "I-PER"]
    row = Tokens(range(5), spans, ("Ann", "Lee"))
    assert entities(labels, row) == [("PER", "Ann"), ("PER", "Lee")]


def test_probabilities_of_extreme_logits_are_finite() -> None:
    logits = np.array([[-1e30, 0.0, 1e30]], np.float32)
    assert softmax(logits).tolist() == [[0.0, 0.0, 1.0]]
    (answer,) = LabelSet("abc")({"logits": logits}, [Tokens([1])])
    assert answer == {"labels": ["c"], "scores": {"a": 0.0, "b": 0.5, "c": 1.0}}


def test_an_id_without_a_token_is_named_by_its_number() -> None:
    logits = np.array([[[0, 1, 2, 3]]], np.float32)
    (answer,) = Fills(("a", "", "c"), mask=9, candidates=3)(
        {"prediction_logits": logits}, [Tokens([9], [(0, 2, 8)], ("a [MASK]",))]
    )
    (fill,) = answer["fills"]
    assert [one["token"] for one in fill["candidates"]] == ["[3]", "c", "[1]"]
    assert (fill["start"], fill["end"]) == (2, 8)


def test_a_task_without_a_decoder_raises() -> None:
    with pytest.raises(ValueError, match="no decoder for question-answering"):
        decoder_of("question-answering")


def test_the_module_runs_where_only_numpy_is_installed() -> None:
    code = f"""
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {{"numpy", "answers", *sys.stdlib_module_names}}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, {str(Path(answers.__file__).parents[1])!r})
import answers
print(answers.number(0.1))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0.1\n", "")
