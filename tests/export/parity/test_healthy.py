"""Models without a fault pass, whatever their weights, their texts and the seed of the adversarial inputs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bertmp import parity
from tests.serve.bundles import make_bundle


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_model_passes(minilm: Path, trec: Path, tmp_path: Path, seed: int) -> None:
    bundle = make_bundle(tmp_path, minilm, seed, fp16=True)
    lines = (trec / "train.tsv").read_text(encoding="utf-8").splitlines()
    data = tmp_path / "data.tsv"
    data.write_text("\n".join(random.Random(seed).sample(lines, 300)), encoding="utf-8")
    result = parity(bundle, data, seed=seed)
    assert result.verdict == "passed", [gate.sentence for gate in result.failed_gates] or result.headline()
