"""`bertmp infer` and `bertmp bench` for models of every head."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import bertmp
from bertmp import infer
from bertmp.core.errors import InputError
from tests.conftest import RunBertmp
from tests.export.prediction.heads import Heads
from tests.serve.conftest import Served
from tests.serve.heads.models import texts_of

pytestmark = pytest.mark.slow


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
