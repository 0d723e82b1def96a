"""`bertmp doctor`: what is looked up, what is decided, and that neither ever crashes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bertmp.core.hardware import Gpu, find_gpu, machine, nvidia_driver
from bertmp.environment import doctor
from bertmp.environment.doctor import REQUIREMENTS, CommandCheck, Component, check_commands, components
from bertmp.environment.triton_install import TritonRuntime

HOPPER = Gpu("NVIDIA H100", "9.0", 80 << 30)
ALL = tuple(
    Component(name, "1.0", get=f"get {name}")
    for name in sorted({part for need in REQUIREMENTS for part in (*need.every, *need.one_of)})
)

FAKE_NVML = """
typedef long Device; typedef int Result;
typedef struct { unsigned long long total, free, used; } Memory;
static const char* names[] = {"Tesla P100", "GeForce GTX 1660", "H100"};
static void copy(char* to, const char* from) { while ((*to++ = *from++)) ; }
Result nvmlInitWithFlags(unsigned flags) { return INIT; }
Result nvmlInit_v2(void) { return INIT; }
Result nvmlShutdown(void) { return 0; }
const char* nvmlErrorString(Result result) { return "Unknown Error"; }
Result nvmlSystemGetCudaDriverVersion_v2(int* version) { *version = 12080; return 0; }
Result nvmlSystemGetCudaDriverVersion(int* version) { *version = 12080; return 0; }
Result nvmlSystemGetDriverVersion(char* version, unsigned length) { copy(version, "570.86.10"); return 0; }
Result nvmlDeviceGetCount_v2(unsigned* count) { *count = 3; return 0; }
Result nvmlDeviceGetHandleByIndex_v2(unsigned index, Device* device) { *device = index; return 0; }
Result nvmlDeviceGetHandleByUUID(const char* uuid, Device* device) { *device = 2; return 0; }
Result nvmlDeviceGetName(Device device, char* name, unsigned length) { copy(name, names[device]); return 0; }
Result nvmlDeviceGetMemoryInfo(Device device, Memory* memory) { memory->total = 85899345920ull; return 0; }
Result nvmlDeviceGetCudaComputeCapability(Device device, int* major, int* minor) {
    static const int majors[] = {6, 7, 9}, minors[] = {0, 5, 0};
    *major = majors[device]; *minor = minors[device]; return 0; }
"""
"""The calls of NVML that are made, with the signatures of nvml.h."""


def without(*names: str, problem: str = "not installed") -> list[Component]:
    return [replace(part, version="", problem=problem) if part.name in names else part for part in ALL]


def checked(command: str, found: list[Component], gpus: tuple[Gpu, ...] = ()) -> CommandCheck:
    return next(one for one in check_commands(found, gpus, bf16_cpu=False) if one.command == command)


def test_with_everything_every_command_runs() -> None:
    assert all(one.runs for one in check_commands(ALL, (HOPPER,), bf16_cpu=True))


def test_with_nothing_only_what_needs_nothing_runs() -> None:
    found = [replace(part, version="", problem="not installed") for part in ALL]
    assert {one.command for one in check_commands(found, (), bf16_cpu=False) if one.runs} == {"doctor"}


def test_what_is_missing_is_named_with_the_way_to_it() -> None:
    one = checked("serve", without("triton"))
    assert (one.runs, one.why_not, one.get) == (False, ("triton: not installed",), ("get triton",))


def test_either_builder_will_do() -> None:
    assert checked("build-engine", without("tensorrt")).runs
    assert "TensorRT-RTX" in checked("build-engine", without("tensorrt")).note
    assert checked("build-engine", without("tensorrt-rtx"), (HOPPER,)).note == "with TensorRT"
    none = checked("build-engine", without("tensorrt", "tensorrt-rtx"))
    assert not none.runs
    assert len(none.why_not) == 2


def test_tensorrt_itself_needs_a_gpu() -> None:
    assert "TensorRT-RTX" in checked("build-engine", without()).note
    alone = checked("build-engine", without("tensorrt-rtx"))
    assert not alone.runs
    assert "no GPU" in " ".join(alone.why_not)


def test_a_gpu_that_torch_cannot_use_is_pointed_out() -> None:
    found = [replace(part, detail="built for the CPU") if part.name == "torch" else part for part in ALL]
    assert "although there is a GPU" in checked("train", found, (HOPPER,)).note
    assert checked("train", list(ALL), (HOPPER,)).note == "on NVIDIA H100"


def test_this_machine() -> None:
    here = machine()
    assert 1 <= here.cores <= (os.cpu_count() or 1)
    assert here.memory_bytes > 1 << 28
    assert here.cpu
    assert "Linux" in here.system


def test_the_components_of_this_environment_are_seen() -> None:
    found = {part.name: part for part in components()}
    for need in REQUIREMENTS:
        assert {*need.every, *need.one_of} <= set(found)
    assert found["torch"].usable
    assert found["torch"].detail.startswith("built for ")
    assert "CPUExecutionProvider" in found["onnxruntime"].detail


def test_doctor_in_json(run_bertmp) -> None:  # type: ignore[no-untyped-def]
    done = run_bertmp("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["command"] for one in found["commands"]] == [need.command for need in REQUIREMENTS]
    assert set(found["assets"]) == {"minilm", "trec", "sms-spam", "moviedialog"}
    assert {"machine", "gpus", "python", "components", "home"} <= set(found)


def test_doctor_for_people(run_bertmp) -> None:  # type: ignore[no-untyped-def]
    done = run_bertmp("doctor", env={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    for need in REQUIREMENTS:
        assert need.command in done.stdout
    assert "\x1b[" not in done.stdout


def test_doctor_in_an_environment_with_hardly_anything(tmp_path: Path) -> None:
    """A fresh environment that has our packages except every one that doctor looks for."""
    looked_for = (
        "torch",
        "onnx",
        "tokenizers",
        "safetensors",
        "pyarrow",
        "triton",
        "tensorrt",
        "model_signing",
    )
    absent = (*looked_for, "numpy", "pip", "bertmp")
    light = tmp_path / "light"
    light.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith((*absent, "__editable__")):
            (light / path.name).symlink_to(path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "fresh"], check=True)
    environment = {
        "PYTHONPATH": f"{light}{os.pathsep}{Path(__file__).parents[3]}",
        "BERTMP_HOME": str(tmp_path / "none"),
        "PATH": "/nonexistent",
    }
    done = subprocess.run(
        [tmp_path / "fresh" / "bin" / "python", "-m", "bertmp", "doctor", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {one["command"] for one in found["commands"] if one["runs"]} == {"doctor"}
    assert {part["name"] for part in found["components"] if part["usable"]} <= {"triton host"}
    assert not (tmp_path / "none").exists()


def test_a_library_that_fails_to_load_is_shown_with_its_reason(tmp_path: Path, run_bertmp) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "tensorrt.py").write_text(
        "raise ImportError('libnvinfer.so.11: cannot open shared object file')\n"
    )
    (tmp_path / "tensorrt_rtx.py").write_text("import os; os.abort()\n")
    done = run_bertmp("doctor", "--json", env={"PYTHONPATH": str(tmp_path)})
    found = {part["name"]: part for part in json.loads(done.stdout)["components"]}
    assert "libnvinfer.so.11: cannot open" in found["tensorrt"]["problem"]
    assert "crashed (signal 6)" in found["tensorrt-rtx"]["problem"]


GPUS = (
    ("Tesla P100", "6.0", 85899345920, "12.8", "570.86.10", False, False),
    ("GeForce GTX 1660", "7.5", 85899345920, "12.8", "570.86.10", False, False),
    ("H100", "9.0", 85899345920, "12.8", "570.86.10", True, True),
)


@pytest.mark.parametrize(
    ("status", "visible", "found"),
    [
        (0, None, GPUS),
        (0, "2, 0", (GPUS[2], GPUS[0])),
        (0, "GPU-1234", GPUS[2:]),
        (0, "1,-1,2", GPUS[1:2]),
        (0, "", ()),
        (999, None, ()),
    ],
)
def test_gpus_are_those_that_the_driver_shows(
    tmp_path: Path, status: int, visible: str | None, found: Sequence[object]
) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: no driver can be simulated")
    (tmp_path / "nvml.c").write_text(FAKE_NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    build = [compiler, "-shared", "-fPIC", f"-DINIT={status}", "-o", str(library), str(tmp_path / "nvml.c")]
    subprocess.run(build, check=True)
    code = (
        "import json; from dataclasses import astuple; from bertmp.core.hardware import nvidia_driver\n"
        "driver = nvidia_driver()\n"
        "gpus = [(*astuple(g), g.fp16_tensor_cores, g.bf16_tensor_cores) for g in driver.gpus]\n"
        "print(json.dumps([gpus, driver.cuda, driver.problem]))"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    gpus, cuda, problem = json.loads(done.stdout)
    assert [tuple(gpu) for gpu in gpus] == list(found)
    assert cuda == ("" if status else "12.8")
    assert bool(problem) == (not found)


def test_gpus_without_nvml_are_none_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvidia_driver().problem == "unknown: nvidia-ml-py is not installed"
    assert find_gpu() is None


def test_doctor_names_the_vulnerabilities_of_an_old_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    details = {}
    for version in ("2.51.0", "2.59.0"):
        found = TritonRuntime("system", version, Path("tritonserver"), Path("python3"), Path("backends"))
        monkeypatch.setattr(doctor, "find_runtime", lambda found=found: found)
        details[version] = next(part.detail for part in components() if part.name == "triton")
    assert "CVE-2025-23319" in details["2.51.0"]
    assert "fixed in 25.07" in details["2.51.0"]
    assert "CVE" not in details["2.59.0"]


def test_every_command_is_listed() -> None:
    from bertmp.cli.app import COMMANDS

    assert [need.command for need in REQUIREMENTS] == [name for name, *_ in COMMANDS]
