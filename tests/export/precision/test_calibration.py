"""Texts as a graph's inputs: padding and length extremes among them, and bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from bertmp import convert
from bertmp.core.errors import InputError
from bertmp.data.tokenizer import Tokenizer
from bertmp.export.precision.calibration import read_calibration
from bertmp.export.precision.fp16_emulation import Evaluator
from bertmp.export.precision.ranges import measure
from tests.conftest import RunBertmp
from tests.export.conftest import POSITIONS, Questions
from tests.export.precision_graphs import Builder, make_plan, tensor
from tests.models import small_tokenizer

WORDS = ("a", "cat", "sat", "on", "the", "mat")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer for WORDS."""
    small_tokenizer(tmp_path, WORDS)
    return tmp_path


def reader(
    names: dict[str, int], batch: int | str = "batch", length: int | str = "length", rows: int = 99
) -> ModelProto:
    """A graph that looks its first input up in a table of `rows` rows, and adds the others."""
    values = [helper.make_tensor_value_info(name, kind, [batch, length]) for name, kind in names.items()]
    table = helper.make_tensor("table", TensorProto.FLOAT, [rows, 1], np.arange(rows, dtype=np.float32))
    nodes = [helper.make_node("Gather", ["table", values[0].name], ["t0"], name="gather")]
    for place, value in enumerate(values[1:], 1):
        nodes += [
            helper.make_node("Cast", [value.name], [f"c{place}"], name=f"cast{place}", to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", [f"c{place}", "last"], [f"u{place}"], name=f"unsqueeze{place}"),
            helper.make_node("Add", [f"t{place - 1}", f"u{place}"], [f"t{place}"], name=f"add{place}"),
        ]
    out = helper.make_tensor_value_info(f"t{len(values) - 1}", TensorProto.FLOAT, [batch, length, 1])
    last = helper.make_tensor("last", TensorProto.INT64, [1], [-1])
    graph = helper.make_graph(nodes, "reader", values, [out], [table, last])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


IDS = {"input_ids": TensorProto.INT64}
BERT = {**IDS, "attention_mask": TensorProto.INT64, "token_type_ids": TensorProto.INT64}


def texts_in(folder: Path, *lines: str) -> Path:
    (folder / "texts.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder / "texts.txt"


def test_each_text_runs_alone_padded_and_at_the_greatest_length(questions: Questions) -> None:
    calibration = read_calibration(questions.texts, questions.bundle, questions.graph())
    assert calibration.texts == 16
    tokenizer = Tokenizer.load(questions.bundle, POSITIONS)
    alone = {tuple(row.input_ids) for row in tokenizer.encode(questions.texts.read_text().splitlines())}
    rows = [
        (tuple(ids[:length].tolist()), len(ids))
        for feed in calibration.feeds
        for ids, length in zip(feed["input_ids"], feed["attention_mask"].sum(1), strict=True)
    ]
    assert {ids for ids, width in rows if len(ids) == width} >= alone
    longest = max(map(len, alone))
    padded = [ids for ids, width in rows if width == longest and len(ids) < width]
    assert min(map(len, padded)) == min(map(len, alone))
    full, empty = (len(ids) for ids, width in rows if width == POSITIONS)
    assert full == POSITIONS
    assert empty == min(map(len, alone))
    for feed, mask in zip(calibration.feeds, calibration.masks, strict=True):
        assert (feed["attention_mask"] == mask).all()


def test_the_row_of_nearly_all_padding_gives_ranges_and_no_error(questions: Questions) -> None:
    """Its answer is that of the example alone, however long the row is."""
    graph = questions.graph()
    calibration = read_calibration(questions.texts, questions.bundle, graph)
    assert calibration.error_feeds == len(calibration.feeds) - 1
    (kept,) = calibration.masks[-1].sum(1)
    assert (calibration.masks[-1].shape, calibration.masks[-2].shape) == ((1, POSITIONS), (1, POSITIONS))
    assert kept < POSITIONS / 2
    assert calibration.masks[-2].all()
    ranges = measure(graph, calibration)
    assert all(len(values) == len(calibration.feeds) for values in ranges.by_feed.values())
    evaluator, plan = Evaluator(graph, calibration), make_plan(graph)
    assert evaluator.measure(plan) == evaluator.measure(plan, range(len(calibration.feeds) - 1))


def test_a_large_file_gives_the_same_texts_every_time_and_its_extremes(folder: Path) -> None:
    lines = [f"the cat {'sat ' * (number % 7)}" for number in range(500)]
    data = texts_in(folder, *lines[:250], "a", *lines[250:], "cat " * 30)
    first, again = (read_calibration(data, folder, reader(IDS), texts=8) for _ in range(2))
    assert first.texts == 8
    for one, other in zip(first.feeds, again.feeds, strict=True):
        assert (one["input_ids"] == other["input_ids"]).all()
    assert {feed["input_ids"].shape[1] for feed in first.feeds} >= {3, 32}


def test_graphs_of_fixed_shape_and_of_other_names_are_fed(folder: Path) -> None:
    names = {
        "input_ids": TensorProto.INT32,
        "input_mask": TensorProto.INT32,
        "segment_ids": TensorProto.INT32,
    }
    graph = reader(names, batch=2, length=6)
    calibration = read_calibration(texts_in(folder, "the cat", "a mat on the mat on a mat"), folder, graph)
    for feed in calibration.feeds:
        assert list(feed) == list(names)
        assert {array.shape for array in feed.values()} == {(2, 6)}
        assert {array.dtype for array in feed.values()} == {np.dtype(np.int32)}
    assert measure(graph, calibration).largest["t2"] > 0


def test_pairs_become_two_segments(folder: Path) -> None:
    (folder / "pairs.tsv").write_text("text\ttext_pair\nthe cat\ta mat\n", encoding="utf-8")
    calibration = read_calibration(folder / "pairs.tsv", folder, reader(BERT))
    assert calibration.feeds[0]["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]


def test_what_is_no_text_encoder_is_refused(folder: Path) -> None:
    data = texts_in(folder, "the cat")
    pictures = reader({"pixels": TensorProto.INT64})
    with pytest.raises(InputError, match="the graph's input 'pixels' is not a text encoder's"):
        read_calibration(data, folder, pictures)
    with pytest.raises(InputError, match="takes no token ids"):
        read_calibration(data, folder, reader({"attention_mask": TensorProto.INT64}))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "the data file has no rows"),
        (None, {}, "no such data file"),
        ("the cat\n", {"tokenizer": "nowhere"}, "no tokenizer for the examples"),
        ("the cat\n", {"rows": 6}, "the examples do not fit the graph's inputs"),
        ("the cat\n", {"max_error": -1.0}, "--max-error is -1.0"),
        ("the cat\n", {"headroom": 0.5}, "a headroom of 0.5 lets tensors overflow"),
        ("the cat\n", {"precision": "fp8"}, "unknown value 'fp8'"),
    ],
)
def test_bad_input_writes_nothing(content: str | None, options: dict, message: str, folder: Path) -> None:
    rows, tokenizer = options.pop("rows", 99), folder / options.pop("tokenizer", ".")
    onnx.save(reader(IDS, rows=rows), folder / "in.onnx")
    if content is not None:
        (folder / "texts.txt").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        convert(
            folder / "in.onnx",
            folder / "out.onnx",
            calibration=folder / "texts.txt",
            tokenizer=tokenizer,
            **options,
        )
    assert not list(folder.glob("out*"))


def test_bad_options_are_one_line(folder: Path, run_bertmp: RunBertmp) -> None:
    onnx.save(reader(IDS), folder / "in.onnx")
    onnx.save(reader(IDS, rows=50), folder / "other.onnx")
    plan = convert(folder / "other.onnx", folder / "other.fp16.onnx").plan
    before = sorted(folder.iterdir())
    for options, message in (
        (["--max-error", "0.1"], "an error is measured on examples, and there are none (--max-error)"),
        (["--plan", plan], f"the plan is for another graph ({plan})"),
        (["--plan", plan, "--keep-fp32", "Add"], "the plan has decided that already (--keep-fp32)"),
    ):
        done = run_bertmp("convert", folder / "in.onnx", folder / "out.onnx", *options)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {message}: ")
        assert done.stderr.count("\n") == 1
        assert sorted(folder.iterdir()) == before


INT64 = TensorProto.INT64


@pytest.mark.parametrize(
    "names",
    [
        ("input_ids:0", "input_mask:0", "segment_ids:0"),
        ("input_word_ids", "input_mask", "input_type_ids"),
        ("Input-Token", "mask", "Input-Segment"),
        ("input.1", "attention_mask.1", "token_type_ids.1"),
    ],
)
def test_inputs_are_known_by_the_names_of_other_frameworks(folder: Path, names: tuple[str, ...]) -> None:
    (folder / "a.txt").write_text("a cat sat\nthe mat\n")
    found = read_calibration(folder / "a.txt", folder, reader(dict.fromkeys(names, INT64)))
    ours = ("input_ids", "attention_mask", "token_type_ids")
    expected = read_calibration(folder / "a.txt", folder, reader(dict.fromkeys(ours, INT64)))
    for feed, other in zip(found.feeds, expected.feeds, strict=True):
        for name, known in zip(names, ours, strict=True):
            np.testing.assert_array_equal(feed[name], other[known])


def test_an_input_of_another_name_takes_the_role_that_is_given(folder: Path) -> None:
    (folder / "a.txt").write_text("a cat sat\nthe mat\n")
    graph = reader({"x": INT64, "y": INT64})
    with pytest.raises(InputError, match=r"--input ROLE=x"):
        read_calibration(folder / "a.txt", folder, graph)
    found = read_calibration(folder / "a.txt", folder, graph, names=("ids=x", "mask=y"))
    assert all(feed["y"].max() == 1 for feed in found.feeds)
    with pytest.raises(InputError, match="no input 'z'"):
        read_calibration(folder / "a.txt", folder, graph, names=("ids=z",))
    with pytest.raises(InputError, match="write ROLE=NAME"):
        read_calibration(folder / "a.txt", folder, graph, names=("what=x",))


@pytest.mark.parametrize("command", ["explain", "convert"])
def test_a_file_that_is_read_as_conll_is_said_to_be(
    questions: Questions, tmp_path: Path, run_bertmp: RunBertmp, command: str
) -> None:
    data = tmp_path / "words.txt"
    data.write_text("Anna\tB-PER\nsings\tO\n\nin\tO\nLima\tB-LOC\n")
    graph, target = questions.bundle / "model.onnx", tmp_path / "model.fp16.onnx"
    paths = [graph, target, "--tokenizer", questions.bundle] if command == "convert" else [graph]
    done = run_bertmp(command, *paths, "--calibration", data, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{data}: read as CoNLL, 2 sentences\n"
    json.loads(done.stdout)


def test_texts_are_truncated_where_the_graphs_positions_end(folder: Path) -> None:
    """The folder beside the graph knows no limit; the graph's table of positions is one."""
    g = Builder()
    length = g.node("Gather", g.node("Shape", "input_ids"), g.constant(1, np.int64))
    places = g.node("Range", g.constant(0, np.int64), length, g.constant(1, np.int64))
    vectors = g.node(
        "Add", g.node("Gather", g.drawn(120, 8), "input_ids"), g.node("Gather", g.drawn(20, 8), places)
    )
    inputs = [tensor("input_ids", ["batch", "length"], TensorProto.INT64)]
    onnx.save(g.model(g.product(vectors), inputs=inputs), folder / "in.onnx")
    (folder / "texts.txt").write_text("a cat sat\n" + "on the mat " * 30)
    result = convert(folder / "in.onnx", folder / "out.onnx", calibration=folder / "texts.txt")
    assert result.planned.plan.search is not None
    without = convert(folder / "in.onnx", folder / "out.onnx")
    assert without.planned.plan.ranges is not None


def test_a_tokenizer_of_another_vocabulary_is_said(folder: Path) -> None:
    """Its ids fit into the graph's table, so nothing else would show."""
    (folder / "texts.txt").write_text("a cat sat\n")
    seen: list[object] = []
    for rows in (99, 30522):
        graph = reader({"input_ids": TensorProto.INT64}, rows=rows)
        seen.clear()
        read_calibration(folder / "texts.txt", folder, graph, progress=lambda *state: seen.append(state[0]))
        said = [text for text in seen if "is it the graph's own?" in str(text)]
        assert bool(said) == (rows == 30522)
