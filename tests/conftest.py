"""Fixtures that all tests share: real weights, real data, a Triton server, the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

RunBertmp = Callable[..., "subprocess.CompletedProcess[str]"]


def _asset(name: str) -> Path:
    from bertmp import download

    return download([name])[name]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a real BERT encoder, 6 layers, hidden size 384; not to be written to."""
    return _asset("minilm")


@pytest.fixture(scope="session")
def trec() -> Path:
    """The folder of the TREC questions: `train.tsv` and `test.tsv`; not to be written to."""
    return _asset("trec")


@pytest.fixture(scope="session")
def sms_spam() -> Path:
    """The folder of the SMS Spam Collection: `messages.tsv`; not to be written to."""
    return _asset("sms-spam")


@pytest.fixture(scope="session")
def moviedialog() -> Path:
    """The folder of the film dialogues: `pairs.tsv`; not to be written to."""
    return _asset("moviedialog")


@pytest.fixture(scope="session")
def triton() -> None:
    """Skips where this machine cannot run a Triton server; sets one up where there is none."""
    from bertmp import setup
    from bertmp.core.errors import MissingComponent

    try:
        setup("triton")
    except MissingComponent as error:
        pytest.skip(f"no Triton server here: {error}")


@pytest.fixture(scope="module", autouse=True)
def without_cpu_bf16(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leaves parity's stage `cpu-bf16`, which starts processes, to the modules marked with `cpu_bf16`.

    Commands in processes of their own run it.
    """

    def left_out() -> None:
        from bertmp.core.errors import MissingComponent

        raise MissingComponent("left out by this test")

    stage = sys.modules.get("bertmp.export.parity.cpu_bf16_stage")
    with pytest.MonkeyPatch.context() as patch:
        if stage is not None and request.node.get_closest_marker("cpu_bf16") is None:
            patch.setattr(stage, "bf16_runtime", left_out)
        yield


@pytest.fixture(scope="session")
def run_bertmp() -> RunBertmp:
    """Runs `bertmp ARGUMENTS…` in a process of its own: `run_bertmp("doctor", "--json", env={…})`.

    `env` adds to the environment; the result has `returncode`, `stdout` and `stderr`.
    """

    def run(
        *arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bertmp", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd or REPOSITORY,
            env={**os.environ, **(env or {})},
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def tiny(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with random weights and the real tokenizer: a start for training."""
    from bertmp.data.tokenizer import Tokenizer
    from bertmp.model.checkpoint import save_checkpoint
    from bertmp.model.config import BertConfig
    from tests.models import encoder

    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    save_checkpoint(folder, encoder(config), config, Tokenizer.load(minilm, 64))
    return folder
