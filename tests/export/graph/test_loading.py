"""Graphs that anybody made: read and made fit, or refused in one line; and written at any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from bertmp import convert, explain
from bertmp.core.errors import InputError
from bertmp.export.graph.loading import check_graph, load_graph, read_graph
from bertmp.export.graph.weights import graph_in_memory, stored_size, tensor_values, write_graph
from bertmp.export.precision.apply import apply_plan
from bertmp.export.precision.convert import Conversion
from bertmp.export.precision.planner import graph_sha256
from tests.export.precision_graphs import WIDTH, Builder, chain, make_plan, run, tensor

X = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)


def save(graph: ModelProto, folder: Path) -> Path:
    onnx.save(graph, folder / "in.onnx")
    return folder / "in.onnx"


def read_notes(result: Conversion) -> list[str]:
    """The notes about how the graph was read; these graphs are no encoders, so no ranges are measured."""
    return [note for note in result.notes if not note.startswith("ranges: not measured")]


class TestConvert:
    def test_it_writes_the_graph_and_its_plan(self, tmp_path: Path) -> None:
        save(chain(["MatMul", "LayerNormalization", "Softmax"]), tmp_path)
        result = convert(tmp_path / "in.onnx", tmp_path / "out.onnx")
        assert result.nodes == {"fp16": 1, "fp32": 2, "integer": 0}
        assert result.plan == tmp_path / "out.precision-plan.json"
        onnx.checker.check_model(onnx.load(result.graph), full_check=True)

    def test_a_converted_graph_is_not_converted_again(self, tmp_path: Path) -> None:
        convert(save(chain(["MatMul", "Softmax"]), tmp_path), tmp_path / "half.onnx")
        with pytest.raises(InputError, match="bertmp has converted the graph already"):
            convert(tmp_path / "half.onnx", tmp_path / "out.onnx")
        other = onnx.load(tmp_path / "half.onnx")
        del other.metadata_props[:]
        with pytest.raises(InputError, match="already in FP16"):
            convert(save(other, tmp_path), tmp_path / "out.onnx")

    def test_notes_come_with_the_result(self, tmp_path: Path) -> None:
        g = Builder()
        strange = g.node("FastGelu", g.product("x"), domain="com.microsoft")
        graph = g.model(g.product(strange), domains=["com.microsoft"])
        result = convert(save(graph, tmp_path), tmp_path / "out.onnx")
        assert read_notes(result) == ["operators that are not ONNX's own stay FP32: 1 com.microsoft.FastGelu"]


class TestReading:
    @pytest.mark.parametrize("content", [b"", b"not a graph at all", None])
    def test_what_is_no_graph_is_refused(self, content: bytes | None, tmp_path: Path) -> None:
        source = tmp_path / "in.onnx"
        if content is None:
            content = save(chain(["MatMul"] * 20), tmp_path).read_bytes()[:500]
        source.write_bytes(content)
        with pytest.raises(InputError, match=r"not (an|a valid) ONNX graph"):
            read_graph(source)
        with pytest.raises(InputError, match="no such graph"):
            read_graph(tmp_path / "nowhere.onnx")

    def test_an_invalid_graph_is_refused(self, tmp_path: Path) -> None:
        graph = chain(["MatMul"])
        graph.graph.node[0].input[0] = "nothing"
        with pytest.raises(InputError, match="not a valid ONNX graph"):
            read_graph(save(graph, tmp_path))

    def test_nodes_without_names_get_some_of_their_own(self, tmp_path: Path) -> None:
        graph = chain(["MatMul", "Softmax", "Tanh", "Tanh"])
        for node, name in zip(graph.graph.node, ("", "", "MatMul_0", "MatMul_0"), strict=True):
            node.name = name
        names = [node.name for node in read_graph(save(graph, tmp_path)).graph.node]
        assert names == ["MatMul_0_", "Softmax_1", "MatMul_0", "MatMul_0_3"]

    def test_an_old_graph_is_converted(self, tmp_path: Path) -> None:
        g = Builder()
        graph = g.model(g.node("ReduceSum", g.softmax(g.product("x")), axes=[1]), opset=11)
        graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
        graph.graph.input.append(tensor("w0", [WIDTH, WIDTH]))
        graph.ir_version = 3
        notes: list[str] = []
        read = read_graph(save(graph, tmp_path), notes.append)
        assert notes == [
            "1 weights that were listed as inputs are fixed at their values",
            "converted from opset 11 to 13",
        ]
        mixed = apply_plan(read, make_plan(read))
        check_graph(mixed, tmp_path)
        assert np.abs(run(mixed, X) - run(graph, X)).max() < 0.01

    def test_an_old_graph_that_cannot_be_converted_is_refused(self, tmp_path: Path) -> None:
        g = Builder()
        ones = [g.constant(np.ones(WIDTH)) for _ in range(4)]
        graph = g.model(g.node("BatchNormalization", g.product("x"), *ones, spatial=0), opset=7)
        with pytest.raises(InputError) as raised:
            read_graph(save(graph, tmp_path))
        assert str(raised.value).startswith("opset 7 cannot be converted to 13")
        assert str(raised.value).endswith("export the graph with opset 13 or later")

    def test_a_graph_without_fp32_is_refused(self, tmp_path: Path) -> None:
        graph = helper.make_graph(
            [helper.make_node("Neg", ["x"], ["y"])],
            "integers",
            [tensor("x", [2], TensorProto.INT64)],
            [tensor("y", [2], TensorProto.INT64)],
        )
        with pytest.raises(InputError, match="the graph has no FP32 tensor"):
            read_graph(save(helper.make_model(graph, ir_version=10), tmp_path))

    def test_functions_are_inlined(self, tmp_path: Path) -> None:
        twice = helper.make_function(
            "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
            [helper.make_opsetid("", 18)],
        )  # fmt: skip
        g = Builder()
        graph = g.model(g.node("Twice", g.product("x"), domain="local"), domains=["local"])
        graph.functions.append(twice)
        read = read_graph(save(graph, tmp_path))
        assert [node.op_type for node in read.graph.node] == ["MatMul", "Add"]

    def test_what_is_left_alone_is_said(self, tmp_path: Path) -> None:
        g = Builder()
        scale, zero = g.constant(0.1), g.constant(0, np.int8)
        quantised = g.node("QuantizeLinear", g.product("x"), scale, zero)
        graph = g.model(g.product(g.node("DequantizeLinear", quantised, scale, zero)))
        notes: list[str] = []
        read_graph(save(graph, tmp_path), notes.append)
        assert notes == ["quantised regions are left as they are (2 quantising nodes)"]


class TestDeclaredShapes:
    """Tools that change one part of a graph leave shapes that it does not have; ONNX Runtime runs them."""

    @classmethod
    def graph(cls) -> ModelProto:
        g = Builder()
        inner = g.node("LayerNormalization", "x", g.drawn(WIDTH), g.drawn(WIDTH), axis=-1)
        graph = g.model(g.node("MatMul", inner, g.drawn(WIDTH, 3)))
        cls.declare(graph.graph.output[0], "batch", 3)
        return graph

    @staticmethod
    def declare(value: ValueInfoProto, *dims: int | str) -> None:
        value.CopyFrom(tensor(value.name, dims, value.type.tensor_type.elem_type))

    @pytest.mark.parametrize(
        ("output", "note"),
        [(("batch", 3), ""), (("batch", 2), "of t1"), (("batch", "length", 3), "of t1")],
        ids=["right", "another width", "another rank"],
    )
    def test_of_outputs_are_inferred_again(self, output: tuple[int | str], note: str, tmp_path: Path) -> None:
        graph = self.graph()
        self.declare(graph.graph.output[0], *output)
        result = convert(save(graph, tmp_path), tmp_path / "out.onnx")
        dims = onnx.load(result.graph).graph.output[0].type.tensor_type.shape.dim
        assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3]
        assert [note in text for text in read_notes(result)] == ([True] if note else [])
        assert np.abs(run(onnx.load(result.graph), X) - run(graph, X)).max() < 0.01

    def test_of_tensors_inside_are_dropped(self, tmp_path: Path) -> None:
        graph = self.graph()
        graph.graph.value_info.append(tensor(graph.graph.node[0].output[0], ["batch", 99]))
        notes: list[str] = []
        read_graph(save(graph, tmp_path), notes.append)
        assert notes == [
            "declared shapes of tensors inside the graph contradict the operators: inferred again"
        ]
        assert [finding.rule for finding in explain(tmp_path / "in.onnx").findings] == ["declared-shapes"]

    @pytest.mark.parametrize("wrong", [0, -1])
    def test_dimensions_that_cannot_be_are_free(self, wrong: int, tmp_path: Path) -> None:
        graph = self.graph()
        self.declare(graph.graph.input[0], wrong, WIDTH)
        self.declare(graph.graph.output[0], wrong, 3)
        mixed = convert(save(graph, tmp_path), tmp_path / "out.onnx")
        (note,) = read_notes(mixed)
        assert "0 or less are taken for free: x, t1" in note
        assert run(onnx.load(mixed.graph), X).shape == (3, 3)

    def test_outputs_without_one_get_theirs(self, tmp_path: Path) -> None:
        graph = self.graph()
        graph.graph.output[0].type.tensor_type.ClearField("shape")
        result = convert(save(graph, tmp_path), tmp_path / "out.onnx")
        assert onnx.load(result.graph).graph.output[0].type.tensor_type.shape.dim[1].dim_value == 3

    def test_types_that_contradict_each_other_stay_invalid(self, tmp_path: Path) -> None:
        graph = self.graph()
        graph.graph.value_info.append(tensor(graph.graph.node[0].output[0], None, TensorProto.INT64))
        with pytest.raises(InputError, match="types cannot be inferred"):
            read_graph(save(graph, tmp_path))


class TestExternalData:
    @staticmethod
    def graph() -> ModelProto:
        g = Builder()
        wide = g.node("MatMul", "x", g.drawn(WIDTH, 512))
        return g.model(g.node("MatMul", wide, g.drawn(512, WIDTH, scale=0.1)))

    def test_large_graphs_keep_their_weights_beside_them(self, tmp_path: Path) -> None:
        graph = self.graph()
        assert write_graph(graph, tmp_path / "one.onnx") == [tmp_path / "one.onnx"]
        written = write_graph(graph, tmp_path / "two.onnx", one_file=1000)
        assert [path.name for path in written] == ["two.onnx", "two.onnx.data"]
        assert written[0].stat().st_size < 1000
        onnx.checker.check_model(str(written[0]), full_check=True)
        assert run(graph_in_memory(read_graph(written[0])), X).tobytes() == run(graph, X).tobytes()
        result = convert(written[0], tmp_path / "half.onnx")
        assert 0.4 < result.size_ratio < 0.6

    def test_large_weights_stay_in_their_file(self, tmp_path: Path) -> None:
        graph = self.graph()
        file, _ = write_graph(graph, tmp_path / "two.onnx", one_file=1000)
        read = load_graph(file)
        external = [t for t in read.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        assert len(external) == 2
        assert read.ByteSize() < 1000 < stored_size(read)
        for before, after in zip(graph.graph.initializer, read.graph.initializer, strict=True):
            assert numpy_helper.to_array(before).tobytes() == tensor_values(after).tobytes()
        assert graph_sha256(read) == graph_sha256(onnx.load(file))

    def test_graphs_converted_with_their_weights_in_a_file_are_the_same(self, tmp_path: Path) -> None:
        graph = self.graph()
        file, _ = write_graph(graph, tmp_path / "two.onnx", one_file=1000)
        inside = convert(save(onnx.load(file), tmp_path), tmp_path / "inside.onnx").graph
        beside = convert(file, tmp_path / "beside.onnx").graph
        assert beside.read_bytes() == inside.read_bytes()

    def test_mixed_graphs_do_so_too(self, tmp_path: Path) -> None:
        graph = self.graph()
        for target in ("fp16", "bf16"):
            mixed = apply_plan(graph, make_plan(graph, target=target))  # type: ignore[arg-type]
            file, _ = write_graph(mixed, tmp_path / f"{target}.onnx", one_file=1000)
            read = onnx.load(file)
            for before, after in zip(mixed.graph.initializer, read.graph.initializer, strict=True):
                assert numpy_helper.to_array(before).tobytes() == numpy_helper.to_array(after).tobytes()

    def test_missing_and_truncated_data_are_refused(self, tmp_path: Path) -> None:
        file, data = write_graph(self.graph(), tmp_path / "in.onnx", one_file=1000)
        content = data.read_bytes()
        data.write_bytes(content[:-1])
        with pytest.raises(InputError, match="the external data are truncated"):
            read_graph(file)
        data.unlink()
        with pytest.raises(InputError, match=r"the graph's external data 'in\.onnx\.data' are missing"):
            read_graph(file)
