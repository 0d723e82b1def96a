"""A fault put into a real graph is found where it was put, and nothing is found in a sound one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from bertmp import export_checkpoint
from bertmp.core.errors import InputError
from bertmp.core.progress import null_progress
from bertmp.export.bundle import CONVERT, EXPORT, Bundle
from bertmp.export.export_options import PrecisionOptions
from bertmp.export.graph.ort_sessions import Feed
from bertmp.export.graph.tracing import export_graph
from bertmp.export.parity.localise import Localisation, localise
from bertmp.export.parity.localise_stage import localise_stage
from bertmp.export.parity.stage import ParityInputs
from bertmp.export.precision.apply import apply_plan
from bertmp.export.precision.convert import plan_precision
from bertmp.export.precision.plan import PrecisionPlan
from bertmp.export.precision.planner import Planner
from bertmp.model.checkpoint import save_checkpoint
from bertmp.model.config import BertConfig
from tests import models
from tests.export.conftest import Questions
from tests.export.overflowing import large_values

LAYER = "bert.encoder.layer"
NODES = "bert/encoder/layer"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers of random weights as a graph's file."""
    config = BertConfig(
        vocab_size=500, hidden_size=64, num_hidden_layers=6, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64, labels=("a", "b", "c"),
    )  # fmt: skip
    file = tmp_path_factory.mktemp("localise") / "model.onnx"
    onnx.save(export_graph(models.classifier(config)), file)
    return file


@pytest.fixture
def graph(exported: Path) -> ModelProto:
    return onnx.load(exported)


@pytest.fixture
def other(exported: Path) -> ModelProto:
    """The same graph, to be changed."""
    return onnx.load(exported)


@pytest.fixture(scope="module")
def feeds() -> list[Feed]:
    """Two batches with padding."""
    return [
        {name: tensor.numpy() for name, tensor in models.batch(500, rows=5, length=30, seed=seed).items()}
        for seed in range(2)
    ]


def change(graph: ModelProto, name: str, changed: Callable[[np.ndarray], np.ndarray]) -> None:
    """Gives a weight other values."""
    (tensor,) = (tensor for tensor in graph.graph.initializer if tensor.name == name)
    values = np.asarray(changed(numpy_helper.to_array(tensor)), np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def converted(graph: ModelProto, low: tuple[str, ...] = (), target: str = "fp16") -> ModelProto:
    """The graph in 16 bits by the rules, except for some operators or nodes that they keep in FP32."""
    plan = Planner(graph, PrecisionOptions(precision=target)).plan()  # type: ignore[arg-type]
    return apply_plan(graph, in_low(plan, low))


def in_low(plan: PrecisionPlan, low: tuple[str, ...]) -> PrecisionPlan:
    names = [n.name for n in plan.nodes if n.precision != "integer" and (n.op in low or n.name in low)]
    return plan.with_precision(names, plan.target)


def errors_of(found: Localisation) -> dict[str, float]:
    return {block.block: block.relative_error for block in found.blocks}


def test_sound_graphs_have_no_jump(graph: ModelProto, other: ModelProto, feeds: list[Feed]) -> None:
    same = localise(graph, other, feeds)
    assert (same.node, same.block, same.jumps) == (None, None, 0)
    assert all(block.relative_error == 0 and block.snr_db == float("inf") for block in same.blocks)
    for target in ("fp16", "bf16"):
        found = localise(graph, converted(graph, target=target), feeds)
        assert (found.node, found.block, found.keep_fp32) == (None, None, None)
        assert all(block.relative_error > 0 for block in found.blocks if LAYER in block.block)


@pytest.mark.slow
def test_the_real_classifier_converted_by_the_rules_has_no_jump(questions: Questions) -> None:
    graph, file = questions.graph(), questions.texts
    inputs = parity_inputs(Bundle.open(questions.bundle), file)
    rows = sorted(inputs.encoded, key=len)
    feeds = [_feed(rows[:8]), _feed(rows[8:])]
    for target in ("fp16", "bf16"):
        options = PrecisionOptions(precision=target, calibration=file)  # type: ignore[arg-type]
        low = plan_precision(graph, options, tokenizer=questions.bundle).graph
        found = localise(graph, low, feeds)
        assert found.node is None, found.sentence
        assert 0 < errors_of(found)[f"{LAYER}.5"] < 0.1


def _feed(rows: list) -> Feed:  # type: ignore[type-arg]
    from bertmp.data.batches import pad_batch

    return pad_batch(rows, 0, (len(rows), max(map(len, rows)) + 1))


def test_rows_that_are_all_padding_are_left_out(
    graph: ModelProto, other: ModelProto, feeds: list[Feed]
) -> None:
    """Scores that are all masked differ by the mask's roundings; no text has such a row."""
    softmax, add = (f"{NODES}.1/attention/self/{name}" for name in ("Softmax", "Add"))
    low = converted(other, (softmax, add, "bert/Mul", "bert/Sub"))
    empty = {name: np.array(values) for name, values in feeds[0].items()}
    empty["attention_mask"][2] = 0
    found = localise(graph, low, [empty])
    assert (found.node, found.texts) == (None, 4)
    whole = {name: np.array(values[:1]) for name, values in empty.items()}
    assert localise(graph, low, [whole]).texts == 1


def test_a_scaled_weight_is_found(graph: ModelProto, other: ModelProto, feeds: list[Feed]) -> None:
    change(other, f"{LAYER}.3.intermediate.dense.weight/transposed", lambda values: values * np.float32(1.01))
    found = localise(graph, other, feeds)
    assert found.node is not None
    assert found.block == f"{LAYER}.3"
    assert found.node.node == f"{NODES}.3/intermediate/dense/MatMul"
    assert found.node.own_error == pytest.approx(0.01, rel=1e-3)
    assert found.node.snr_db == pytest.approx(40, abs=0.1)
    assert found.node.found == pytest.approx(1.01 * found.node.expected, rel=1e-5)
    assert (found.node.type, found.jumps, found.keep_fp32) == ("fp32", 1, None)
    errors = errors_of(found)
    assert [errors[f"{LAYER}.{number}"] > 0 for number in range(6)] == [False] * 3 + [True] * 3


def test_another_epsilon_is_found(graph: ModelProto, other: ModelProto, feeds: list[Feed]) -> None:
    norms = [node for node in other.graph.node if node.op_type == "LayerNormalization"]
    for node in norms:
        (epsilon,) = (attribute for attribute in node.attribute if attribute.name == "epsilon")
        assert epsilon.f == pytest.approx(1e-12)
        epsilon.f = 1e-5
    found = localise(graph, other, feeds)
    assert found.node is not None
    assert found.node.node == norms[0].name
    assert found.block == "bert.embeddings"
    assert found.jumps == len(norms)


def test_a_weak_mask_is_found(graph: ModelProto, other: ModelProto, feeds: list[Feed]) -> None:
    change(other, "bert/Mul/constant", lambda values: np.full_like(values, -10))
    found = localise(graph, other, feeds)
    assert found.node is not None
    assert (found.node.node, found.block, found.jumps) == ("bert/Mul", "bert", 1)
    assert (found.node.expected, found.node.found) == (-10_000, -10)
    assert found.node.headroom is None


def test_dropped_segments_are_found(graph: ModelProto, other: ModelProto, feeds: list[Feed]) -> None:
    """The ids are multiplied by 0 in a node that the reference lacks: the node that reads them is named."""
    other.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "nothing"))
    dropped = helper.make_node("Mul", ["token_type_ids", "nothing"], ["dropped"], name="dropped")
    name = "bert/embeddings/token_type_embeddings/Gather"
    (at,) = (at for at, node in enumerate(other.graph.node) if node.name == name)
    other.graph.node[at].input[1] = "dropped"
    other.graph.node.insert(0, dropped)
    found = localise(graph, other, feeds)
    assert found.node is not None
    assert (found.node.node, found.block, found.jumps) == (name, "bert.embeddings", 1)


def test_an_overflow_is_found_and_its_repair_tried(
    graph: ModelProto, other: ModelProto, feeds: list[Feed]
) -> None:
    for each in (graph, other):
        large_values(each, 200_000)
    found = localise(graph, converted(other), feeds)
    values = f"{NODES}.3/attention/self/value/MatMul"
    assert found.node is not None
    assert (found.node.node, found.block, found.node.type) == (values, f"{LAYER}.3", "fp16")
    assert abs(found.node.expected) > 65504
    assert abs(found.node.found) == float("inf")
    assert found.node.headroom is not None
    assert found.node.headroom < 1
    errors = errors_of(found)
    assert errors[f"{LAYER}.2"] < 0.01
    assert errors[f"{LAYER}.3"] == float("inf")
    kept = found.keep_fp32
    assert kept is not None
    assert kept.error_before == float("inf")
    assert kept.error_after < 0.01
    assert kept.repairs
    options = PrecisionOptions(keep_fp32=kept.patterns)
    assert f"--keep-fp32 {values}" in kept.line
    repaired = apply_plan(graph, Planner(graph, options).plan())
    assert localise(graph, repaired, feeds).node is None


def large_scores(graph: ModelProto) -> None:
    """Every score of a query is larger by the same few hundred, which its softmax takes away again."""
    for name in ("query", "key"):
        change(graph, f"{LAYER}.2.attention.self.{name}.bias", lambda values: values + 8)


def test_a_wrong_weight_of_a_16_bit_graph_is_no_fault_of_precision(
    graph: ModelProto, other: ModelProto, feeds: list[Feed]
) -> None:
    change(other, f"{LAYER}.3.intermediate.dense.weight/transposed", lambda values: values * np.float32(1.01))
    found = localise(graph, converted(other), feeds)
    assert found.node is not None
    assert found.node.node == f"{NODES}.3/intermediate/dense/MatMul"
    assert (found.jumps, found.keep_fp32) == (1, None)


def test_a_softmax_left_in_fp16_is_found(graph: ModelProto, other: ModelProto, feeds: list[Feed]) -> None:
    softmax = f"{NODES}.2/attention/self/Softmax"
    for each in (graph, other):
        large_scores(each)
    whole = tuple(f"{NODES}.2/attention/self/{name}" for name in ("Softmax", "Add", "Div"))
    found = localise(graph, converted(other, whole), feeds)
    assert found.node is not None
    assert (found.node.node, found.node.type, found.block) == (softmax, "fp16", f"{LAYER}.2")
    assert not found.node.grows
    assert found.keep_fp32 is not None
    assert found.keep_fp32.repairs, found.keep_fp32
    assert len(found.keep_fp32.patterns) < 12


def test_a_sound_softmax_that_magnifies_its_scores_is_found(
    graph: ModelProto, other: ModelProto, feeds: list[Feed]
) -> None:
    """It runs in FP32, but what computes its scores does not."""
    for each in (graph, other):
        large_scores(each)
    found = localise(graph, converted(other), feeds)
    assert found.node is not None
    assert found.node.node == f"{NODES}.2/attention/self/Softmax"
    assert (found.jumps, found.node.grows, found.node.type) == (0, True, "fp32")
    assert found.node.own_error < found.node.limit < found.node.relative_error
    assert found.keep_fp32 is not None
    assert found.keep_fp32.repairs, found.keep_fp32


def test_a_normalisation_left_in_fp16_is_found(
    graph: ModelProto, other: ModelProto, feeds: list[Feed]
) -> None:
    """All features lie about 1,000, which FP32 takes away again; FP16 has steps of 0.5 there."""
    norm = f"{NODES}.4/output/LayerNorm/LayerNormalization"
    for each in (graph, other):
        change(each, f"{LAYER}.4.output.dense.bias", lambda values: values + 1000)
    low = converted(other, (norm, f"{NODES}.4/output/Add", f"{NODES}.4/output/dense/Add"))
    found = localise(graph, low, feeds)
    assert found.node is not None
    assert (found.node.node, found.node.type, found.block) == (norm, "fp16", f"{LAYER}.4")
    assert found.keep_fp32 is not None
    assert norm in found.keep_fp32.patterns
    assert found.keep_fp32.repairs, found.keep_fp32


def test_the_result_is_plain_json(graph: ModelProto, other: ModelProto, feeds: list[Feed]) -> None:
    for each in (graph, other):
        large_values(each, 200_000)
    found = localise(graph, converted(other), feeds)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["sentence"] == found.sentence
    assert data["keep_fp32"]["line"].startswith("--keep-fp32 bert/")
    assert [block["block"] for block in data["blocks"]][-1] == "classifier"
    assert data["node"]["own_error"] == "inf"


def test_graphs_of_other_models_and_no_rows_are_refused(
    graph: ModelProto, other: ModelProto, feeds: list[Feed]
) -> None:
    with pytest.raises(InputError, match="no rows"):
        localise(graph, other, [])
    for number, node in enumerate(other.graph.node):
        node.name = f"n{number}"
    with pytest.raises(InputError, match=r"0 of the \d+ nodes are in both graphs"):
        localise(graph, other, feeds)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of six layers, and the checkpoint beside it."""
    folder = tmp_path_factory.mktemp("localise_stage")
    tokenizer = models.small_tokenizer(folder, WORDS)
    config = BertConfig(
        vocab_size=tokenizer.vocabulary_size, hidden_size=64, num_hidden_layers=6, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=32, labels=("a", "b", "c"),
    )  # fmt: skip
    save_checkpoint(folder / "checkpoint", models.classifier(config), config, tokenizer)
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    export_checkpoint(folder / "checkpoint", folder / "bundle")
    return folder


WORDS = ("who", "where", "is", "the", "river", "king", "of")
TEXTS = ("who is the king", "where is the river of the king of the river", "who", "the river is where")


def parity_inputs(bundle: Bundle, file: Path) -> ParityInputs:
    texts = file.read_text(encoding="utf-8").splitlines()
    return ParityInputs(texts, None, None, bundle.tokenizer.encode(texts), bundle.tokenizer.pad_id)


def changed_bundle(
    source: Path, folder: Path, name: str, change_graph: Callable[[ModelProto], None]
) -> Bundle:
    """A copy of the bundle with a changed graph that no hash gives away."""
    import shutil

    shutil.copytree(source / "bundle", folder)
    graph = onnx.load(folder / name)
    change_graph(graph)
    onnx.save(graph, folder / name)
    bundle = Bundle.open(folder)
    for stage, record in bundle.manifest.stages.items():
        bundle.record(
            stage, inputs=record.inputs, outputs=record.outputs, tools=record.tools,
            settings=record.settings, results=record.results, seconds=record.seconds,
        )  # fmt: skip
    return Bundle.open(folder)


def test_a_stage_of_a_bundle_is_compared_with_what_it_was_made_from(source: Path, tmp_path: Path) -> None:
    weight = f"{LAYER}.3.output.dense.weight/transposed"

    def scaled(graph: ModelProto) -> None:
        change(graph, weight, lambda values: values * np.float32(1.01))

    bundle = changed_bundle(source, tmp_path / "bundle", "model.onnx", scaled)
    assert {EXPORT, CONVERT} <= bundle.manifest.stages.keys()
    inputs = parity_inputs(bundle, source / "texts.txt")
    found = localise_stage(bundle, "onnx-fp32", inputs, [1, 0], null_progress)
    assert found is not None
    assert found.node is not None
    assert (found.block, found.texts) == (f"{LAYER}.3", 2)
    assert found.node.node == f"{NODES}.3/output/dense/MatMul"
    low = localise_stage(bundle, "onnx-fp16", inputs, [1, 0], null_progress)
    assert low is not None
    assert low.block == f"{LAYER}.3"


def test_a_sound_bundle_has_no_jump(source: Path) -> None:
    bundle = Bundle.open(source / "bundle")
    inputs = parity_inputs(bundle, source / "texts.txt")
    for stage in ("onnx-fp32", "onnx-fp16"):
        found = localise_stage(bundle, stage, inputs, range(4), null_progress)
        assert found is not None
        assert found.node is None, found.sentence
    assert localise_stage(bundle, "triton", inputs, [0], null_progress) is None
    assert localise_stage(bundle, "onnx-fp16", inputs, [], null_progress) is None


def test_without_its_checkpoint_an_fp32_graph_has_no_reference(source: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(source / "bundle")
    inputs = parity_inputs(bundle, source / "texts.txt")
    missing = tmp_path / "gone"
    assert localise_stage(bundle, "onnx-fp32", inputs, [0], null_progress, missing) is None
