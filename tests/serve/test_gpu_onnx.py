"""The configuration for a GPU without an engine. It is checked offline: no test here has a GPU's Triton."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from bertmp.core.errors import InputError
from bertmp.environment.triton_install import TritonRuntime
from bertmp.export import bundle as names
from bertmp.export.bundle import Bundle
from bertmp.serve import server_config
from bertmp.serve.config_check import check_configs
from bertmp.serve.model_signature import read_model_config
from bertmp.serve.repository import ModelFolders
from bertmp.serve.serve_options import ServeOptions
from bertmp.serve.server_config import ConfigChoice, find_config
from tests.serve.bundles import deploy, make_bundle

FILE = "trec_encoder/configs/gpu-onnx.pbtxt"


def with_parity(bundle: Path, folder: Path, fp16: bool) -> Path:
    """A copy of a bundle on which parity was run, of its FP16 graph as well or not."""
    copy = Path(shutil.copytree(bundle, folder))
    stages = {"onnx-fp32": {"status": "run"}, "onnx-fp16": {"status": "run" if fp16 else "not run"}}
    Bundle.open(copy).record(
        names.PARITY,
        inputs=[names.FP32_GRAPH, *([names.FP16_GRAPH] if fp16 else [])],
        outputs=(),
        tools=(),
        settings={},
        results={"verdict": "passed", "passed": True, "stages": stages, "failed_gates": []},
        seconds=0.0,
    )
    return copy


@pytest.fixture(scope="module")
def converted(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an FP16 graph; not to be written to."""
    return make_bundle(tmp_path_factory.mktemp("converted"), minilm, seed=2, fp16=True)


@pytest.fixture
def checked(converted: Path, tmp_path: Path) -> Path:
    return with_parity(converted, tmp_path / "checked", fp16=True)


def file_of(repository: Path) -> str:
    return str(read_model_config(repository / FILE).default_model_filename)


def container(folder: Path, *backends: str) -> TritonRuntime:
    """A Triton of the system's with some backends."""
    for name in ("python", *backends):
        (folder / "backends" / name).mkdir(parents=True)
    return TritonRuntime("system", "2.60.0", folder / "tritonserver", Path("python3"), folder / "backends")


def test_fp16_graph_that_passed_parity_is_for_the_gpu(checked: Path, tmp_path: Path) -> None:
    deployed = deploy(checked, "trec", tmp_path / "repository")
    config = read_model_config(tmp_path / "repository" / FILE)
    assert (config.name, config.platform) == ("trec_encoder", "onnxruntime_onnx")
    assert config.default_model_filename == names.FP16_GRAPH
    assert [group.kind for group in config.instance_group] == [pb.ModelInstanceGroup.KIND_GPU]
    assert {entry.data_type for entry in config.output} == {pb.TYPE_FP32}
    version = tmp_path / "repository" / "trec_encoder" / "1"
    assert (version / names.FP16_GRAPH).read_bytes() == (checked / names.FP16_GRAPH).read_bytes()
    assert any("ONNX Runtime backend runs the FP16 graph on a GPU" in note for note in deployed.notes)


def test_fp16_graph_that_was_not_checked_is_not_deployed(converted: Path, tmp_path: Path) -> None:
    bundle = with_parity(converted, tmp_path / "bundle", fp16=False)
    deployed = deploy(bundle, "trec", tmp_path / "repository")
    assert file_of(tmp_path / "repository") == names.FP32_GRAPH
    assert not (tmp_path / "repository" / "trec_encoder" / "1" / names.FP16_GRAPH).exists()
    assert any("runs the FP32 graph" in note for note in deployed.notes)


def test_configuration_names_a_file_that_the_version_before_has_too(
    converted: Path, checked: Path, tmp_path: Path
) -> None:
    """Triton keeps that version's encoder loaded for a while."""
    repository = tmp_path / "repository"
    unchecked = with_parity(converted, tmp_path / "unchecked", fp16=False)
    found = []
    for number, bundle in enumerate((unchecked, checked, unchecked, checked), 1):
        assert deploy(bundle, "trec", repository).version == number
        found.append(file_of(repository))
    assert found == [names.FP32_GRAPH] * 4
    assert deploy(checked, "trec", repository, long_text="refuse").version == 5
    assert file_of(repository) == names.FP16_GRAPH


def test_offline_check_finds_a_graph_that_is_not_there(checked: Path, tmp_path: Path) -> None:
    folders = ModelFolders(tmp_path, "trec")
    deploy(checked, "trec", tmp_path)
    check_configs(folders, 1)
    (folders.encoder / "1" / names.FP16_GRAPH).unlink()
    with pytest.raises(InputError, match=r"the version has no model\.fp16\.onnx.*gpu-onnx"):
        check_configs(folders, 1)


def test_serve_on_a_gpu_takes_it_where_a_version_has_no_engine(
    checked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    deploy(checked, "trec", repository)
    options, models = ServeOptions(repository), ["trec", "trec_encoder"]

    def chosen(runtime: TritonRuntime) -> ConfigChoice:
        return find_config(options, models, runtime)

    full = container(tmp_path / "full", "tensorrt", "onnxruntime")
    assert chosen(full).name == "cpu"
    monkeypatch.setattr(server_config, "find_gpu", lambda: "a GPU")
    assert chosen(full).name == "gpu-onnx"
    assert "a version has no TensorRT engine" in chosen(full).reason
    assert chosen(container(tmp_path / "small", "tensorrt")).name == "cpu"
    graph = repository / "trec_encoder" / "1" / names.FP16_GRAPH
    plan = graph.with_name("model.plan")
    plan.touch()
    assert chosen(full).name == ""
    plan.unlink()
    graph.unlink()
    assert chosen(full).name == "cpu"
