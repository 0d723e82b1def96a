"""Every head over the wire: the answers are those that `predict` gives for the same bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bertmp
from bertmp import infer
from bertmp.core.errors import InputError
from bertmp.serve.client import Client
from tests.export.prediction.heads import LENGTH, Heads
from tests.serve.conftest import Served
from tests.serve.heads.models import (
    MODELS,
    PAIRS,
    PROTOCOLS,
    SECONDS,
    TEXTS,
    assert_same,
    bundle_of,
    texts_of,
)

pytestmark = pytest.mark.slow


def predicted(model: str, heads: Heads, folder: Path) -> list[dict[str, Any]]:
    """What `predict` answers to the texts."""
    data, out = folder / "texts.jsonl", folder / "answers.jsonl"
    seconds = SECONDS if model in PAIRS else [None] * len(TEXTS)
    rows = [
        {"text": text, **({} if second is None else {"text_pair": second})}
        for text, second in zip(texts_of(model), seconds, strict=False)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    bertmp.predict(bundle_of(model, heads), data=data, out=out, **MODELS[model][1])
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    for row in found:
        if "embedding" in row:
            vector = np.array(row["embedding"])
            row["embedding"] = list(vector / np.linalg.norm(vector))
    return found


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("model", MODELS)
def test_answers_over_the_wire_are_those_of_predict(
    served: Served, heads: Heads, tmp_path: Path, model: str, protocol: str
) -> None:
    wanted = predicted(model, heads, tmp_path)
    pairs = SECONDS if model in PAIRS else ()
    found = infer(model, texts_of(model), text_pair=pairs, protocol=protocol, url=served.url(protocol))
    assert any(row["truncated"] for row in wanted)
    for answer, row in zip(found, wanted, strict=True):
        given = answer.to_json()
        assert (given.pop("version"), given.pop("windows")) == (1, 1)
        assert_same(given, row)


def test_a_threshold_decides_which_labels_apply(served: Served) -> None:
    low, usual = (infer(name, TEXTS, url=served.url("grpc")) for name in ("multi-label-0.4", "multi-label"))
    for one, other in zip(low, usual, strict=True):
        assert one.labels == [name for name, score in one.scores.items() if score > 0.4]
        assert other.labels == [name for name, score in other.scores.items() if score > 0.5]
    assert [one.labels for one in low] != [one.labels for one in usual]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pairs_in_the_wrong_model_are_refused(served: Served, protocol: str) -> None:
    where = {"protocol": protocol, "url": served.url(protocol)}
    with pytest.raises(InputError, match="'pairs' takes pairs of texts"):
        infer("pairs", ["a"], **where)
    with pytest.raises(InputError, match="'regression' takes single texts"):
        infer("regression", ["a"], text_pair=["b"], **where)
    with pytest.raises(InputError, match="2 texts and 1 second texts"):
        infer("pairs", ["a", "b"], text_pair=["c"], **where)
    text = np.array([[b"a"]], dtype=object)
    with Client(served.url(protocol), protocol) as client:  # what a plain client is told
        with pytest.raises(InputError, match="TEXT_PAIR"):
            client.infer("regression", {"TEXT": text, "TEXT_PAIR": text}, ("VALUE",))
        with pytest.raises(InputError, match="2 inputs"):
            client.infer("pairs", {"TEXT": text}, ("LABEL",))
        with pytest.raises(InputError, match="the second text is empty"):
            client.infer("pairs", {"TEXT": text, "TEXT_PAIR": np.array([[b" "]], dtype=object)}, ("LABEL",))
        with pytest.raises(InputError, match="the second text is empty"):
            client.settings("pairs", "a", pair="")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_text_without_a_mask_is_refused(served: Served, protocol: str) -> None:
    with pytest.raises(InputError, match=r"the text has no \[MASK\] \(text 1\)"):
        infer("masked-lm", ["nothing", "[MASK]"], protocol=protocol, url=served.url(protocol))


def test_a_version_tells_how_it_answers(served: Served) -> None:
    text = np.array([[b"a"]], dtype=object)
    with Client(served.url("grpc")) as client:
        found, _ = client.infer("entities-max", {"TEXT": text}, ("SETTINGS",))
    settings = json.loads(found["SETTINGS"][0, 0])
    assert (settings["task"], settings["aggregation"], settings["max_length"]) == (
        "token-classification",
        "max",
        LENGTH,
    )
