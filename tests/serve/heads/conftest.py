"""One real Triton server with a model of every head."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bertmp.serve.serve_options import ServeOptions
from bertmp.serve.server import TritonServer
from tests.export.prediction.heads import Heads
from tests.serve.bundles import deploy
from tests.serve.conftest import Served
from tests.serve.heads.models import MODELS, bundle_of


@pytest.fixture(scope="session")
def heads(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Heads:
    return Heads(tmp_path_factory.mktemp("heads"), minilm)


@pytest.fixture(scope="session")
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
