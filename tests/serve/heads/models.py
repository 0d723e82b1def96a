"""The models that the server of every head has, and what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.export.prediction.heads import Heads

PROTOCOLS = ("grpc", "http")

LONG = (
    "A much longer text , which goes on and on about nothing , and is cut where the model 's positions end ."
)

TEXTS = (
    "Ann Lee went to the river of Prague .",
    "no",
    LONG,
    "Émile Zola's café — “naïve” 😀 ½ in Köln",
    "Bob",
    "not at all",
)

MASKED = ("The [MASK] is red .", "[MASK] ! Ça va [MASK] ?", f"{LONG} [MASK]")

SECONDS = TEXTS[::-1]

CLOSE = 1e-5

MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "classification": ("classification", {}),
    "pairs": ("classification", {}),
    "next-sentence": ("next-sentence", {}),
    "multi-label": ("multi-label-classification", {}),
    "multi-label-0.4": ("multi-label-classification", {"threshold": 0.4}),
    "regression": ("regression", {}),
    "entities": ("token-classification", {}),
    "entities-first": ("token-classification", {"aggregation": "first"}),
    "entities-max": ("token-classification", {"aggregation": "max"}),
    "embeddings": ("encoder", {}),
    "embeddings-cls": ("encoder", {"pooling": "cls"}),
    "masked-lm": ("masked-lm", {}),
    "pretraining": ("pretraining", {}),
}
"""Model → its bundle's task, and how it answers."""

"""Model → its bundle's task, and how it answers."""
PAIRS = ("pairs", "next-sentence")


def bundle_of(model: str, heads: Heads) -> Path:
    return heads.bundle(MODELS[model][0], precision="fp32", pairs=model == "pairs")


def texts_of(model: str) -> Sequence[str]:
    return MASKED if model in ("masked-lm", "pretraining") else TEXTS


def assert_same(given: Any, wanted: Any) -> None:
    """Equal, and numbers close."""
    if isinstance(wanted, dict):
        assert list(given) == list(wanted)
        for name, value in wanted.items():
            assert_same(given[name], value)
    elif isinstance(wanted, list):
        assert len(given) == len(wanted)
        for one, other in zip(given, wanted, strict=True):
            assert_same(one, other)
    elif isinstance(wanted, float):
        assert given == pytest.approx(wanted, abs=CLOSE)
    else:
        assert given == wanted
