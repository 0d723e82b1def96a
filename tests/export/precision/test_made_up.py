"""Inputs made from the vocabulary: what they are, what a conversion finds on them, and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from tokenizers import ByteLevelBPETokenizer, processors

from bertmp import convert, explain, export_checkpoint
from bertmp.core.errors import InputError
from bertmp.data.tokenizer import Tokenizer
from bertmp.export.precision.apply import apply_plan
from bertmp.export.precision.calibration import Calibration, read_calibration
from bertmp.export.precision.fp16_emulation import Evaluator
from bertmp.export.precision.graph_inputs import UnknownInput, greatest_length
from bertmp.export.precision.made_up import made_up_inputs
from bertmp.export.precision.plan import PrecisionPlan
from tests.conftest import RunBertmp
from tests.export.conftest import POSITIONS, Questions
from tests.export.overflowing import LAYER, large_residual, large_values
from tests.export.precision.test_calibration import BERT, IDS, reader
from tests.export.precision_graphs import chain
from tests.models import small_tokenizer

SAYS = "inputs made from the vocabulary; --calibration FILE for your texts"


def residual(largest: float) -> Callable[[ModelProto], None]:
    return lambda graph: large_residual(graph, largest, 10.0)


@pytest.mark.parametrize(
    ("change", "overflows"),
    [(large_values, True), (residual(100_000), True), (lambda graph: None, False)],
    ids=["values x 20000", "large residual", "as it is"],
)
def test_a_conversion_without_texts_is_finite_on_texts(
    change: Callable[[ModelProto], None], overflows: bool, questions: Questions, tmp_path: Path
) -> None:
    graph = questions.graph()
    change(graph)
    onnx.save(graph, tmp_path / "in.onnx")
    made = convert(tmp_path / "in.onnx", tmp_path / "out.onnx", tokenizer=questions.bundle)
    (note,) = made.notes
    assert note.startswith("ranges: measured on ")
    assert note.endswith(SAYS)
    plan = PrecisionPlan.load(made.plan)
    assert plan.ranges is not None
    assert plan.ranges.source == "vocabulary"
    assert plan.ranges.file == "tokenizer.json"
    assert (plan.search, plan.rewrites) == (None, ())

    texts = Evaluator(graph, read_calibration(questions.texts, questions.bundle, graph))
    low = plan.with_precision([n.name for n in plan.nodes if n.precision != "integer"], "fp16")
    assert texts.measure(low).finite is not overflows
    found = texts.measure(plan)
    assert found.finite
    assert found.flips == 0
    assert found.max_error < 0.02
    kept = [n for n in plan.kept_fp32() if any(reason.rule == "range" for reason in n.reasons)]
    assert bool(kept) is overflows
    assert all(f"layer.{LAYER}" in n.name or "LayerNorm" in n.name for n in kept)
    assert all("on made-up inputs" in r.sentence for n in kept for r in n.reasons if r.rule == "range")


def test_an_export_without_texts_measures_and_says_so(questions: Questions, tmp_path: Path) -> None:
    result = export_checkpoint(questions.checkpoint, tmp_path / "bundle")
    assert any(note.endswith(SAYS) for note in result.notes)
    recorded = json.loads((result.bundle / "manifest.json").read_text())["stages"]["convert"]["results"]
    assert recorded["ranges"]["source"] == "vocabulary"
    assert recorded["ranges"]["headroom"] > 4


def test_the_commands_say_what_they_measured_on(
    questions: Questions, run_bertmp: RunBertmp, tmp_path: Path
) -> None:
    source = questions.bundle / "model.onnx"
    done = run_bertmp("convert", source, tmp_path / "out.onnx", "--explain")
    assert done.returncode == 0, done.stderr
    assert sum(line.endswith(SAYS) for line in done.stdout.splitlines()) == 1
    assert "Headroom on " in done.stdout
    assert "least headroom on " in done.stdout
    shown = run_bertmp("explain", source)
    assert shown.returncode == 0, shown.stderr
    assert sum(line.endswith(SAYS) for line in shown.stdout.splitlines()) == 1
    assert "inputs made from the vocabulary\n" in shown.stdout


def test_rows_have_several_lengths_special_tokens_padding_and_both_types(questions: Questions) -> None:
    made_up = made_up_inputs(questions.graph(), questions.bundle)
    again = made_up_inputs(questions.graph(), questions.bundle)
    tokenizer = Tokenizer.load(questions.bundle, POSITIONS)
    first, last = tokenizer.id_of("[CLS]"), tokenizer.id_of("[SEP]")
    special = {first, last, *map(tokenizer.id_of, ("[PAD]", "[UNK]", "[MASK]"))}
    rows = 0
    for feed, same, mask in zip(made_up.feeds, again.feeds, made_up.masks, strict=True):
        assert (feed["input_ids"] == same["input_ids"]).all()
        assert (feed["attention_mask"] == mask).all()
        for ids, types, kept in zip(feed["input_ids"], feed["token_type_ids"], mask, strict=True):
            rows += 1
            ids, types = ids[kept], types[kept]
            assert (ids[0], ids[-1]) == (first, last)
            inner = set(ids[1:-1].tolist()) - ({last} if types.any() else set())
            assert not inner & special
            if types.any():
                assert ids[types == 0][-1] == last
    assert rows == made_up.texts
    assert {feed["input_ids"].shape[1] for feed in made_up.feeds} == {8, 32, POSITIONS}
    assert any(not mask.all() for mask in made_up.masks)
    assert any(feed["token_type_ids"].any() for feed in made_up.feeds)


def test_without_a_tokenizer_the_table_of_embeddings_is_the_vocabulary(tmp_path: Path) -> None:
    graph = reader(BERT, rows=50)
    made_up = made_up_inputs(graph, tmp_path)
    assert (made_up.file, made_up.sha256) == ("table", "")
    drawn = np.concatenate(
        [feed["input_ids"][mask] for feed, mask in zip(made_up.feeds, made_up.masks, strict=True)]
    )
    assert drawn.min() >= 1
    assert 40 < drawn.max() < 50


def test_ids_beyond_the_table_are_not_drawn(tmp_path: Path) -> None:
    small_tokenizer(tmp_path)
    made_up = made_up_inputs(reader(BERT, rows=20), tmp_path)
    assert made_up.file == "vocab.txt"
    assert max(feed["input_ids"].max() for feed in made_up.feeds) < 20


def test_a_graph_of_fixed_shape_gets_its_shape(tmp_path: Path) -> None:
    made_up = made_up_inputs(reader(BERT, batch=2, length=6), tmp_path)
    assert {feed["input_ids"].shape for feed in made_up.feeds} == {(2, 6)}


def test_an_input_without_a_role_leaves_the_static_plan(tmp_path: Path, run_bertmp: RunBertmp) -> None:
    graph = chain(["MatMul", "LayerNormalization", "MatMul", "Softmax", "MatMul"])
    with pytest.raises(UnknownInput):
        made_up_inputs(graph, tmp_path)
    onnx.save(graph, tmp_path / "in.onnx")
    done = run_bertmp("convert", tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("ranges: ")]
    assert len(lines) == 1
    assert lines[0].startswith(
        "ranges: not measured, the graph's input 'x' is not a text encoder's by its name"
    )
    plan = PrecisionPlan.load(tmp_path / "out.precision-plan.json")
    assert plan.ranges is None
    assert {n.op for n in plan.kept_fp32()} == {"LayerNormalization", "Softmax"}
    assert explain(tmp_path / "in.onnx").calibration is None


def test_a_role_that_is_given_is_fed(tmp_path: Path) -> None:
    onnx.save(reader({"x": TensorProto.INT64, "y": TensorProto.INT64}), tmp_path / "in.onnx")
    made = convert(tmp_path / "in.onnx", tmp_path / "out.onnx", inputs=("ids=x", "mask=y"))
    assert made.notes[-1].endswith(SAYS)
    with pytest.raises(InputError, match="no input 'z'"):
        convert(tmp_path / "in.onnx", tmp_path / "out.onnx", inputs=("ids=z",))


def test_a_graph_that_does_not_run_leaves_the_static_plan(tmp_path: Path) -> None:
    """A row of the smallest length is too long for it."""
    graph = reader(IDS)
    graph.graph.node.append(helper.make_node("Reshape", ["t0", "two"], ["t1"], name="reshape"))
    graph.graph.initializer.append(helper.make_tensor("two", TensorProto.INT64, [3], [1, 2, 1]))
    graph.graph.output[0].CopyFrom(helper.make_tensor_value_info("t1", TensorProto.FLOAT, [1, 2, 1]))
    onnx.save(graph, tmp_path / "in.onnx")
    made = convert(tmp_path / "in.onnx", tmp_path / "out.onnx")
    (note,) = made.notes
    assert note.startswith("ranges: not measured, the graph does not run on inputs made from the vocabulary")
    assert made.planned.plan.ranges is None
    assert made.graph.is_file()


def test_a_tokenizer_that_is_named_must_be_there(questions: Questions, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer for the examples"):
        convert(questions.bundle / "model.onnx", tmp_path / "out.onnx", tokenizer=tmp_path)
    assert not list(tmp_path.glob("out*"))


def roberta(folder: Path) -> None:
    """A byte-level tokenizer with RoBERTa's special tokens, and the settings of a model of 32 tokens."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        ["the cat sat on the mat"] * 9, vocab_size=280, special_tokens=["<s>", "<pad>", "</s>", "<unk>"]
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "roberta", "max_position_embeddings": 34}')


def frames(found: Calibration) -> set[tuple[int, int]]:
    """First and last id of every row; checks that padding is 1, and nothing else."""
    ends = set()
    for feed, mask in zip(found.feeds, found.masks, strict=True):
        for ids, kept in zip(feed["input_ids"], mask, strict=True):
            assert (ids[~kept] == 1).all()
            assert 1 not in ids[kept]
            ends.add((int(ids[kept][0]), int(ids[kept][-1])))
    return ends


def test_any_tokenizer_calibrates_with_its_own_special_tokens(tmp_path: Path) -> None:
    roberta(tmp_path)
    assert greatest_length(tmp_path) == 32
    (tmp_path / "texts.txt").write_text("the cat\nthe mat sat on a cat\n", encoding="utf-8")
    graph = reader({**IDS, "attention_mask": TensorProto.INT64}, rows=300)
    texts, made_up = (
        read_calibration(tmp_path / "texts.txt", tmp_path, graph),
        made_up_inputs(graph, tmp_path),
    )
    for found in (texts, made_up):
        assert frames(found) == {(0, 2)}
        assert max(mask.shape[1] for mask in found.masks) == 32
    pair = Tokenizer.load_any(tmp_path).framed([[10, 11], [12]])
    assert pair.input_ids == [0, 10, 11, 2, 2, 12, 2]
    onnx.save(graph, tmp_path / "in.onnx")
    made = convert(tmp_path / "in.onnx", tmp_path / "out.onnx", calibration=tmp_path / "texts.txt")
    assert made.planned.plan.ranges is not None
    assert made.planned.plan.ranges.source == "calibration"


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_config.json": {"pad_token": "<unk>"}},
        {"special_tokens_map.json": {"pad_token": {"content": "<unk>"}}},
        {"config.json": {"pad_token_id": 3}},
    ],
)
def test_the_padding_token_is_the_one_that_the_settings_name(settings: dict, tmp_path: Path) -> None:
    roberta(tmp_path)
    assert Tokenizer.load_any(tmp_path).pad_id == 1
    for name, content in settings.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert Tokenizer.load_any(tmp_path).pad_id == 3


def test_the_converted_graph_is_the_plans(questions: Questions, tmp_path: Path) -> None:
    """A plan made without texts is applied like any other."""
    made = convert(questions.bundle / "model.onnx", tmp_path / "out.onnx")
    plan = PrecisionPlan.load(made.plan)
    assert apply_plan(questions.graph(), plan).SerializeToString() == made.planned.graph.SerializeToString()
