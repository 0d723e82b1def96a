"""What a build refuses before it begins, and what later stages refuse after it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from bertmp.core.errors import InputError, MissingComponent
from bertmp.core.hardware import find_gpu
from bertmp.core.io import read_json, sha256_file, write_json
from bertmp.export.bundle import BUILD_ENGINE, ENGINE, NETWORK, PLAN, Bundle
from bertmp.export.engine.build import EngineResult, build_engine
from bertmp.export.engine.compatibility import open_engine, require_runtime
from bertmp.export.engine.runtime import load_engine
from bertmp.export.precision.plan import PrecisionPlan
from bertmp.serve.deployable import inspect_bundle
from tests.export.engine_graphs import Faults, save_bundle, save_graph, small_bert

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)

NORM = "bert/encoder/layer.0/output/LayerNorm/LayerNormalization"
PRODUCT = "bert/encoder/layer.0/attention/self/query/MatMul"
PROFILE = "1x1:2x8:4x16"
RTX = "tensorrt-rtx"


def build(bundle: Path, **options: Any) -> EngineResult:
    return build_engine(bundle, **{"profiles": [PROFILE], "builder": RTX, **options})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EngineResult]:
    """A bundle with its engine; not to be written to."""
    bundle = save_bundle(tmp_path_factory.mktemp("refusals") / "bundle")
    return bundle, build(bundle)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with its engine, for one test."""
    folder = save_bundle(tmp_path / "bundle")
    build(folder)
    return folder


def test_the_manifest_says_what_the_engine_needs(built: tuple[Path, EngineResult]) -> None:
    folder, result = built
    entry = Bundle.open(folder).stage(BUILD_ENGINE, "bertmp build-engine").results
    assert entry["graph_sha256"] == sha256_file(folder / "model.fp16.onnx")
    assert entry["plan_sha256"] == sha256_file(folder / PLAN)
    assert entry["engine_sha256"] == sha256_file(folder / ENGINE)
    assert (entry["cuda"], entry["driver"]) == ("13", "580")
    assert entry["triton_releases"] == []  # Triton loads no engine of TensorRT-RTX
    assert "release notes" in entry["triton_source"]
    assert entry["memory"]["weights_bytes"] > 0
    assert entry["memory"]["profiles"][0]["profile"] == PROFILE
    network = json.loads((folder / NETWORK).read_text())
    assert network["engine_sha256"] == entry["engine_sha256"]
    if find_gpu() is None:
        assert result.inspection == {
            "run": False,
            "verified": False,
            "reason": "no GPU: the inspector needs the engine loaded",
        }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"triton_release": "25.10"}, "no Triton release loads engines of tensorrt-rtx"),
        ({"triton_release": "19.03"}, "no Triton release '19.03' in the table"),
        ({"version_compatible": True}, "comes without the lean runtime"),
        ({"hardware_compatible": "ampere-plus"}, "portable as they are"),
        ({"hardware_compatible": "all"}, "use one of same-capability, ampere-plus"),
        ({"weights": "none"}, "use one of full, refittable, stripped"),
        ({"gpu_memory_mib": 0}, "--gpu-memory"),
        ({"gpu_memory_mib": 1, "profiles": ["32x64"]}, "(--gpu-memory) has 1"),
    ],
)
def test_options_are_refused_before_the_build(
    built: tuple[Path, EngineResult], options: dict[str, Any], says: str
) -> None:
    folder, _ = built
    before = (folder / ENGINE).read_bytes()
    with pytest.raises(InputError) as caught:
        build(folder, **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (folder / ENGINE).read_bytes() == before


@pytest.mark.skipif(find_gpu() is not None, reason="this machine has a GPU, where weights can be changed")
@pytest.mark.parametrize("weights", ["refittable", "stripped"])
def test_changeable_weights_need_a_gpu(built: tuple[Path, EngineResult], weights: str) -> None:
    with pytest.raises(InputError, match="no --weights without a GPU"):
        build(built[0], weights=weights)


def test_gaps_between_profiles_are_a_warning(tmp_path: Path, run_bertmp: Callable[..., Any]) -> None:
    folder = save_bundle(tmp_path / "bundle")
    done = run_bertmp("build-engine", folder, "--profile", PROFILE, "--profile", "1x33:1x64:4x64", "--json")
    assert done.returncode == 0, done.stderr
    assert "warning: no profile holds batch 1-4, length 17-32" in done.stderr
    assert json.loads(done.stdout)["warnings"] == [
        "no profile holds batch 1-4, length 17-32: such requests are padded or refused"
    ]


@pytest.mark.parametrize("options", [(), ("--optimization-level", "0"), ("--workspace", "256")])
def test_what_the_builder_has_is_taken(
    tmp_path: Path, run_bertmp: Callable[..., Any], options: tuple[str, ...]
) -> None:
    folder = save_bundle(tmp_path / "bundle")
    done = run_bertmp("build-engine", folder, "--profile", "2x8", "--json", *options)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--profile", "4x8:1x8:8x8"), 2, "the profile's batch falls from 4 to 1"),
        (("--profile", "1x8:1x64:1x65"), 2, "beyond the model's 64 positions"),
        (("--profile", "0x8:1x8:1x8"), 2, "is empty"),
        (("--compute-capability", "9.0"), 2, "does not build for compute capability 9.0"),
        (("--triton-release", "25.10"), 2, "no Triton release loads engines of tensorrt-rtx"),
    ],
)
def test_bad_input_is_one_line_and_its_exit_code(
    built: tuple[Path, EngineResult],
    run_bertmp: Callable[..., Any],
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    done = run_bertmp("build-engine", built[0], "--builder", RTX, *arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("faults", "node"), [(Faults(half=[NORM]), NORM), (Faults(single=[PRODUCT]), PRODUCT)]
)
def test_a_broken_precision_is_exit_1_and_names_the_node(
    tmp_path: Path, run_bertmp: Callable[..., Any], faults: Faults, node: str
) -> None:
    done = run_bertmp("build-engine", save_bundle(tmp_path / "bundle", faults), "--profile", PROFILE)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: the precision is not verified: {node}: planned")
    assert done.stderr.count("\n") == 1


def test_all_that_the_parser_refuses_is_named(tmp_path: Path) -> None:
    model, _ = small_bert(Faults(unknown_op=True))
    again = next(node for node in model.graph.node if node.name == "bert/pooler/Tanh")
    again.op_type = "Wobble"
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(InputError) as caught:
        build_engine(tmp_path / "two.onnx")
    for name in ("'bert/pooler/Tanh' (Wobble)", "'bert/pooler/Frobnicate' (Frobnicate)"):
        assert name in str(caught.value)


def test_a_gpu_without_bf16_is_refused(tmp_path: Path) -> None:
    model, _ = small_bert()
    for node in model.graph.node:
        if node.name == "bert/pooler/Tanh":
            wide = onnx.helper.make_node("Cast", [node.input[0]], ["wide"], name="to_bf16", to=16)
            back = onnx.helper.make_node("Cast", ["tanh"], [node.output[0]], name="from_bf16", to=10)
            node.input[0], node.output[0] = "wide", "tanh"
            at = list(model.graph.node).index(node)
    model.graph.node.insert(at, wide)
    model.graph.node.insert(at + 2, back)
    onnx.save(model, tmp_path / "bf16.onnx")
    with pytest.raises(InputError, match=r"compute capability 7\.5 has no BF16"):
        build_engine(tmp_path / "bf16.onnx", compute_capability=["7.5"], builder=RTX)


def edit_plan(bundle: Path) -> None:
    """The plan says something else; the manifest is made to agree with it, as a new conversion would."""
    plan = PrecisionPlan.load(bundle / PLAN)
    write_json(bundle / PLAN, {**plan.to_json(), "graph_sha256": "1" * 64})
    data = read_json(bundle / "manifest.json")
    data["stages"]["convert"]["outputs"].update({name: Bundle(bundle).sha256(name) for name in [PLAN]})
    write_json(bundle / "manifest.json", data)


def test_a_plan_edited_after_the_build_makes_the_engine_stale(bundle: Path) -> None:
    from bertmp.export.parity.bundle_stages import EngineStage, chain

    edit_plan(bundle)
    stale = r"the build-engine stage is stale: precision-plan\.json changed"
    with pytest.raises(InputError, match=stale):
        EngineStage(Bundle.open(bundle)).run(None, advance=lambda count: None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=stale):
        chain(Bundle.open(bundle), bundle)
    complete_for_deployment(bundle)
    with pytest.raises(InputError, match=stale):
        inspect_bundle(Bundle.open(bundle))
    build(bundle)  # and a new build is taken again
    assert EngineStage(Bundle.open(bundle)).name == "engine"
    Bundle.open(bundle).stage(BUILD_ENGINE, "bertmp build-engine")


def complete_for_deployment(bundle: Path) -> None:
    """What a deployment wants besides an engine: labels, a tokenizer, sizes."""
    (bundle / "labels.txt").write_text("a\nb\nc\n")
    write_json(bundle / "tokenizer.json", {})
    write_json(bundle / "config.json", {"max_position_embeddings": 64, "vocab_size": 50})
    data = read_json(bundle / "manifest.json")
    files = ["model.onnx", "labels.txt", "tokenizer.json", "config.json"]
    data["stages"]["export"]["outputs"] = {name: Bundle(bundle).sha256(name) for name in files}
    write_json(bundle / "manifest.json", data)


def test_an_engine_of_another_version_is_refused_by_parity(bundle: Path) -> None:
    from bertmp.export.parity.bundle_stages import EngineStage

    data = read_json(bundle / NETWORK)
    write_json(bundle / NETWORK, {**data, "builder_version": "1.0.0.0"})
    manifest = read_json(bundle / "manifest.json")
    manifest["stages"]["build-engine"]["outputs"].update(
        {name: Bundle(bundle).sha256(name) for name in [NETWORK]}
    )
    write_json(bundle / "manifest.json", manifest)
    with pytest.raises(InputError, match=r"of tensorrt-rtx 1\.0\.0\.0, and 1\.\d+\.\d+\.\d+ is installed"):
        EngineStage(Bundle.open(bundle)).run(None, advance=lambda count: None)  # type: ignore[arg-type]


def test_a_built_engine_is_known_again_and_fits_its_builder(built: tuple[Path, EngineResult]) -> None:
    folder, result = built
    found = open_engine(folder / "engine")
    assert found.builder_version == result.builder_version
    require_runtime(found, RTX, result.builder_version)
    with pytest.raises(InputError, match="of tensorrt-rtx, and tensorrt is installed"):
        require_runtime(found, "tensorrt", "10.13.3.9")


@pytest.mark.skipif(find_gpu() is not None, reason="this machine has a GPU, which runs the engine")
def test_without_a_gpu_an_engine_is_not_run_and_the_bench_says_so(
    built: tuple[Path, EngineResult], run_bertmp: Callable[..., Any]
) -> None:
    folder, _ = built
    with pytest.raises(MissingComponent, match="the engine cannot run here: no GPU"):
        load_engine(folder / "engine")
    done = run_bertmp("bench", "--engine", folder)
    assert done.returncode == 4
    assert done.stderr.startswith("error: the engine cannot run here: no GPU")
    assert done.stderr.count("\n") == 1


def test_the_bench_wants_a_model_or_an_engine(tmp_path: Path, run_bertmp: Callable[..., Any]) -> None:
    for arguments, says in ((), "needs a model's NAME"), (("--engine", tmp_path), "not a bundle"):
        done = run_bertmp("bench", *arguments)
        assert done.returncode == 2
        assert says in done.stderr
    graph = save_graph(tmp_path / "g.onnx")
    assert run_bertmp("bench", "trec", "--engine", graph).returncode == 2
