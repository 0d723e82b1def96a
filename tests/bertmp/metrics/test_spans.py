"""Entities of tagged sentences."""

from __future__ import annotations

import pytest

from bertmp.metrics.spans import bio_spans, has_entity_tags, span_counts


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("I-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),
        ("O I-PER O I-PER", {("PER", 1, 2), ("PER", 3, 4)}),
        ("B-PER I-LOC", {("PER", 0, 1), ("LOC", 1, 2)}),
        ("B-PER E-PER S-LOC O", {("PER", 0, 2), ("LOC", 2, 3)}),
        ("U-LOC U-LOC B-PER L-PER I-PER", {("LOC", 0, 1), ("LOC", 1, 2), ("PER", 2, 4), ("PER", 4, 5)}),
        ("B-per-son I-per-son", {("per-son", 0, 2)}),
    ],
)
def test_bio_spans_of_every_scheme(tags: str, found: set[tuple[str, int, int]]) -> None:
    assert bio_spans(tags.split()) == found


def test_parts_of_speech_are_no_entities() -> None:
    assert has_entity_tags(("B-LOC", "I-LOC", "O"))
    assert not has_entity_tags(("ADJ", "NOUN", "O"))
    assert not has_entity_tags(("B", "I", "O"))


def test_span_counts_end_with_each_sentence() -> None:
    answers = [["B-PER", "O"], ["I-PER", "O", "B-LOC"], ["O"]]
    truth = [["B-PER", "I-PER"], ["I-PER", "O", "B-LOC"], ["B-LOC"]]
    assert span_counts(answers, truth).tolist() == [[0, 1, 1], [2, 2, 2], [0, 0, 1]]


def test_span_counts_refuse_other_sentences() -> None:
    with pytest.raises(ValueError, match="longer"):
        span_counts([["O"]], [["O"], ["O"]])
