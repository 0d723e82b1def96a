"""Model configurations: those that are committed, and the signature that they give clients."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bertmp.core.errors import InputError
from bertmp.data.readers import read_examples
from bertmp.export.bundle import LOW_GRAPHS
from bertmp.export.engine.engine_options import default_profiles
from bertmp.serve import model_config
from bertmp.serve.model_config import MAX_BATCH
from bertmp.serve.model_signature import ModelSignature, read_model_config, read_signature
from bertmp.serve.repository import ModelFolders

COMMITTED = Path(__file__).resolve().parents[2] / "model_repository"
TREC = ModelSignature(("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"), 512, 30522, 2)


def test_committed_files_equal_those_of_the_quickstart() -> None:
    """Whose FP16 graph passes parity."""
    for path, content in model_config.model_files("trec", TREC, gpu_graph=LOW_GRAPHS["fp16"]).items():
        assert (COMMITTED / path).read_text(encoding="utf-8") == content, path
    assert read_signature(COMMITTED, "trec") == TREC


def test_committed_labels_equal_those_of_the_data(trec: Path) -> None:
    labels = read_examples(trec / "train.tsv", need_labels=True).labels or ()
    assert tuple(sorted(set(labels))) == TREC.labels


def test_write_configs_of_the_same_signature_keeps_tuned_files(tmp_path: Path) -> None:
    """What a person tuned stays, and a deployment into a fresh clone changes no committed file."""
    shutil.copytree(COMMITTED, tmp_path, dirs_exist_ok=True)
    tuned = tmp_path / "trec_encoder" / "configs" / "cpu.pbtxt"
    tuned.write_text(tuned.read_text().replace("count: 2", "count: 3"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    profiles = len(default_profiles(TREC.max_length, MAX_BATCH))
    for number in (None, profiles):
        ModelFolders(tmp_path, "trec").write_configs(TREC, number, gpu_graph=LOW_GRAPHS["fp16"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_write_configs_names_every_profile_of_the_engine(tmp_path: Path) -> None:
    folders = ModelFolders(tmp_path, "trec")
    folders.write_configs(TREC, 3)
    folders.write_configs(TREC, 5)
    config = read_model_config(tmp_path / "trec_encoder" / "config.pbtxt")
    assert list(config.instance_group[0].profile) == ["0", "1", "2", "3", "4"]


def test_gpu_and_cpu_encoder_have_the_same_inputs_and_outputs() -> None:
    gpu, cpu = model_config.gpu_encoder("m", TREC, 1), model_config.cpu_encoder("m", TREC)
    assert (gpu.platform, cpu.platform) == ("tensorrt_plan", "onnxruntime_onnx")
    assert (gpu.input, gpu.output, gpu.max_batch_size) == (cpu.input, cpu.output, cpu.max_batch_size)
    assert gpu.version_policy.latest.num_versions == 2, "the old text version still calls its own encoder"
    assert model_config.text_model("m", TREC).version_policy.latest.num_versions == 1


@pytest.mark.parametrize("labels", [("one",), ("a", "a"), ("a", " "), ("a", "b\nc")])
def test_signature_with_invalid_labels_is_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(InputError):
        ModelSignature(labels, 512, 30522, 2)


def test_read_model_config_of_a_broken_file_names_it(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text("max_batch_size: many")
    with pytest.raises(InputError, match="not a Triton model configuration"):
        read_model_config(path)
