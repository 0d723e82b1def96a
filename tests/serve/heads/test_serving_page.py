"""The lines of `docs/serving.md` are answered as they stand there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bertmp.serve.served_tasks import COMMON, TASKS
from tests.serve.conftest import Served

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[3] / "docs" / "serving.md"

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
