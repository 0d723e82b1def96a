"""One real Triton server for all tests that ask or change models on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bertmp.serve.serve_options import RunningServer, ServeOptions
from bertmp.serve.server import TritonServer
from tests.serve.bundles import deploy, make_bundle


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        repository: what it serves.
        bundle: the bundle behind its model `trec`.
        running: where it answers.
    """

    repository: Path
    bundle: Path
    running: RunningServer

    def url(self, protocol: str) -> str:
        return self.running.grpc if protocol == "grpc" else self.running.http


@pytest.fixture(scope="session")
def bundle(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier's bundle; not to be written to."""
    return make_bundle(tmp_path_factory.mktemp("first"), minilm, seed=0)


@pytest.fixture(scope="session")
def other_bundle(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same classifier with other weights; not to be written to."""
    return make_bundle(tmp_path_factory.mktemp("second"), minilm, seed=1)


@pytest.fixture(scope="session")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the first bundle deployed as `trec`; not to be written to."""
    folder = tmp_path_factory.mktemp("deployed") / "repository"
    deploy(bundle, "trec", folder)
    return folder


@pytest.fixture(scope="session")
def served(
    triton: None, repository: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The server. Tests may deploy models of their own on it, and leave `trec` alone."""
    folder = Path(shutil.copytree(repository, tmp_path_factory.mktemp("served") / "repository"))
    options = ServeOptions(folder, http_port=0, grpc_port=0, metrics_port=0)
    with TritonServer(options) as running:
        yield Served(folder, bundle, running)
