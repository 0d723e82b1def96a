"""How a text model uses a machine without a GPU: the table, and the memory that it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from bertmp import export_checkpoint
from bertmp.core.hardware import Machine, machine
from bertmp.serve.client import Client
from bertmp.serve.model_config import set_serving, text_model
from bertmp.serve.model_signature import ModelSignature
from bertmp.serve.serve_options import ServeOptions
from bertmp.serve.server import TritonServer
from bertmp.serve.serving_table import BF16_COPIES, PROCESS_BYTES, ServingTable
from bertmp.serve.text_requests import text_inputs
from tests.serve.bundles import deploy

TREC = ModelSignature(("A", "B"), 512, 30522, 2)
GIB = 2**30


def of(cores: int, gigabytes: float = 64) -> Machine:
    return Machine("a processor", cores, int(gigabytes * GIB), (), "")


@pytest.mark.parametrize(
    ("cores", "gigabytes", "graph", "workers", "threads"),
    [
        (1, 8, GIB // 10, 1, 1),
        (2, 8, GIB // 10, 2, 1),
        (64, 64, GIB // 10, 64, 1),
        (64, 4, GIB // 2, 3, 21),  # no more copies of the graph than half of the memory holds
        (64, 1, 2 * GIB, 1, 64),
    ],
)
def test_the_table_follows_the_machine(
    cores: int, gigabytes: float, graph: int, workers: int, threads: int
) -> None:
    table = ServingTable.derive(of(cores, gigabytes), graph, "model.onnx")
    assert (table.cores, table.workers, table.threads) == (cores, workers, threads)
    assert workers == 1 or workers * (graph + PROCESS_BYTES) <= gigabytes * GIB / 2
    assert f"workers = {workers}, threads = {threads}" in table.sentence()


def test_another_machine_changes_the_table_but_not_what_a_person_set() -> None:
    two, many = (ServingTable.derive(of(cores), GIB, "model.onnx") for cores in (2, 16))
    config = text_model("m", TREC, two)
    assert not set_serving(config, two)
    assert set_serving(config, many)
    assert config.instance_group[0].count == 16
    assert config.SerializeToString() == text_model("m", TREC, many).SerializeToString()
    config.instance_group[0].count = 3
    before = config.SerializeToString()
    assert not set_serving(config, two)
    assert config.SerializeToString() == before


def test_a_graph_that_takes_more_memory_gets_fewer_workers_on_the_same_machine() -> None:
    once, often = (
        ServingTable.derive(of(8, 16), size, "model.onnx") for size in (GIB // 2, BF16_COPIES * GIB // 2)
    )
    config = text_model("m", TREC, once)
    assert once.workers > often.workers
    assert set_serving(config, often)
    assert config.instance_group[0].count == often.workers
    assert not set_serving(config, often)


def test_a_configuration_of_0_1_gets_the_table() -> None:
    table = ServingTable.derive(of(4), GIB, "model.onnx")
    for count, kept in ((2, 4), (5, 5)):
        old = text_model("m", TREC, table)
        del old.parameters["serving"]
        old.instance_group[0].count = count
        assert set_serving(old, table)
        assert old.instance_group[0].count == kept
        assert "model.onnx" in old.parameters["serving"].string_value


@pytest.mark.slow
def test_a_served_model_takes_little_more_memory_than_its_graphs(
    triton: None, minilm: Path, tmp_path: Path
) -> None:
    bundle = export_checkpoint(minilm, tmp_path / "bundle", fp16=False).bundle
    deploy(bundle, "encoder", tmp_path / "repository")
    graph = (bundle / "model.onnx").stat().st_size
    table = ServingTable.derive(machine(), graph, "model.onnx")
    words = np.random.default_rng(0).integers(1, 40, 200).tolist()
    with (
        TritonServer(
            ServeOptions(tmp_path / "repository", http_port=0, grpc_port=0, metrics_port=0)
        ) as running,
        Client(running.grpc) as client,
    ):
        for start in range(0, 200, 20):
            texts = ["word " * count * 12 for count in words[start : start + 20]]
            client.infer("encoder", text_inputs(texts), ("EMBEDDING",))
        processes = [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]
        taken = sum(process.memory_full_info().pss for process in processes)
    assert taken <= (table.workers + 1) * graph + PROCESS_BYTES * len(processes), taken / 2**20
    assert len(processes) == table.workers + 2
