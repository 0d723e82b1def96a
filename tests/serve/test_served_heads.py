"""Every head over the wire: the answers are those that `predict` gives for the same bundle."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import bertmp
from bertmp import infer
from bertmp.core.errors import InputError
from bertmp.data.tokenizer import Tokenizer
from bertmp.export.bundle import Bundle
from bertmp.serve.client import Client
from bertmp.serve.parity_stage import TritonStage
from bertmp.serve.serve_options import ServeOptions
from bertmp.serve.served_tasks import COMMON, TASKS
from bertmp.serve.server import TritonServer
from tests.conftest import RunBertmp
from tests.export.prediction.heads import LENGTH, Heads
from tests.serve.bundles import deploy
from tests.serve.conftest import Served

pytestmark = pytest.mark.slow

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

PAIRS = ("pairs", "next-sentence")


@pytest.fixture(scope="module")
def heads(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Heads:
    return Heads(tmp_path_factory.mktemp("heads"), minilm)


def bundle_of(model: str, heads: Heads) -> Path:
    return heads.bundle(MODELS[model][0], precision="fp32", pairs=model == "pairs")


@pytest.fixture(scope="module")
def served(triton: None, heads: Heads, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a model of every head."""
    folder = tmp_path_factory.mktemp("served") / "repository"
    for model, (_, options) in MODELS.items():
        deploy(bundle_of(model, heads), model, folder, **options)
    for long_text in ("window", "refuse"):
        for task in ("classification", "token-classification", "regression", "encoder", "masked-lm"):
            deploy(heads.bundle(task, precision="fp32"), f"{task}-{long_text}", folder, long_text=long_text)
    with TritonServer(ServeOptions(folder, http_port=0, grpc_port=0, metrics_port=0)) as running:
        yield Served(folder, folder, running)


def texts_of(model: str) -> Sequence[str]:
    return MASKED if model in ("masked-lm", "pretraining") else TEXTS


def predicted(model: str, heads: Heads, folder: Path) -> list[dict[str, Any]]:
    """What `predict` answers to the texts."""
    data, out = folder / "texts.jsonl", folder / "answers.jsonl"
    seconds = SECONDS if model in PAIRS else [None] * len(TEXTS)
    rows = [
        {"text": text, **({} if second is None else {"text_pair": second})}
        for text, second in zip(texts_of(model), seconds, strict=False)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    bertmp.predict(bundle_of(model, heads), data=data, out=out, **MODELS[model][1])
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    for row in found:
        if "embedding" in row:
            vector = np.array(row["embedding"])
            row["embedding"] = list(vector / np.linalg.norm(vector))
    return found


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


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("model", MODELS)
def test_answers_over_the_wire_are_those_of_predict(
    served: Served, heads: Heads, tmp_path: Path, model: str, protocol: str
) -> None:
    wanted = predicted(model, heads, tmp_path)
    pairs = SECONDS if model in PAIRS else ()
    found = infer(model, texts_of(model), text_pair=pairs, protocol=protocol, url=served.url(protocol))
    assert any(row["truncated"] for row in wanted)
    for answer, row in zip(found, wanted, strict=True):
        given = answer.to_json()
        assert (given.pop("version"), given.pop("windows")) == (1, 1)
        assert_same(given, row)


def test_a_threshold_decides_which_labels_apply(served: Served) -> None:
    low, usual = (infer(name, TEXTS, url=served.url("grpc")) for name in ("multi-label-0.4", "multi-label"))
    for one, other in zip(low, usual, strict=True):
        assert one.labels == [name for name, score in one.scores.items() if score > 0.4]
        assert other.labels == [name for name, score in other.scores.items() if score > 0.5]
    assert [one.labels for one in low] != [one.labels for one in usual]


def pooled(bundle: Path, text: str, output: str) -> tuple[int, np.ndarray]:
    """The number of windows, and the mean of an output's rows over them, weighted by their tokens."""
    opened = Bundle.open(bundle)
    (row,) = Tokenizer.load(bundle, 512).encode([text])
    begin, *inner, end = row.input_ids
    space = LENGTH - 2
    starts = [*range(0, len(inner) - space, space - space // 4), len(inner) - space]
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    found = []
    for start in starts:
        ids = np.array([[begin, *inner[start : start + space], end]])
        feed = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        (states,) = session.run([output], feed)
        found.append(states[0] if opened.task != "encoder" else states[0].mean(axis=0))
    return len(starts), np.stack(found)


@pytest.mark.parametrize("task", ["classification", "regression", "encoder"])
def test_the_windows_of_a_long_text_are_pooled(served: Served, heads: Heads, task: str) -> None:
    output = "last_hidden_state" if task == "encoder" else "logits"
    count, rows = pooled(heads.bundle(task, precision="fp32"), LONG * 2, output)
    (whole,) = infer(f"{task}-window", [LONG * 2], url=served.url("grpc"))
    assert (whole.truncated, whole.windows) == (False, count)
    assert count > 2
    if task == "classification":
        powers = np.exp(rows)
        wanted = (powers / powers.sum(axis=1, keepdims=True)).mean(axis=0)
        assert list(whole.scores.values()) == pytest.approx(wanted.tolist(), abs=CLOSE)
        assert whole.label == list(whole.scores)[int(wanted.argmax())]
    elif task == "regression":
        assert whole.value == pytest.approx(float(rows.mean()), abs=CLOSE)
    else:
        mean = rows.mean(axis=0)
        assert whole.embedding == pytest.approx((mean / np.linalg.norm(mean)).tolist(), abs=CLOSE)
    short = infer(f"{task}-window", TEXTS[:1], url=served.url("grpc"))[0]
    plain = infer("embeddings" if task == "encoder" else task, TEXTS[:1], url=served.url("grpc"))[0]
    assert short.windows == 1
    assert_same(short.to_json(), plain.to_json())


def test_the_spans_of_windows_are_merged_by_their_characters(served: Served) -> None:
    text = " ".join([LONG] * 3)
    (whole,) = infer("token-classification-window", [text], url=served.url("grpc"))
    assert whole.windows > 3
    assert not whole.truncated
    ends = [(one["start"], one["end"]) for one in whole.entities]
    assert ends == sorted(ends)
    assert all(before[1] <= after[0] for before, after in pairwise(ends)), "no overlaps"
    assert max(end for _, end in ends) > len(LONG), "spans beyond the first window"
    for one in whole.entities:
        assert text[one["start"] : one["end"]] == one["text"]
    (filled,) = infer("masked-lm-window", [f"[MASK] {text} [MASK]"], url=served.url("grpc"))
    assert [fill["start"] for fill in filled.fills] == [0, len(text) + 8]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_long_text_is_refused_with_both_lengths(served: Served, protocol: str) -> None:
    assert infer("classification-refuse", ["fine"], url=served.url("grpc"))
    with pytest.raises(
        InputError, match=rf"the text is too long: \d+ tokens, the most is {LENGTH} \(text 2\)"
    ):
        infer("classification-refuse", ["fine", LONG], protocol=protocol, url=served.url(protocol))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pairs_in_the_wrong_model_are_refused(served: Served, protocol: str) -> None:
    where = {"protocol": protocol, "url": served.url(protocol)}
    with pytest.raises(InputError, match="'pairs' takes pairs of texts"):
        infer("pairs", ["a"], **where)
    with pytest.raises(InputError, match="'regression' takes single texts"):
        infer("regression", ["a"], text_pair=["b"], **where)
    with pytest.raises(InputError, match="2 texts and 1 second texts"):
        infer("pairs", ["a", "b"], text_pair=["c"], **where)
    text = np.array([[b"a"]], dtype=object)
    with Client(served.url(protocol), protocol) as client:  # what a plain client is told
        with pytest.raises(InputError, match="TEXT_PAIR"):
            client.infer("regression", {"TEXT": text, "TEXT_PAIR": text}, ("VALUE",))
        with pytest.raises(InputError, match="2 inputs"):
            client.infer("pairs", {"TEXT": text}, ("LABEL",))
        with pytest.raises(InputError, match="the second text is empty"):
            client.infer("pairs", {"TEXT": text, "TEXT_PAIR": np.array([[b" "]], dtype=object)}, ("LABEL",))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_text_without_a_mask_is_refused(served: Served, protocol: str) -> None:
    with pytest.raises(InputError, match=r"the text has no \[MASK\] \(text 1\)"):
        infer("masked-lm", ["nothing", "[MASK]"], protocol=protocol, url=served.url(protocol))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("model", MODELS)
def test_parity_compares_every_served_head(
    served: Served, heads: Heads, tmp_path: Path, model: str, protocol: Any
) -> None:
    data, stage = data_for_parity(model, tmp_path), TritonStage(served.url(protocol), model, protocol)
    result = bertmp.parity(bundle_of(model, heads), data, report=tmp_path / "report", extra_stages=[stage])
    assert result.stage("triton").status == "run", result.stage("triton").reason
    assert not [gate.sentence for gate in result.failed_gates if gate.stage == "triton"]
    names = {gate.name for gate in result.gates if gate.stage == "triton"}
    assert names >= {"consistent", "same_files"}
    by_number = MODELS[model][0] in ("classification", "next-sentence", "multi-label-classification")
    assert ("same_answers" in names) is not by_number


def data_for_parity(model: str, folder: Path) -> Path:
    """The texts in a file; words with labels are not among them."""
    data = folder / "texts.tsv"
    names = ("text", "text_pair") if model in PAIRS else ("text",)
    columns = (texts_of(model), SECONDS) if model in PAIRS else (texts_of(model),)
    rows = [names, *zip(*columns, strict=True)]
    data.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return data


def swap_labels(version: Path) -> None:
    """Other names for the classes of entities."""
    settings = json.loads((version / "settings.json").read_text())
    labels = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    (version / "settings.json").write_text(json.dumps({**settings, "labels": labels}))


def take_other_states(version: Path) -> None:
    """The second token's states in place of the mean."""
    change(version / "answers" / "texts.py", "states[: len(ids)].mean(axis=0)", "states[1]")


def leave_out_the_best(version: Path) -> None:
    """The second best word in place of the best."""
    change(version / "answers" / "spans.py", "[: self.candidates]", "[1 : self.candidates + 1]")


def change(path: Path, right: str, wrong: str) -> None:
    code = path.read_text()
    assert right in code
    path.write_text(code.replace(right, wrong))


FAULTS = {"entities": swap_labels, "embeddings": take_other_states, "masked-lm": leave_out_the_best}


@pytest.mark.parametrize("model", FAULTS)
def test_parity_finds_a_served_head_that_answers_otherwise(
    triton: None, heads: Heads, tmp_path: Path, model: str
) -> None:
    """The graph and the tokenizer are the bundle's; what is made of its numbers is not."""
    bundle, repository = bundle_of(model, heads), tmp_path / "repository"
    deploy(bundle, model, repository)
    FAULTS[model](repository / model / "1")
    data = data_for_parity(model, tmp_path)
    with TritonServer(ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=0)) as running:
        stage, report = TritonStage(running.grpc, model), tmp_path / "report"
        result = bertmp.parity(bundle, data, report=report, extra_stages=[stage])
    assert {(gate.stage, gate.name) for gate in result.failed_gates} == {("triton", "same_answers")}


def test_a_version_tells_how_it_answers(served: Served) -> None:
    text = np.array([[b"a"]], dtype=object)
    with Client(served.url("grpc")) as client:
        found, _ = client.infer("entities-max", {"TEXT": text}, ("SETTINGS",))
    settings = json.loads(found["SETTINGS"][0, 0])
    assert (settings["task"], settings["aggregation"], settings["max_length"]) == (
        "token-classification",
        "max",
        LENGTH,
    )


def test_the_command_prints_a_line_for_each_task(
    served: Served, heads: Heads, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    expected = {
        "multi-label": ("scores",),
        "regression": ("value",),
        "entities": ("entities",),
        "embeddings": ("embedding",),
        "masked-lm": ("fills",),
    }
    for model, (field,) in expected.items():
        text = texts_of(model)[0]
        done = run_bertmp("infer", model, text, "--url", served.url("grpc"), "--json")
        assert done.returncode == 0, done.stderr
        (answer,) = json.loads(done.stdout)
        assert answer["text"] == text
        assert field in answer
        done = run_bertmp("infer", model, text, "--url", served.url("grpc"))
        assert (done.returncode, len(done.stdout.splitlines())) == (0, 1), done.stderr


def test_infer_reads_pairs_from_standard_input_with_a_tab_between(served: Served) -> None:
    command = [sys.executable, "-m", "bertmp", "infer", "pairs", "-", "--json", "--url", served.url("grpc")]
    done = subprocess.run(command, input="It rains .\tRain falls .\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [answer] = json.loads(done.stdout)
    assert (answer["text"], answer["text_pair"]) == ("It rains .", "Rain falls .")
    [expected] = infer("pairs", "It rains .", text_pair="Rain falls .", url=served.url("grpc"))
    assert answer["label"] == expected.label
    done = subprocess.run(command, input="no tab\n", capture_output=True, text=True)
    assert done.returncode == 2
    assert "a line without a tab (standard input, line 1): write TEXT<TAB>TEXT_PAIR" in done.stderr


def test_scores_of_a_model_without_classes_are_refused(served: Served) -> None:
    with pytest.raises(InputError, match="--scores: 'regression' has no classes"):
        infer("regression", "a", scores=True, url=served.url("grpc"))


PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
NAMED = {
    "trec": "classification",
    "paraphrases": "pairs",
    "topics": "multi-label",
    "stars": "regression",
    "entities": "entities",
    "embeddings": "embeddings",
    "fill": "masked-lm",
}
"""Model in the page → model of the test."""


def of_the_page(served: Served, language: str) -> str:
    """A block of the page, with the names and the address of the test's server."""
    block = PAGE.read_text(encoding="utf-8").partition(f"```{language}\n")[2].partition("```")[0]
    for name, model in NAMED.items():
        block = block.replace(f"/models/{name}/", f"/models/{model}/")
        block = block.replace(f'infer("{name}"', f'infer("{model}"')
    assert "127.0.0.1:8000" in block
    return block.replace("127.0.0.1:8000", served.running.http)


def test_the_curl_lines_of_the_page_are_answered(served: Served) -> None:
    lines = [line.removeprefix("$ ") for line in of_the_page(served, "console").splitlines()]
    assert len(lines) == len(NAMED)
    seen = set()
    for line in lines:
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
        wanted = re.findall(r'{"name": "([A-Z]+)"}', line)
        assert [output["name"] for output in answer["outputs"]] == wanted, answer
        seen |= {*wanted, answer["model_name"]}
    assert seen >= {*NAMED.values(), "LABEL", "LABELS", "VALUE", "ENTITIES", "EMBEDDING", "FILLS"}


def test_the_tritonclient_lines_of_the_page_are_answered(served: Served) -> None:
    code = of_the_page(served, "python") + "\nclient.close()\n"
    shown = "print(json.dumps([label.shape, same.shape, topics, stars.shape, entities, vector.shape, fills]))"
    done = subprocess.run([sys.executable, "-c", code + shown], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    label, same, topics, stars, entities, vector, fills = json.loads(done.stdout)
    assert [label, same, stars, vector] == [[1, 1], [1, 1], [1, 1], [1, 32]]
    assert isinstance(topics, list)
    assert all(set(one) == {"label", "start", "end", "score"} for one in entities)
    assert (fills[0]["start"], len(fills[0]["candidates"])) == (25, 5)


def test_the_page_names_every_output_with_its_type(served: Served) -> None:
    rows = r"^\|[^|]*\| `([A-Z]+)` \| (\w+) `\[batch, \w+\]`"
    told = set(re.findall(rows, PAGE.read_text(encoding="utf-8"), re.M))
    assert told == {one for task in TASKS.values() for one in {**task.answers, **COMMON}.items()}


def test_infer_and_bench_take_pairs(served: Served, tmp_path: Path, run_bertmp: RunBertmp) -> None:
    done = run_bertmp("infer", "pairs", "a b", "--text-pair", "c", "--url", served.url("grpc"), "--json")
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)
    assert (answer["text"], answer["text_pair"], answer["tokens"]) == ("a b", "c", 6)
    data = tmp_path / "pairs.tsv"
    data.write_text("text\ttext_pair\na b\tc\nd\te f g\n")
    done = run_bertmp(
        "infer", "pairs", "--data", data, "--url", served.url("http"), "--protocol", "http", "--json"
    )
    assert [(one["text_pair"], one["tokens"]) for one in json.loads(done.stdout)] == [("c", 6), ("e f g", 7)]
    found = bertmp.bench("pairs", data, (2,), 0.5, url=served.url("grpc"))
    assert (found.failures, found.notes) == (0, ())  # measured as it should be
    assert found.levels[0].requests > 0
    assert found.levels[0].tokens_per_second == pytest.approx(6.5 * found.levels[0].texts_per_second, rel=0.2)
