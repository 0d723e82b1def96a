"""The parts of the code inside Triton that need no server, run on NVIDIA's own module as it is there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertmp.environment.triton_install import find_runtime
from bertmp.serve.server_config import BACKENDS


@pytest.fixture(scope="module")
def text_classifier(triton: None) -> Any:
    folder = find_runtime().backends / "python"
    sys.path.insert(0, str(folder))
    try:
        return _module(BACKENDS / "text_classifier" / "model.py")
    finally:
        sys.path.remove(str(folder))


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"inside_triton_{path.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@given(
    lengths=st.lists(st.integers(1, 70), max_size=80),
    step=st.sampled_from([1, 8, 16]),
    most=st.integers(1, 33),
)
def test_group_by_length_puts_every_row_in_one_batch(
    text_classifier: Any, lengths: list[int], step: int, most: int
) -> None:
    groups = text_classifier.group_by_length(lengths, step, most)
    assert sorted(row for _, rows in groups for row in rows) == list(range(len(lengths)))
    for length, rows in groups:
        assert 0 < len(rows) <= most
        assert length % step == 0
        for row in rows:
            assert lengths[row] <= length < lengths[row] + step


def test_softmax_of_extreme_logits_does_not_overflow(text_classifier: Any) -> None:
    logits = np.array([[3e38, 0, -3e38], [0, 0, 0], [-1e4, -1e4, -1e4 + 1]], dtype=np.float32)
    found = text_classifier.softmax(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found[0], [1, 0, 0])
    np.testing.assert_allclose(found[1], 1 / 3)


def test_read_text_of_a_bad_row_names_the_row(text_classifier: Any) -> None:
    assert text_classifier.read_text("né".encode(), 0, 1, 10) == "né"
    with pytest.raises(text_classifier.BadRequest, match="text 3 of 4 is not UTF-8: byte 0xc3 at position 1"):
        text_classifier.read_text(b"n\xc3", 2, 4, 10)
    with pytest.raises(text_classifier.BadRequest, match="too large: 11 bytes"):
        text_classifier.read_text(b"a" * 11, 0, 1, 10)
