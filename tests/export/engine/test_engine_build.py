"""Real builds with the installed TensorRT-RTX: verification, progress, and everything that can go wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import psutil
import pytest

from bertmp.core.errors import BuildFailed, GateFailed, InputError
from bertmp.core.progress import ProgressCallback
from bertmp.export.bundle import BUILD_ENGINE, ENGINE, FP16_GRAPH, NETWORK, PLAN, Bundle
from bertmp.export.engine.build import EngineResult, build_engine
from bertmp.export.engine.engine_options import EngineOptions
from bertmp.export.engine.supervisor import Job, run_job
from bertmp.export.precision.plan import PrecisionPlan
from tests.export.engine_graphs import Faults, save_bundle, save_graph, small_bert

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)

NORM = "bert/encoder/layer.0/output/LayerNorm/LayerNormalization"
PRODUCT = "bert/encoder/layer.0/attention/self/query/MatMul"
PROFILE = "1x1:2x8:4x16"

Message = Mapping[str, Any]
State = tuple[Any, ...]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EngineResult, list[State]]:
    """A bundle with its engine, the result, and all calls of its progress callback."""
    bundle = save_bundle(tmp_path_factory.mktemp("engine") / "bundle")
    states: list[State] = []
    result = build_engine(
        bundle, profiles=[PROFILE], builder="tensorrt-rtx", progress=lambda *state: states.append(state)
    )
    return bundle, result, states


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith((".part", ".old"))]


def builders() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    # Other tests' servers are children of this process, too.
    return [child for child in children if any("engine.worker" in part for part in _command_line(child))]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # it has ended
        return []


def test_the_engine_and_its_verification_are_in_the_bundle(
    built: tuple[Path, EngineResult, list[State]],
) -> None:
    bundle, result, _ = built
    assert result.engine == bundle / ENGINE
    assert result.engine.stat().st_size == result.engine_bytes > 100_000
    assert sorted(path.name for path in (bundle / "engine").iterdir()) == ["model.plan", "network.json"]
    network = json.loads((bundle / NETWORK).read_text())
    assert network["builder"] == "tensorrt-rtx"
    assert network["profiles"] == [PROFILE]
    assert len(network["layers"]) == result.layers
    assert leftovers(bundle) == []


def test_every_node_is_verified_and_every_layer_accounted_for(
    built: tuple[Path, EngineResult, list[State]],
) -> None:
    bundle, result, _ = built
    network = json.loads((bundle / NETWORK).read_text())
    verification, plan = network["verification"], PrecisionPlan.load(bundle / PLAN)
    assert verification["verified"]
    assert verification["unaccounted"] == []
    assert [node["name"] for node in verification["nodes"]] == [node.name for node in plan.nodes]
    assert {node["status"] for node in verification["nodes"]} == {"verified"}
    assert verification["summary"]["NORMALIZATION"] == {"FLOAT": 3}
    assert verification["summary"]["SOFTMAX"] == {"FLOAT": 1}
    assert verification["summary"]["MATRIX_MULTIPLY"] == {"HALF": 10}
    of_nodes = sum(len(node["layers"]) for node in verification["nodes"])
    assert of_nodes + len(verification["planned_casts"]) + len(verification["added"]) == result.layers
    assert len(verification["planned_casts"]) == 9


def test_the_manifest_knows_the_builder_and_what_it_built(
    built: tuple[Path, EngineResult, list[State]],
) -> None:
    bundle, result, _ = built
    entry = Bundle.open(bundle).stage(BUILD_ENGINE, "bertmp build-engine")
    assert set(entry.inputs) == {FP16_GRAPH, PLAN}
    assert set(entry.outputs) == {ENGINE, NETWORK}
    assert entry.results["builder"] == "tensorrt-rtx"
    assert entry.results["builder_version"] == entry.tools["tensorrt-rtx"] == result.builder_version
    assert entry.results["compute_capability"] == ["8.0", "8.6", "8.9", "12.0"]
    assert entry.results["verified"] is True
    assert entry.results["engine_bytes"] == result.engine_bytes


def test_a_bf16_bundle_gets_an_engine_of_its_bf16_graph(tmp_path: Path, minilm: Path) -> None:
    from bertmp import export_checkpoint
    from bertmp.data.tokenizer import Tokenizer
    from bertmp.model.checkpoint import save_checkpoint
    from bertmp.model.config import BertConfig
    from tests.models import classifier

    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    config = BertConfig(**sizes, num_hidden_layers=1, max_position_embeddings=64, labels=("no", "yes"))
    save_checkpoint(tmp_path / "checkpoint", classifier(config), config, Tokenizer.load(minilm, 64))
    folder = export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", precision="bf16").bundle
    result = build_engine(folder, builder="tensorrt-rtx")
    assert result.summary["MATRIX_MULTIPLY"].keys() == {"BF16"}
    entry = Bundle.open(folder).stage(BUILD_ENGINE, "bertmp build-engine")
    assert set(entry.inputs) == {"model.bf16.onnx", PLAN}


def test_progress_comes_from_the_builders_own_monitor(
    built: tuple[Path, EngineResult, list[State]],
) -> None:
    _, result, states = built
    assert states[0] == (f"building with tensorrt-rtx {result.builder_version}",)
    phases = {state[0] for state in states[1:]}
    assert {"Building engine", "Optimizing graph", "Computing profile costs"} <= phases
    done = [completed for _, completed, total in states[1:] if total == 100]
    assert done == sorted(done)
    assert done[-1] == 100
    assert any(0 < percent < 100 for percent in done)


@pytest.mark.parametrize(
    ("faults", "node", "kind"),
    [
        (Faults(half=[NORM]), NORM, "NORMALIZATION) has HALF"),
        (Faults(single=[PRODUCT]), PRODUCT, "MATRIX_MULTIPLY) has FLOAT"),
    ],
)
def test_a_broken_plan_names_the_node_and_builds_nothing(
    tmp_path: Path, faults: Faults, node: str, kind: str
) -> None:
    bundle = save_bundle(tmp_path / "bundle", faults)
    with pytest.raises(GateFailed) as caught:
        build_engine(bundle, profiles=[PROFILE])
    assert caught.value.exit_code == 1
    assert f"{node}: planned" in str(caught.value)
    assert kind in str(caught.value)
    # The network is there to be looked at; an engine is not.
    assert [path.name for path in (bundle / "engine").iterdir()] == ["network.json"]
    verification = json.loads((bundle / NETWORK).read_text())["verification"]
    assert [item["name"] for item in verification["nodes"] if item["status"] == "violated"] == [node]
    assert BUILD_ENGINE not in Bundle.open(bundle).manifest.stages


def test_a_refused_build_takes_the_engine_before_it_away(tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path / "bundle")
    build_engine(bundle, profiles=["1x8"])
    worse = save_bundle(tmp_path / "worse", Faults(half=[NORM]))
    for name in (FP16_GRAPH, "manifest.json"):
        (worse / name).replace(bundle / name)
    with pytest.raises(GateFailed):
        build_engine(bundle, profiles=["1x8"])
    assert not (bundle / ENGINE).exists()


def kill_at_first_phase(number: int) -> ProgressCallback:
    def progress(message: str, completed: int | None = None, total: int | None = None, /) -> None:
        if completed is not None:
            for child in builders():
                child.send_signal(number)

    return progress


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_builder_that_dies_leaves_one_line_and_the_old_engine(
    tmp_path: Path, number: signal.Signals
) -> None:
    bundle = save_bundle(tmp_path / "bundle", layers=2)
    build_engine(bundle, profiles=["1x8"])
    before = (bundle / ENGINE).read_bytes()
    with pytest.raises(BuildFailed) as caught:
        build_engine(bundle, progress=kill_at_first_phase(number))
    assert number.name in str(caught.value)
    assert "its last message: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (bundle / ENGINE).read_bytes() == before
    assert leftovers(bundle) == []
    assert builders() == []


def test_an_interrupted_build_stops_through_the_monitor(tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path / "bundle")

    def interrupt(message: str, completed: int | None = None, total: int | None = None, /) -> None:
        if completed is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(bundle, progress=interrupt)
    assert not (bundle / "engine").exists()
    assert leftovers(bundle) == []
    assert builders() == []


def test_a_builder_short_of_memory_is_one_line(tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path / "bundle")

    limited: list[int] = []

    def take_the_memory_away(message: str, completed: int | None = None, total: int | None = None, /) -> None:
        if completed is not None and not limited:
            for child in builders():
                limited.append(child.memory_info().vms + (8 << 20))
                child.rlimit(psutil.RLIMIT_AS, (limited[-1], limited[-1]))

    with pytest.raises(BuildFailed) as caught:
        build_engine(bundle, progress=take_the_memory_away)
    assert "\n" not in str(caught.value)
    assert not (bundle / "engine").exists()
    assert leftovers(bundle) == []
    assert builders() == []


def test_a_builder_that_locks_up_is_ended(tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "g.onnx", layers=6)
    job = Job(str(graph), None, str(tmp_path), EngineOptions(graph))

    def freeze(message: Message) -> None:
        if message["kind"] == "phase" and message["parent"] is None:
            for child in builders():
                child.suspend()

    with pytest.raises(BuildFailed, match=r"hung and did nothing for 1 s; its last message: "):
        run_job(job, freeze, stall_timeout=1)
    assert builders() == []


def test_a_graph_that_the_parser_refuses_names_the_nodes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"node 'bert/pooler/Frobnicate' \(Frobnicate\)"):
        build_engine(save_graph(tmp_path / "unknown.onnx", Faults(unknown_op=True)))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(save_graph(tmp_path / "whole.onnx").read_bytes()[:20_000])
    with pytest.raises(InputError, match="refuses the graph"):
        build_engine(broken)
    assert not (tmp_path / "broken.engine").exists()


def test_a_bare_graph_is_held_to_the_usual_plan(tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "encoder.onnx")
    result = build_engine(graph, profiles=["2x8"], compute_capability=["8.9"])
    assert result.folder == tmp_path / "encoder.engine"
    assert result.profiles == ["2x8:2x8:2x8"]
    assert result.compute_capability == ["8.9"]
    assert result.counts["planned_casts"] == 9
    with pytest.raises(GateFailed, match=NORM):
        build_engine(save_graph(tmp_path / "half.onnx", Faults(half=[NORM])), out=tmp_path / "out")
    assert (tmp_path / "out" / "network.json").is_file()


def test_a_bare_graph_is_held_to_the_plan_beside_it(tmp_path: Path) -> None:
    model, plan = small_bert(Faults(half=[NORM]))
    onnx.save(model, tmp_path / "g.onnx")
    plan.save(tmp_path / "g.precision-plan.json")
    with pytest.raises(GateFailed, match=NORM):
        build_engine(tmp_path / "g.onnx")
    verification = json.loads((tmp_path / "g.engine" / "network.json").read_text())["verification"]
    assert len(verification["nodes"]) == len(plan.nodes)


def test_a_graph_of_nameless_nodes_and_fixed_shapes_builds(tmp_path: Path) -> None:
    model, _ = small_bert()
    for node in model.graph.node:
        node.name = ""
    for tensor in model.graph.input:
        for dim, value in zip(tensor.type.tensor_type.shape.dim, (2, 8), strict=True):
            dim.dim_value = value
    onnx.save(model, tmp_path / "static.onnx")
    assert build_engine(tmp_path / "static.onnx").profiles == ["2x8:2x8:2x8"]
    with pytest.raises(InputError, match="fixed at 2x8"):
        build_engine(tmp_path / "static.onnx", profiles=[PROFILE])


def test_stale_bundles_and_other_folders_are_refused(tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path / "bundle")
    (bundle / PLAN).write_text((bundle / PLAN).read_text().replace("fp32", "fp16"))
    with pytest.raises(InputError, match=r"convert stage is stale: precision-plan\.json changed"):
        build_engine(bundle)
    with pytest.raises(InputError, match="not a bundle"):
        build_engine(tmp_path)
    with pytest.raises(InputError, match="no such bundle or graph"):
        build_engine(tmp_path / "nothing")
    with pytest.raises(InputError, match="something that is not an engine"):
        build_engine(save_graph(tmp_path / "graph.onnx"), out=bundle)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"profiles": ["1x8:2x80:4x80"]}, "beyond the model's 64 positions"),
        ({"profiles": ["0x8"]}, "is empty"),
        ({"timing_cache": Path("a.cache"), "builder": "tensorrt-rtx"}, "timing caches are without effect"),
        (
            {"compute_capability": ["9.0"], "builder": "tensorrt-rtx"},
            "does not build for compute capability 9.0",
        ),
        ({"compute_capability": ["sm89"]}, "not a compute capability"),
        ({"builder": "tvm"}, "unknown value 'tvm' (--builder)"),
        ({"max_batch": 0}, "--max-batch"),
        ({"workspace_mib": 0}, "--workspace"),
        ({"optimization_level": 6}, "--optimization-level"),
        ({"out": Path("elsewhere")}, "leave --out out"),
    ],
)
def test_bad_options_are_refused_before_the_build(
    built: tuple[Path, EngineResult, list[State]], options: dict[str, Any], says: str
) -> None:
    bundle, _, _ = built
    with pytest.raises(InputError) as caught:
        build_engine(bundle, **options)
    assert says in str(caught.value)
    assert (bundle / ENGINE).is_file()


def test_fp32_products_are_refused_for_turing(tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "single.onnx", Faults(single=[PRODUCT]))
    with pytest.raises(InputError, match=f"7.5 has no FP32 matrix products, and node '{PRODUCT}'"):
        build_engine(graph, compute_capability=["7.5"], builder="tensorrt-rtx")


def test_the_command_prints_one_object_or_a_table(tmp_path: Path, run_bertmp: Callable[..., Any]) -> None:
    bundle = save_bundle(tmp_path / "bundle")
    done = run_bertmp("build-engine", bundle, "--profile", PROFILE, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verified"] is True
    table = run_bertmp("build-engine", bundle, "--profile", PROFILE, "--workspace", "64")
    assert "none unaccounted for" in table.stdout
    assert "MATRIX_MULTIPLY" in table.stdout
    refused = run_bertmp("build-engine", bundle, "--profile", "4x8:1x8:1x8")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("error: the profile's batch falls")


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        os.sched_yield()


def test_ctrl_c_ends_the_command_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path / "bundle", layers=6)
    command = [sys.executable, "-m", "bertmp", "build-engine", str(bundle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        # The network's listing is written just before the builder starts.
        wait_for(lambda: any(bundle.glob(".engine.*.part/network.json")) or process.poll() is not None)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "interrupted"
    assert children
    assert not any(child.is_running() for child in children)
    assert not (bundle / "engine").exists()
    assert leftovers(bundle) == []
