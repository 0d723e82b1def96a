"""Predictions of real ONNX graphs of every head: those of transformers' pipelines, in the file's order."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import bertmp
from bertmp.core.errors import InputError
from bertmp.export.prediction import predict as predicting
from tests.conftest import RunBertmp
from tests.export.prediction.heads import CLASSES, ENTITIES, Heads

TEXTS = (
    "Ann Lee went to the river of Prague .",
    "no",
    "A much longer text, which goes on and on about nothing, and is cut where the model's positions end.",
    "Émile Zola's café — “naïve” 😀 ½ in Köln",
    "Bob",
    "not at all",  # shares a batch with the other short ones, which are padded
)
CLOSE = 2e-5


@pytest.fixture(scope="module")
def heads(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Heads:
    return Heads(tmp_path_factory.mktemp("heads"), minilm)


def write(path: Path, *rows: Any) -> Path:
    """JSON lines of texts, pairs of texts, or whole records."""
    named = [row if isinstance(row, dict) else {"text": row} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in named), encoding="utf-8")
    return path


def answers(bundle: Path, data: Path, **options: Any) -> list[dict[str, Any]]:
    """The rows that `predict` writes."""
    out = data.with_name("answers.jsonl")
    found = bertmp.predict(bundle, data=data, out=out, **options)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert found.texts == len(rows)
    assert found.tokens == sum(row["tokens"] for row in rows)
    assert found.truncated == sum(row["truncated"] for row in rows)
    return rows


def pipeline(task: str, checkpoint: Path, **settings: Any) -> Any:
    """Transformers' pipeline on the CPU, which truncates as the checkpoint says."""
    return transformers.pipeline(task, model=str(checkpoint), device="cpu", **settings)


@pytest.mark.parametrize("task", ["classification", "multi-label-classification"])
def test_labels_and_scores_are_those_of_the_pipeline(task: str, heads: Heads, tmp_path: Path) -> None:
    rows = answers(heads.bundle(task), write(tmp_path / "texts.jsonl", *TEXTS))
    several = task != "classification"
    ask = pipeline("text-classification", heads.checkpoint(task), top_k=None)
    wanted = ask(list(TEXTS), truncation=True, function_to_apply="sigmoid" if several else "softmax")
    for row, text, found in zip(rows, TEXTS, wanted, strict=True):
        scores = {one["label"]: one["score"] for one in found}
        assert row["text"] == text
        assert list(row["scores"]) == list(CLASSES)
        assert row["scores"] == pytest.approx(scores, abs=CLOSE)
        if several:
            assert row["labels"] == [name for name in CLASSES if scores[name] > 0.5]
        else:
            assert row["label"] == max(scores, key=scores.__getitem__)
            assert row["probability"] == row["scores"][row["label"]]
    assert [row["truncated"] for row in rows] == [False, False, True, False, False, False]
    assert rows[2]["tokens"] == 24


def test_the_threshold_decides_which_labels_apply(heads: Heads, tmp_path: Path) -> None:
    bundle, data = heads.bundle("multi-label-classification"), write(tmp_path / "texts.jsonl", *TEXTS)
    every, none = answers(bundle, data, threshold=0.0), answers(bundle, data, threshold=1.0)
    assert all(row["labels"] == list(CLASSES) for row in every)
    assert all(row["labels"] == [] for row in none)


def test_a_pair_is_answered_as_the_pipeline_does(heads: Heads, tmp_path: Path) -> None:
    pairs = [
        {"text": one, "text_pair": other} for one, other in zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True)
    ]
    data = write(tmp_path / "pairs.jsonl", *pairs)
    rows = answers(heads.bundle("classification", pairs=True), data)
    ask = pipeline("text-classification", heads.checkpoint("classification", pairs=True), top_k=None)
    for row, pair in zip(rows, pairs, strict=True):
        found = ask(pair, truncation=True)
        assert row["text_pair"] == pair["text_pair"]
        assert row["scores"] == pytest.approx({one["label"]: one["score"] for one in found}, abs=CLOSE)
    with pytest.raises(InputError, match="trained on pairs of texts"):
        answers(heads.bundle("classification", pairs=True), write(tmp_path / "single.jsonl", *TEXTS))


def test_a_regression_is_a_number(heads: Heads, tmp_path: Path) -> None:
    rows = answers(heads.bundle("regression"), write(tmp_path / "texts.jsonl", *TEXTS))
    ask = pipeline("text-classification", heads.checkpoint("regression"), function_to_apply="none")
    wanted = [one["score"] for one in ask(list(TEXTS), truncation=True)]
    assert [row["value"] for row in rows] == pytest.approx(wanted, abs=CLOSE)


def test_entities_are_those_of_the_pipeline_with_their_characters(heads: Heads, tmp_path: Path) -> None:
    rows = answers(heads.bundle("token-classification"), write(tmp_path / "texts.jsonl", *TEXTS))
    ask = pipeline(
        "token-classification", heads.checkpoint("token-classification"), aggregation_strategy="simple"
    )
    found = 0
    for row, text in zip(rows, TEXTS, strict=True):
        if row["truncated"]:  # the pipeline reads on in further windows
            continue
        wanted = ask(text)
        keys = ("label", "start", "end")
        assert [[one[key] for key in keys] for one in row["entities"]] == [
            [one["entity_group"], one["start"], one["end"]] for one in wanted
        ]
        for one, other in zip(row["entities"], wanted, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=CLOSE)
            assert one["text"] == text[one["start"] : one["end"]]
        found += len(wanted)
    assert found > 3
    assert {one["label"] for row in rows for one in row["entities"]} <= {
        label.partition("-")[2] for label in ENTITIES
    }


def test_masks_are_filled_as_by_the_pipeline(heads: Heads, tmp_path: Path) -> None:
    texts = ("The [MASK] is red .", "[MASK] ! Ça va [MASK] ?")
    rows = answers(heads.bundle("masked-lm"), write(tmp_path / "texts.jsonl", *texts))
    ask = pipeline("fill-mask", heads.checkpoint("masked-lm"))
    for row, text in zip(rows, texts, strict=True):
        wanted = ask(text)
        wanted = wanted if isinstance(wanted[0], list) else [wanted]
        assert len(row["fills"]) == len(wanted)
        for fill, candidates in zip(row["fills"], wanted, strict=True):
            assert text[fill["start"] : fill["end"]] == "[MASK]"
            names = ask.tokenizer.convert_ids_to_tokens([one["token"] for one in candidates])
            assert [one["token"] for one in fill["candidates"]] == names
            scores = [one["score"] for one in candidates]
            assert [one["score"] for one in fill["candidates"]] == pytest.approx(scores, abs=CLOSE)
    with pytest.raises(InputError, match=r"a text without \[MASK\].*line 2"):
        answers(heads.bundle("masked-lm"), write(tmp_path / "none.jsonl", texts[0], "nothing"))


@torch.no_grad()
@pytest.mark.parametrize("task", ["next-sentence", "pretraining"])
def test_the_next_sentence_is_judged_as_by_transformers(task: str, heads: Heads, tmp_path: Path) -> None:
    pairs = [{"text": "Who [MASK] it ?", "text_pair": "I [MASK] ."}, {"text": "a", "text_pair": "b c"}]
    rows = answers(heads.bundle(task), write(tmp_path / "pairs.jsonl", *pairs))
    names = {"next-sentence": "BertForNextSentencePrediction", "pretraining": "BertForPreTraining"}
    model = getattr(transformers, names[task]).from_pretrained(heads.checkpoint(task)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(heads.checkpoint(task))
    for row, pair in zip(rows, pairs, strict=True):
        made = model(**tokenizer(pair["text"], pair["text_pair"], return_tensors="pt"))
        logits = made.logits if task == "next-sentence" else made.seq_relationship_logits
        wanted = logits.softmax(-1)[0].tolist()
        answer = row if task == "next-sentence" else row["next_sentence"]
        assert answer["scores"] == pytest.approx({"is_next": wanted[0], "not_next": wanted[1]}, abs=CLOSE)
    if task == "pretraining":
        assert [[fill["field"] for fill in row["fills"]] for row in rows] == [["text", "text_pair"], []]
    else:
        with pytest.raises(InputError, match="trained on pairs of texts"):
            answers(heads.bundle(task), write(tmp_path / "single.jsonl", "alone"))


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoder_gives_embeddings(pooling: str, heads: Heads, tmp_path: Path) -> None:
    rows = answers(heads.bundle("encoder"), write(tmp_path / "texts.jsonl", *TEXTS), pooling=pooling)
    model = transformers.BertModel.from_pretrained(heads.checkpoint("encoder")).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(heads.checkpoint("encoder"))
    for row, text in zip(rows, TEXTS, strict=True):
        states = model(**tokenizer(text, truncation=True, return_tensors="pt")).last_hidden_state[0]
        wanted = states[0] if pooling == "cls" else states.mean(0)
        assert row["embedding"] == pytest.approx(wanted.tolist(), abs=5e-5)


def test_order_is_kept_over_chunks_and_batches(
    heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{'word ' * (number * 7 % 19)}{number}" for number in range(100)]
    data = write(tmp_path / "texts.jsonl", *texts)
    whole = answers(heads.bundle("classification"), data)
    monkeypatch.setattr(predicting, "CHUNK_ROWS", 7)
    seen: list[tuple[int | None, int | None]] = []
    parts = answers(
        heads.bundle("classification"),
        data,
        progress=lambda _, done=None, total=None: seen.append((done, total)),
    )
    assert [row["text"] for row in whole] == [row["text"] for row in parts] == texts
    for one, other in zip(whole, parts, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
    assert seen[-1] == (100, 100)
    assert len(seen) > 15


@pytest.mark.parametrize(
    "task", ["classification", "token-classification", "masked-lm", "regression", "encoder"]
)
def test_both_precisions_of_a_bundle_stand_side_by_side(task: str, heads: Heads, tmp_path: Path) -> None:
    bundle = heads.bundle(task)
    data = write(tmp_path / "texts.jsonl", *(f"{text} [MASK]" for text in TEXTS[:2] + TEXTS[3:]))
    rows = answers(bundle, data, against=bundle)
    fp32, fp16 = answers(bundle, data), answers(bundle, data, precision="fp16")
    for row, one, other in zip(rows, fp32, fp16, strict=True):
        assert row["against"] == {name: value for name, value in other.items() if name != "text"}
        assert {name: row[name] for name in one} == one
        assert 0 < row["difference"] < 0.05
    summary = bertmp.predict(bundle, data=data, out=tmp_path / "again.jsonl", against=bundle).against
    assert summary is not None
    assert summary.precision == "fp16"
    largest = max(rows, key=lambda row: row["difference"])
    assert summary.largest_difference == largest["difference"]
    assert rows[summary.line - 1] == largest
    if task in ("regression", "encoder"):
        assert summary.changed is None
    else:
        assert summary.changed == sum(row["changed"] for row in rows)


def test_another_bundle_is_compared_by_the_labels_names(heads: Heads, tmp_path: Path) -> None:
    data = write(tmp_path / "texts.jsonl", *TEXTS)
    one = heads.bundle("classification")
    other = heads.bundle("classification", seed=3, labels=CLASSES[::-1])
    rows = answers(one, data, against=other)
    wanted = answers(other, data)
    for row, answer in zip(rows, wanted, strict=True):
        assert row["against"]["scores"] == answer["scores"]
        assert row["changed"] == (row["label"] != answer["label"])
        difference = max(abs(row["scores"][name] - answer["scores"][name]) for name in CLASSES)
        assert row["difference"] == difference
    assert any(row["changed"] for row in rows)


@pytest.mark.parametrize(("kind", "delimiter"), [(".tsv", "\t"), (".csv", ",")])
def test_tables_hold_the_same_answers(kind: str, delimiter: str, heads: Heads, tmp_path: Path) -> None:
    texts = [
        'He said "no", twice',
        '"quoted"',
        "plain",
        *(["two\nlines\tand a tab"] if kind == ".csv" else []),
    ]
    data, bundle = write(tmp_path / "texts.jsonl", *texts), heads.bundle("classification")
    wanted = answers(bundle, data, against=bundle)
    bertmp.predict(bundle, data=data, out=tmp_path / f"answers{kind}", against=bundle)
    with (tmp_path / f"answers{kind}").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter=delimiter))
    for row, answer in zip(rows, wanted, strict=True):
        assert row["text"] == answer["text"]
        assert row["label"] == answer["label"]
        assert float(row["probability"]) == answer["probability"]
        assert json.loads(row["scores"]) == answer["scores"]
        assert row["truncated"] == "false"
        assert row["against_label"] == answer["against"]["label"]
        assert float(row["difference"]) == answer["difference"]
    again = bertmp.predict(bundle, data=tmp_path / f"answers{kind}", out=tmp_path / "again.jsonl")
    assert again.texts == len(texts)
    assert [json.loads(line)["text"] for line in (tmp_path / "again.jsonl").open()] == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": " "}\n', "no text (…, line 2): fill it in"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "a", "text_pair": "b"}\n',
            "no text_pair (…, line 1): fill it in",
        ),
        (
            "a.jsonl",
            '{"text": "a", "text_pair": "b"}\n{"text": "a"}\n',
            "no text_pair (…, line 2): fill it in",
        ),
        ("a.jsonl", '{"other": "a"}\n', "the file has no column 'text' (…): add it"),
        ("a.jsonl", '{"other": "a"}\n{"text": "b"}\n', "no text (…, line 1): fill it in"),
        ("a.jsonl", '{"text": "a\\tb"}\n', "a tab or line break, which a .tsv file cannot hold (…, line 1)"),
        ("a.txt", "\n\n", "the data file has no rows (…)"),
        ("a.doc", "a\n", "unknown kind of data file '.doc' (…)"),
    ],
)
def test_bad_data_is_refused_before_anything_is_answered(
    name: str, content: str, message: str, heads: Heads, tmp_path: Path
) -> None:
    data, out = tmp_path / name, tmp_path / "out" / "answers.tsv"
    data.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        bertmp.predict(heads.bundle("classification"), data=data, out=out)
    assert message.replace("…", str(data)) in str(caught.value)
    assert not out.parent.exists()


def test_labels_of_any_kind_are_not_read(heads: Heads, tmp_path: Path) -> None:
    rows = [{"text": "a", "label": ["X", "Y"]}, {"text": "b", "label": None}, {"text": "c", "label": 1}]
    found = answers(heads.bundle("classification"), write(tmp_path / "texts.jsonl", *rows))
    assert [row["text"] for row in found] == ["a", "b", "c"]


def test_what_cannot_be_answered_or_compared_is_refused(heads: Heads, tmp_path: Path) -> None:
    data = write(tmp_path / "texts.jsonl", *TEXTS)
    bundle, plain = heads.bundle("classification"), heads.bundle("classification", precision="fp32")
    for options, message in (
        ({"bundle": plain, "precision": "fp16"}, "the bundle has no FP16 graph"),
        ({"precision": "bf16"}, "use --precision fp16"),
        ({"against": heads.bundle("regression")}, "the tasks differ: classification and regression"),
        ({"against": heads.bundle("classification", labels=("a", "b", "c"))}, "the labels differ"),
        ({"against": bundle, "against_precision": "fp32"}, "both are the bundle's FP32 graph"),
        ({"against_precision": "fp16"}, "name a bundle with --against"),
        ({"out": tmp_path / "answers.xlsx"}, "answers are not written as '.xlsx'"),
        ({"out": data}, "the answers would replace the texts"),
    ):
        with pytest.raises(InputError) as caught:
            bertmp.predict(**{"bundle": bundle, "data": data, "out": tmp_path / "out.jsonl", **options})
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl"]


def test_a_bf16_graph_that_onnx_runtime_does_not_load_is_refused_in_one_line(
    heads: Heads, tmp_path: Path
) -> None:
    bundle, data = heads.bundle("classification", precision="bf16"), write(tmp_path / "texts.jsonl", *TEXTS)
    with pytest.raises(InputError) as caught:
        answers(bundle, data, precision="bf16")
    assert str(caught.value) == (
        f"ONNX Runtime has no kernels for BF16 graphs on this machine ({bundle / 'model.bf16.onnx'}): "
        "use --precision fp32"
    )
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_stale_bundle_and_infinite_answers_leave_the_old_file(heads: Heads, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    data = write(tmp_path / "texts.jsonl", *TEXTS)
    bundle = shutil.copytree(heads.bundle("regression"), tmp_path / "bundle")
    (tmp_path / "answers.jsonl").write_text("old\n")
    graph = onnx.load(bundle / "model.onnx")
    (bias,) = (one for one in graph.graph.initializer if list(one.dims) == [1] and "bias" in one.name)
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * float("nan"), bias.name))
    onnx.save(graph, bundle / "model.onnx")
    with pytest.raises(InputError, match="the export stage is stale"):
        answers(bundle, data)
    opened = bertmp.export.bundle.Bundle.open(bundle)
    record = opened.manifest.stages["export"]
    record.outputs["model.onnx"] = opened.sha256("model.onnx")  # type: ignore[index]
    opened.manifest.save(bundle)
    with pytest.raises(InputError, match=r"the FP32 graph's answer is not a finite number .*line \d"):
        answers(bundle, data)
    assert (tmp_path / "answers.jsonl").read_text() == "old\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "bundle", "texts.jsonl"]


def test_the_command_prints_one_line_or_one_object(
    heads: Heads, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    bundle, data = heads.bundle("classification"), write(tmp_path / "texts.jsonl", *TEXTS)
    out = tmp_path / "answers.jsonl"
    done = run_bertmp("predict", bundle, "--data", data, "--out", out, "--against", bundle, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["texts"] == 6
    assert found["truncated"] == 1
    assert found["out"] == str(out)
    assert found["against"]["precision"] == "fp16"
    assert found["texts_per_second"] > 0
    assert found["provider"] != "CPU" or "FP16 weights with FP32 arithmetic" in found["notes"][0]
    assert len(out.read_text(encoding="utf-8").splitlines()) == 6
    done = run_bertmp("predict", bundle, "--data", data, "--out", out, "--against", bundle)
    assert (done.returncode, done.stderr) == (0, "")
    first, truncated, against, *_ = done.stdout.splitlines()
    assert first.startswith(f"{out}: 6 answers of {bundle} (classification, FP32, ")
    assert truncated == "1 of 6 texts were too long and were truncated"
    changed, largest = found["against"]["changed"], found["against"]["largest_difference"]
    assert against.startswith(f"against {bundle} (FP16): {changed} of 6 answers change; largest difference")
    assert f"{largest:.3g}, line {found['against']['line']}" in against
    assert len(out.read_text(encoding="utf-8").splitlines()) == 6
    done = run_bertmp("predict", bundle, "--data", tmp_path / "none.txt", "--out", out)
    assert done.returncode == 2
    assert done.stderr == f"error: no such data file ({tmp_path / 'none.txt'}): check the path\n"
