"""Texts longer than the model: the windows are put together, or both lengths are named."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from bertmp import infer
from bertmp.core.errors import InputError
from bertmp.data.tokenizer import Tokenizer
from bertmp.export.bundle import Bundle
from tests.export.prediction.heads import LENGTH, Heads
from tests.serve.conftest import Served
from tests.serve.heads.models import CLOSE, LONG, PROTOCOLS, TEXTS, assert_same

pytestmark = pytest.mark.slow


def pooled(bundle: Path, text: str, output: str) -> tuple[int, np.ndarray]:
    """The number of windows, and the mean of an output's rows over them, weighted by their tokens."""
    opened = Bundle.open(bundle)
    (row,) = Tokenizer.load(bundle, 512).encode([text])
    begin, *inner, end = row.input_ids
    space = LENGTH - 2
    starts = [*range(0, len(inner) - space, space - space // 4), len(inner) - space]
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    found = []
    for start in starts:
        ids = np.array([[begin, *inner[start : start + space], end]])
        feed = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        (states,) = session.run([output], feed)
        found.append(states[0] if opened.task != "encoder" else states[0].mean(axis=0))
    return len(starts), np.stack(found)


@pytest.mark.parametrize("task", ["classification", "regression", "encoder"])
def test_the_windows_of_a_long_text_are_pooled(served: Served, heads: Heads, task: str) -> None:
    output = "last_hidden_state" if task == "encoder" else "logits"
    count, rows = pooled(heads.bundle(task, precision="fp32"), LONG * 2, output)
    (whole,) = infer(f"{task}-window", [LONG * 2], url=served.url("grpc"))
    assert (whole.truncated, whole.windows) == (False, count)
    assert count > 2
    if task == "classification":
        powers = np.exp(rows)
        wanted = (powers / powers.sum(axis=1, keepdims=True)).mean(axis=0)
        assert list(whole.scores.values()) == pytest.approx(wanted.tolist(), abs=CLOSE)
        assert whole.label == list(whole.scores)[int(wanted.argmax())]
    elif task == "regression":
        assert whole.value == pytest.approx(float(rows.mean()), abs=CLOSE)
    else:
        mean = rows.mean(axis=0)
        assert whole.embedding == pytest.approx((mean / np.linalg.norm(mean)).tolist(), abs=CLOSE)
    short = infer(f"{task}-window", TEXTS[:1], url=served.url("grpc"))[0]
    plain = infer("embeddings" if task == "encoder" else task, TEXTS[:1], url=served.url("grpc"))[0]
    assert short.windows == 1
    assert_same(short.to_json(), plain.to_json())


def test_the_spans_of_windows_are_merged_by_their_characters(served: Served) -> None:
    text = " ".join([LONG] * 3)
    (whole,) = infer("token-classification-window", [text], url=served.url("grpc"))
    assert whole.windows > 3
    assert not whole.truncated
    ends = [(one["start"], one["end"]) for one in whole.entities]
    assert ends == sorted(ends)
    assert all(before[1] <= after[0] for before, after in pairwise(ends)), "no overlaps"
    assert max(end for _, end in ends) > len(LONG), "spans beyond the first window"
    for one in whole.entities:
        assert text[one["start"] : one["end"]] == one["text"]
    (filled,) = infer("masked-lm-window", [f"[MASK] {text} [MASK]"], url=served.url("grpc"))
    assert [fill["start"] for fill in filled.fills] == [0, len(text) + 8]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_long_text_is_refused_with_both_lengths(served: Served, protocol: str) -> None:
    assert infer("classification-refuse", ["fine"], url=served.url("grpc"))
    with pytest.raises(
        InputError, match=rf"the text is too long: \d+ tokens, the most is {LENGTH} \(text 2\)"
    ):
        infer("classification-refuse", ["fine", LONG], protocol=protocol, url=served.url(protocol))
