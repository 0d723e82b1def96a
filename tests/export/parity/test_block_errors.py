"""The map of errors over blocks and lengths: a sample of the examples, the right block, no verdict lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertmp import export_checkpoint, parity
from bertmp.core.progress import null_progress
from bertmp.export.bundle import Bundle
from bertmp.export.graph.loading import load_graph
from bertmp.export.parity.block_errors import TEXTS, measure_block_errors, sample_by_length
from bertmp.export.parity.localise import localise
from bertmp.export.parity.localise_stage import padded_feeds
from bertmp.export.parity.reading import at_rows, read_inputs
from bertmp.export.parity.stage import ParityInputs
from tests.export.parity_bundles import damage


@pytest.fixture
def inputs(exported: Path, labelled: Path) -> ParityInputs:
    return read_inputs(Bundle.open(exported), labelled).inputs


def test_the_errors_and_the_headroom_are_those_that_localising_finds(
    exported: Path, inputs: ParityInputs
) -> None:
    rows = [row for row, encoded in enumerate(inputs.encoded) if 9 <= len(encoded) <= 16][:8]
    found = measure_block_errors(Bundle.open(exported), at_rows(inputs, rows), null_progress)
    assert (found.reason, found.texts) == ("", len(rows))
    (order,) = sample_by_length([len(inputs.encoded[row]) for row in rows]).values()
    feeds = padded_feeds(inputs, [rows[at] for at in order], 40)
    graphs = (load_graph(exported / name) for name in ("model.onnx", "model.fp16.onnx"))
    expected = localise(*graphs, feeds).blocks
    assert found.blocks == tuple(one.block for one in expected)
    assert [errors[0] for errors in found.errors] == pytest.approx([one.relative_error for one in expected])
    assert found.headroom == pytest.approx([one.headroom for one in expected])
    assert all(0 < errors[0] < 2e-2 for errors in found.errors)


def test_a_damaged_layer_stands_out_at_every_length(
    exported: Path, bundle: Path, inputs: ParityInputs
) -> None:
    damage(bundle, 0.05)  # the first matrix of this shape belongs to layer 0
    before, after = (
        measure_block_errors(Bundle.open(folder), inputs, null_progress) for folder in (exported, bundle)
    )
    assert [(one.shortest, one.longest) for one in after.bins] == [(1, 8), (9, 16), (17, 32), (33, 64)]
    worse = np.array(after.errors) / np.array(before.errors)
    layers = [before.blocks.index(f"bert.encoder.layer.{number}") for number in range(2)]
    assert (worse[: layers[0]] == 1).all()
    assert (worse[layers] > 5).all()


def test_a_number_that_is_not_finite_is_infinite_and_null_in_the_report(
    bundle: Path, inputs: ParityInputs
) -> None:
    damage(bundle, 1e9)
    found = measure_block_errors(Bundle.open(bundle), inputs, null_progress)
    assert np.inf in found.errors[-1]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["errors"][-1][0] is None


def test_a_bundle_without_a_low_precision_graph_says_so(
    checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    folder = export_checkpoint(checkpoint, tmp_path / "bundle", fp16=False).bundle
    result = parity(folder, labelled)
    assert result.block_errors.reason == "the bundle has no low-precision graph"
    assert (
        "Not measured: the bundle has no low-precision graph." in (result.folder / "report.html").read_text()
    )


def test_graphs_that_cannot_be_compared_cost_the_map_alone(
    bundle: Path, inputs: ParityInputs, exported: Path
) -> None:
    (bundle / "model.fp16.onnx").write_bytes(b"no graph")
    found = measure_block_errors(Bundle.open(bundle), inputs, null_progress)
    assert found.reason.startswith("the graphs cannot be compared: ")
    assert found.to_json()["errors"] == []


@given(st.lists(st.integers(2, 600), min_size=1, max_size=300))
def test_the_sample_has_every_length_and_few_tokens(lengths: list[int]) -> None:
    found = sample_by_length(lengths)
    assert found == sample_by_length(lengths)
    for (shortest, longest), rows in found.items():
        assert rows
        assert len(set(rows)) == len(rows)
        assert all(shortest <= lengths[row] <= (longest or 600) for row in rows)
    assert all(any(low <= one <= (high or 600) for low, high in found) for one in lengths)
    chosen = [row for rows in found.values() for row in rows]
    assert len(chosen) <= TEXTS
    # Beyond the budget there is at most the one example that every group has.
    assert sum(lengths[row] for row in chosen) <= 2048 + sum(
        max(map(lengths.__getitem__, r)) for r in found.values()
    )


def test_a_longer_file_does_not_take_longer() -> None:
    lengths = [5, 12, 30] * 40_000
    assert sum(map(len, sample_by_length(lengths).values())) == TEXTS
    assert sum(lengths[row] for rows in sample_by_length(lengths).values() for row in rows) <= 2048
