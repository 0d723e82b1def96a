"""Deploying into a repository that nobody serves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertmp import models, rollback
from bertmp.core.errors import GateFailed, InputError
from bertmp.core.io import read_json, sha256_file, write_json
from bertmp.environment.triton_install import TritonRuntime
from bertmp.export import bundle as names
from bertmp.serve.model_signature import read_model_config
from bertmp.serve.repository import ModelFolders, numbered, servable
from bertmp.serve.serve_options import ServeOptions
from bertmp.serve.server_config import command_line
from tests.conftest import RunBertmp
from tests.serve.bundles import LABELS, altered, deploy, with_stage

CODE = (
    *("__init__.py", "graph.py", "model.py", "reading.py", "wire.py"),
    *("answers/__init__.py", "answers/scorer.py", "answers/spans.py", "answers/texts.py"),
    *("cpu_session/__init__.py", "cpu_session/pipe.py", "cpu_session/worker.py"),
)
"""What a text model's version runs."""


def states(repository: Path) -> dict[int, str]:
    return {entry.version: entry.state for entry in models(repository)}


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_deployed_version_needs_nothing_of_bertmp(bundle: Path, tmp_path: Path) -> None:
    result = deploy(bundle, "trec", tmp_path)
    assert (result.version, result.new, result.parity) == (1, True, "not checked")
    files = everything_in(tmp_path)
    beside = {name for name in files if name.startswith("trec/1/lib")}
    assert {"trec/1/lib/LICENSE", "trec/1/lib/tokenizers/tokenizers.abi3.so"} < beside
    assert files - beside == {
        *("audit.jsonl", "trec", "trec/.lock", "trec/config.pbtxt", "trec/configs", "trec/configs/cpu.pbtxt"),
        *("trec/labels.txt", "trec/versions.json", "trec/1", "trec/1/settings.json"),
        *(f"trec/1/{name}" for name in (*CODE, "answers", "cpu_session")),
        *("trec/1/golden.json", "trec/1/tokenizer.json"),
        *("trec_encoder", "trec_encoder/config.pbtxt", "trec_encoder/configs"),
        *("trec_encoder/configs/cpu.pbtxt", "trec_encoder/configs/gpu-onnx.pbtxt"),
        *("trec_encoder/1", "trec_encoder/1/model.onnx"),
    }
    assert sha256_file(tmp_path / "trec_encoder/1/model.onnx") == sha256_file(bundle / "model.onnx")
    assert read_json(tmp_path / "trec/1/settings.json")["labels"] == list(LABELS)
    for path in tmp_path.rglob("*.pbtxt"):
        assert read_model_config(path).name == path.relative_to(tmp_path).parts[0]
    recorded = read_json(tmp_path / "trec/1/settings.json")["text_sha256"]
    assert {*CODE, "tokenizer.json", "golden.json"} <= recorded.keys()
    for name, digest in recorded.items():
        assert sha256_file(tmp_path / "trec/1" / name) == digest
    for name in CODE:
        assert "bertmp" not in (tmp_path / "trec/1" / name).read_text()
    assert servable(tmp_path) == ["trec", "trec_encoder"]


def test_deploy_of_the_live_bundle_changes_nothing(bundle: Path, tmp_path: Path) -> None:
    deploy(bundle, "trec", tmp_path)
    before = everything_in(tmp_path)
    again = deploy(bundle, "trec", tmp_path)
    assert (again.version, again.new) == (1, False)
    assert "identical" in again.notes[0]
    assert everything_in(tmp_path) == before


def test_deploy_after_rollback_takes_a_new_number(bundle: Path, other_bundle: Path, tmp_path: Path) -> None:
    deploy(bundle, "trec", tmp_path)
    assert deploy(other_bundle, "trec", tmp_path).version == 2
    assert states(tmp_path) == {1: "superseded", 2: "live"}
    assert rollback("trec", tmp_path).version == 1
    assert states(tmp_path) == {1: "live", 2: "retired"}
    for model in ("trec", "trec_encoder"):
        assert numbered(tmp_path / model) == [1]
    with pytest.raises(InputError, match="no earlier version"):
        rollback("trec", tmp_path)
    assert deploy(other_bundle, "trec", tmp_path).version == 3, "a number is never used twice"
    assert states(tmp_path) == {1: "superseded", 2: "retired", 3: "live"}


def test_deploy_with_another_signature_is_refused(bundle: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    deploy(bundle, "trec", repository)
    before = everything_in(repository)
    others = altered(bundle, tmp_path / "others", labels__txt=b"A\nB\nC\nD\nE\nF\n")
    with pytest.raises(InputError, match="deploy it under another name"):
        deploy(others, "trec", repository)
    assert everything_in(repository) == before
    assert deploy(others, "letters", repository).version == 1


def test_deploy_with_failed_parity_is_refused(bundle: Path, tmp_path: Path) -> None:
    checked = altered(bundle, tmp_path / "checked")
    with_stage(checked, names.PARITY, {"passed": False, "failed_gates": ["onnx-fp16.max_error"]})
    with pytest.raises(GateFailed, match=r"onnx-fp16\.max_error"):
        deploy(checked, "trec", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
    with_stage(checked, names.PARITY, {"passed": True, "texts": 981, "stages": {"onnx-fp32": {}}})
    assert deploy(checked, "trec", tmp_path / "repository").parity == "passed"
    (found,) = models(tmp_path / "repository")
    assert found.parity is not None
    assert (found.parity["passed"], found.parity["texts"]) == (True, 981)


def test_deploy_after_parity_records_the_parity(bundle: Path, tmp_path: Path) -> None:
    checked = altered(bundle, tmp_path / "checked")
    deploy(checked, "trec", tmp_path / "repository")
    with_stage(checked, names.PARITY, {"passed": True})
    result = deploy(checked, "trec", tmp_path / "repository")
    assert (result.new, result.parity) == (False, "passed")
    assert [entry.parity_verdict for entry in models(tmp_path / "repository")] == ["passed"]


def test_versions_json_of_0_1_is_read(bundle: Path, tmp_path: Path) -> None:
    deploy(bundle, "trec", tmp_path)
    entry = {
        "version": 1,
        "state": "live",
        "fingerprint": "57ce4f80a2bbac388f07280efcf97964c2cba785d9b06b8f4c3b02f0839a3f96",
        "parity": {"passed": True, "reference": "torch-fp32", "texts": 981, "truncated": 0},
        "created": "2026-11-26T06:17:40+00:00",
        "note": "",
    }
    write_json(tmp_path / "trec/versions.json", {"format": 1, "versions": [entry]})
    (found,) = models(tmp_path)
    assert found.to_json() == {"name": "trec", **entry, "precision": "fp32"}
    assert deploy(bundle, "trec", tmp_path).version == 2, "another fingerprint"
    kept, new = read_json(tmp_path / "trec/versions.json")["versions"]
    assert kept == {**entry, "state": "superseded"}
    assert list(new) == [*entry, "accepted"]


@pytest.mark.parametrize("file", ["model.onnx", "labels.txt", "tokenizer.json"])
def test_deploy_of_a_stale_bundle_is_refused(bundle: Path, tmp_path: Path, file: str) -> None:
    stale = altered(bundle, tmp_path / "stale")
    (stale / file).write_bytes((stale / file).read_bytes() + b" ")
    with pytest.raises(InputError, match=f"stale: {file} changed"):
        deploy(stale, "trec", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def with_engine(bundle: Path, folder: Path, builder: str, profiles: list[str]) -> Path:
    built = altered(bundle, folder)
    (built / "engine").mkdir()
    (built / names.ENGINE).write_bytes(b"an engine")
    with_stage(built, names.BUILD_ENGINE, {"builder": builder, "profiles": profiles}, [names.ENGINE])
    return built


def test_deploy_takes_only_engines_that_triton_loads(bundle: Path, tmp_path: Path) -> None:
    profiles = ["1x1:8x16:32x16", "1x17:8x64:32x64"]
    ours = with_engine(bundle, tmp_path / "tensorrt", "tensorrt", profiles)
    deploy(ours, "trec", tmp_path / "one")
    assert (tmp_path / "one/trec_encoder/1/model.plan").read_bytes() == b"an engine"
    config = read_model_config(tmp_path / "one/trec_encoder/config.pbtxt")
    assert list(config.instance_group[0].profile) == ["0", "1"]

    rtx = with_engine(bundle, tmp_path / "rtx", "tensorrt-rtx", profiles)
    result = deploy(rtx, "trec", tmp_path / "two")
    assert not (tmp_path / "two/trec_encoder/1/model.plan").exists()
    assert any("tensorrt-rtx is not deployed" in note for note in result.notes)


@pytest.mark.parametrize(
    ("profiles", "missing"),
    [
        (["1x1:4x16:8x64"], "batch"),
        (["1x1:8x16:32x32", "1x33:4x48:4x64"], "batch 5-32, length 33-64"),
        (["1x1:8x16:32x32"], "length 33-64"),
    ],
)
def test_deploy_of_an_engine_with_requests_that_no_profile_holds_is_refused(
    bundle: Path, tmp_path: Path, profiles: list[str], missing: str
) -> None:
    built = with_engine(bundle, tmp_path / "built", "tensorrt", profiles)
    with pytest.raises(InputError, match=rf"no profile of the engine holds .*{missing}.* up to 32x64"):
        deploy(built, "trec", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_deploy_of_a_version_compatible_engine_asks_the_server_for_it(bundle: Path, tmp_path: Path) -> None:
    profiles = ["1x1:8x16:32x64"]
    plain = with_engine(bundle, tmp_path / "plain", "tensorrt", profiles)
    deploy(plain, "trec", tmp_path / "repository")
    options = ServeOptions(tmp_path / "repository")
    runtime = TritonRuntime("system", "2.62.0", tmp_path, tmp_path, tmp_path)
    models = ["trec", "trec_encoder"]
    flag = "--backend-config=tensorrt,version-compatible=true"
    assert flag not in command_line(options, "", runtime, tmp_path, models, "shm")
    compatible = with_engine(bundle, tmp_path / "compatible", "tensorrt", profiles)
    results = {"builder": "tensorrt", "profiles": profiles, "version_compatible": True}
    (compatible / names.ENGINE).write_bytes(b"a version-compatible engine")
    with_stage(compatible, names.BUILD_ENGINE, results, [names.ENGINE])
    deploy(compatible, "trec", tmp_path / "repository")
    assert flag in command_line(options, "", runtime, tmp_path, models, "shm")
    assert flag not in command_line(options, "cpu", runtime, tmp_path, models, "shm")


def test_deploy_of_an_engine_with_other_profiles_than_a_kept_one_is_refused(
    bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    """One configuration names the profiles of all versions: one would not load, or refuse texts."""
    two = with_engine(bundle, tmp_path / "two", "tensorrt", ["1x1:8x16:32x16", "1x17:8x64:32x64"])
    one = with_engine(other_bundle, tmp_path / "one", "tensorrt", ["1x1:8x16:32x64"])
    repository = tmp_path / "repository"
    deploy(two, "trec", repository)
    before = (repository / "trec_encoder" / "config.pbtxt").read_bytes()
    message = "the engine has 1 optimisation profiles, and that of version 1 has 2"
    with pytest.raises(InputError, match=message):
        deploy(one, "trec", repository)
    assert (repository / "trec_encoder" / "config.pbtxt").read_bytes() == before
    assert numbered(repository / "trec") == [1]


def test_the_contexts_of_an_engine_take_what_their_profiles_need(bundle: Path, tmp_path: Path) -> None:
    deploy(bundle, "trec", tmp_path)
    config = read_model_config(tmp_path / "trec_encoder" / "config.pbtxt")
    strategy = config.parameters["execution_context_allocation_strategy"].string_value
    assert strategy == "ON_PROFILE_CHANGE"


def test_deploy_of_an_engine_that_no_known_release_loads_says_so(bundle: Path, tmp_path: Path) -> None:
    built = with_engine(bundle, tmp_path / "built", "tensorrt", ["1x1:8x16:32x64"])
    results = {"builder": "tensorrt", "builder_version": "11.4.0.1", "profiles": ["1x1:8x16:32x64"]}
    with_stage(built, names.BUILD_ENGINE, results, [names.ENGINE])
    notes = " ".join(deploy(built, "trec", tmp_path / "repository").notes)
    assert "no Triton release in the table loads engines of TensorRT 11.4.0.1" in notes
    with pytest.raises(InputError, match=r"Triton 26\.05 has TensorRT"):
        deploy(built, "other", tmp_path / "repository", triton_release="26.05")


def test_parity_before_the_engine_was_built_does_not_count_for_it(bundle: Path, tmp_path: Path) -> None:
    early = altered(bundle, tmp_path / "early")
    with_stage(early, names.PARITY, {"passed": True})
    built = with_engine(early, tmp_path / "built", "tensorrt", ["1x1:8x16:32x64"])
    with pytest.raises(GateFailed, match="it was built after parity was run"):
        deploy(built, "trec", tmp_path / "repository")
    result = deploy(built, "trec", tmp_path / "repository", allow_incomplete=True)
    assert result.parity == "incomplete"
    assert any("built after parity was run" in note for note in result.notes)


def test_a_bundle_says_whether_its_model_takes_pairs(bundle: Path, tmp_path: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    said = json.dumps({**config, "text_pairs": True}).encode()
    pairs = altered(bundle, tmp_path / "pairs", config__json=said)
    assert not [note for note in deploy(pairs, "said", tmp_path / "repository").notes if "pairs" in note]
    by_parity = altered(bundle, tmp_path / "by_parity")
    with_stage(by_parity, names.PARITY, {"passed": True, "pairs": True})
    notes = deploy(by_parity, "checked", tmp_path / "repository").notes
    assert any("its checkpoint does not say so, and its parity was run on pairs" in note for note in notes)
    deploy(bundle, "single", tmp_path / "repository")
    for name, inputs in (("said", 2), ("checked", 2), ("single", 1)):
        for file in ("config.pbtxt", "configs/cpu.pbtxt"):
            config = read_model_config(tmp_path / "repository" / name / file)
            assert [entry.name for entry in config.input] == ["TEXT", "TEXT_PAIR"][:inputs]
    with pytest.raises(InputError, match="differs from the live version in its pairs False against True"):
        deploy(by_parity, "single", tmp_path / "repository")


def test_parity_of_single_texts_says_nothing_of_pairs(bundle: Path, tmp_path: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    said = {pairs: json.dumps({**config, "text_pairs": pairs}).encode() for pairs in (True, False)}
    by_singles = altered(bundle, tmp_path / "by_singles", config__json=said[True])
    with_stage(by_singles, names.PARITY, {"passed": True, "pairs": False})
    with pytest.raises(GateFailed, match="parity was run on single texts, and the model takes pairs"):
        deploy(by_singles, "refused", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
    single = altered(bundle, tmp_path / "single", config__json=said[False])
    with_stage(single, names.PARITY, {"passed": True, "pairs": True})
    notes = deploy(single, "single", tmp_path / "repository").notes
    assert "parity was run on pairs of texts, and the model is served for single ones" in notes


def test_deploy_of_a_stale_engine_is_refused(bundle: Path, tmp_path: Path) -> None:
    built = with_engine(bundle, tmp_path / "built", "tensorrt", ["1x1:8x16:32x64"])
    (built / names.ENGINE).write_bytes(b"another")
    with pytest.raises(InputError, match="build-engine stage is stale"):
        deploy(built, "trec", tmp_path / "repository")


def test_deploy_of_an_engine_of_another_tensorrt_is_refused(bundle: Path, tmp_path: Path) -> None:
    built = altered(bundle, tmp_path / "built")
    (built / "engine").mkdir()
    (built / names.ENGINE).write_bytes(b"an engine")
    results = {"builder": "tensorrt", "builder_version": "10.13.3.9", "profiles": ["1x1:8x16:32x64"]}
    with_stage(built, names.BUILD_ENGINE, results, [names.ENGINE])
    with pytest.raises(
        InputError, match=r"Triton 25\.12 has TensorRT 10\.14\.1\.48, and this is 10\.13\.3\.9"
    ):
        deploy(built, "trec", tmp_path / "repository", triton_release="25.12")
    assert not (tmp_path / "repository").exists()
    assert deploy(built, "trec", tmp_path / "repository", triton_release="25.10").version == 1
    with_stage(built, names.BUILD_ENGINE, {**results, "for_triton": "25.08"}, [names.ENGINE])
    with pytest.raises(InputError, match=r"Triton 25\.08 has TensorRT 10\.13\.2\.6"):
        deploy(built, "trec", tmp_path / "repository")
    with_stage(built, names.BUILD_ENGINE, {**results, "weights": "stripped"}, [names.ENGINE])
    with pytest.raises(InputError, match="without its weights"):
        deploy(built, "trec", tmp_path / "repository")


def test_deploy_after_an_interrupted_one_cleans_up(bundle: Path, other_bundle: Path, tmp_path: Path) -> None:
    deploy(bundle, "trec", tmp_path)
    (tmp_path / "trec_encoder/2").mkdir()  # its text version never appeared
    (tmp_path / "trec_encoder/2/model.onnx").write_bytes(b"half")
    (tmp_path / "trec/.2.abc.part").mkdir()
    assert deploy(other_bundle, "trec", tmp_path).version == 2
    assert numbered(tmp_path / "trec_encoder") == [1, 2]
    assert sha256_file(tmp_path / "trec_encoder/2/model.onnx") == sha256_file(other_bundle / "model.onnx")
    assert not list(tmp_path.rglob("*.part"))


def test_write_version_interrupted_leaves_nothing(tmp_path: Path) -> None:
    folders = ModelFolders(tmp_path, "trec")

    def fill(folder: Path) -> None:
        (folder / "half").write_bytes(b"half")

    def fail(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folders.write_version(1, fill, fail)
    assert not numbered(folders.encoder)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["", "a/b", "..", "trec_encoder", "-x"])
def test_deploy_under_an_invalid_name_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be a model's name"):
        deploy(bundle, name, tmp_path)


def test_commands_with_bad_input_print_one_line(bundle: Path, tmp_path: Path, run_bertmp: RunBertmp) -> None:
    repository = ("--repository", tmp_path / "repository")
    refused = [
        (("deploy", tmp_path / "none", "--name", "trec", *repository), "no such bundle"),
        (("deploy", tmp_path, "--name", "trec", *repository), "not a bundle"),
        (("models", *repository), "no such model repository"),
        (("rollback", "trec", *repository), "no such model repository"),
        (
            ("deploy", bundle, "--name", "t", *repository, "--allow-unverified", "--server", "127.0.0.1:9"),
            "no Triton server answers",
        ),
    ]
    for arguments, message in refused:
        done = run_bertmp(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert message in done.stderr
    assert not (tmp_path / "repository").exists()
