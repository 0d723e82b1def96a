"""Polygraphy, NVIDIA's own tool, on the same graph with the same builder: an independent check of ours."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertmp import export_checkpoint
from bertmp.export.bundle import FP16_GRAPH
from bertmp.export.engine.build import build_engine
from tests.export.engine_graphs import save_graph

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("polygraphy") is None, reason="Polygraphy is not installed (extra 'dev')"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
    ),
]
ENVIRONMENT = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"}

COUNT = """
import json, sys
from polygraphy.backend.trt import NetworkFromOnnxPath
builder, network, parser = NetworkFromOnnxPath(sys.argv[1], strongly_typed=True)()
layers = [network.get_layer(index) for index in range(network.num_layers)]
types = [str(layer.type).rsplit(".", 1)[-1] for layer in layers]
print(json.dumps({"layers": len(types), "types": {kind: types.count(kind) for kind in set(types)}}))
"""


def polygraphy(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def test_polygraphy_sees_the_same_layers(tiny: Path, tmp_path: Path) -> None:
    export_checkpoint(tiny, tmp_path / "bundle", task="encoder")
    graph = tmp_path / "bundle" / FP16_GRAPH
    ours = build_engine(tmp_path / "bundle", builder="tensorrt-rtx", profiles=["1x1:2x8:4x16"])
    done = polygraphy("-c", COUNT, graph)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert theirs["layers"] == ours.layers
    assert theirs["types"] == {kind: sum(counts.values()) for kind, counts in ours.summary.items()}


def test_polygraphy_builds_the_graph(tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "encoder.onnx")
    shapes = ["input_ids:[2,8]", "attention_mask:[2,8]", "token_type_ids:[2,8]"]
    tool = Path(sys.executable).with_name("polygraphy")
    done = polygraphy(
        tool, "convert", graph, "--convert-to", "trt", "-o", tmp_path / "theirs.engine", "--strongly-typed",
        "--trt-min-shapes", *shapes, "--trt-opt-shapes", *shapes, "--trt-max-shapes", *shapes,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "theirs.engine").stat().st_size > 10_000
