"""The memory estimate: against a graph small enough to add up by hand, and how it grows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bertmp.core.errors import InputError
from bertmp.export.engine.engine_options import parse_profile
from bertmp.export.engine.preflight import check_fits, estimate
from tests.export.engine_graphs import small_bert


def chain(length: int = 3) -> onnx.ModelProto:
    """Gather, then one Relu after the other: never more than two tensors of [batch, length, 4] FP32 alive."""
    table = numpy_helper.from_array(np.zeros((10, 4), np.float32), "table")
    nodes = [helper.make_node("Gather", ["table", "ids"], ["t0"], name="gather")]
    for step in range(length):
        nodes.append(helper.make_node("Relu", [f"t{step}"], [f"t{step + 1}"], name=f"relu{step}"))
    graph = helper.make_graph(
        nodes, "chain",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info(f"t{length}", TensorProto.FLOAT, ["batch", "length", 4])], [table],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_it_adds_up_what_is_alive_at_one_time() -> None:
    found = estimate(chain(), [parse_profile("1x1:2x5:3x7")])
    assert found.weights_bytes == 10 * 4 * 4
    assert found.profiles[0].unknown == 0
    assert found.profiles[0].bytes == 2 * (3 * 7 * 4 * 4)
    assert found.total_bytes == 160 + 672


def test_every_profile_has_a_context_of_its_own() -> None:
    found = estimate(chain(), [parse_profile("1x1:2x5:3x7"), parse_profile("1x8:2x8:3x14")])
    assert found.total_bytes == 160 + 672 + 2 * 672


def test_it_is_the_same_however_long_the_chain() -> None:
    profile = [parse_profile("4x16")]
    assert estimate(chain(3), profile).total_bytes == estimate(chain(30), profile).total_bytes


def test_attention_grows_with_the_square_of_the_length() -> None:
    graph = small_bert(layers=2)[0]
    short, long = (estimate(graph, [parse_profile(text)]).profiles[0] for text in ("64x512", "64x1024"))
    assert short.unknown <= 1 >= long.unknown  # the slice of the position table
    assert 3.5 < long.bytes / short.bytes < 4.0


def test_what_it_cannot_infer_is_counted_as_unknown() -> None:
    graph = chain()
    graph.graph.node[1].op_type = "Frobnicate"
    found = estimate(graph, [parse_profile("1x8")])
    assert found.profiles[0].unknown > 0


def test_an_engine_that_does_not_fit_names_its_largest_profile() -> None:
    found = estimate(small_bert()[0], [parse_profile("1x8"), parse_profile("1x1:8x64:64x512")])
    check_fits(found, found.total_bytes, "the GPU")
    with pytest.raises(InputError, match=r"the GPU has .* \(--profile 1x1:8x64:64x512\)"):
        check_fits(found, found.total_bytes - 1, "the GPU")
