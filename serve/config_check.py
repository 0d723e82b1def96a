"""Checks a version's model configurations against what Triton demands, before a server sees them.

The demands are those of Triton's model configuration (docs/user_guide/model_configuration.md in
github.com/triton-inference-server/server) as far as our models use it: a person may have tuned the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from bertmp.core.errors import InputError
from bertmp.serve.model_config import GPU_ONNX_FILE, INPUTS
from bertmp.serve.model_signature import read_model_config
from bertmp.serve.repository import CONFIGS, ModelFolders

_FILES = {
    **dict.fromkeys(("tensorrt_plan", "tensorrt"), "model.plan"),
    **dict.fromkeys(("onnxruntime_onnx", "onnxruntime"), "model.onnx"),
    "python": "model.py",
}
"""Platform or backend → the file of a version that it runs, unless the configuration names another."""


def check_configs(folders: ModelFolders, version: int) -> None:
    """Checks both models' configurations, each for every kind of host.

    Raises:
        InputError: Triton would refuse one of them, or would not run the version with it.
    """
    for model in (folders.text, folders.encoder):
        for path in _configurations(model):
            config = read_model_config(path)
            needed = ["TEXT"] if model == folders.text else [*INPUTS]
            for what in _faults(config, model, version, needed):
                raise InputError(what, path, "fix it, or remove it and deploy again")


def _configurations(model: Path) -> list[Path]:
    """A model's configurations. That for a GPU without an engine is the encoder's alone, since 0.2."""
    more = model / GPU_ONNX_FILE
    return [*(model / name for name in CONFIGS), *([more] if more.is_file() else [])]


def _faults(config: Any, model: Path, version: int, needed: list[str]) -> Iterator[str]:
    if config.name != model.name:
        yield f"the configuration is of '{config.name}' and not of '{model.name}'"
    runs = config.backend or config.platform
    if not runs:
        yield "neither a platform nor a backend is named"
    file = config.default_model_filename or _FILES.get(runs, "")  # of another backend, its name is not known
    # An engine is only there where one was built: on a host without one, the other configuration counts.
    if file and not runs.startswith("tensorrt") and not (model / str(version) / file).is_file():
        yield f"the version has no {file}, which '{runs}' runs"
    if config.max_batch_size < 1:
        yield f"max_batch_size is {config.max_batch_size}: requests have a batch"
    names = [tensor.name for tensor in (*config.input, *config.output)]
    if len(set(names)) < len(names):
        yield "two tensors have the same name"
    missing = set(needed) - {tensor.name for tensor in config.input}
    if missing:
        yield f"the input {min(missing)} is missing"
    for tensor in (*config.input, *config.output):
        if (
            tensor.data_type == pb.TYPE_INVALID
            or not tensor.dims
            or any(dim == 0 or dim < -1 for dim in tensor.dims)
        ):
            yield f"{tensor.name} has no valid type and shape"
    for output in config.output:
        if output.label_filename and not (model / output.label_filename).is_file():
            yield f"there is no {output.label_filename}, which names the classes of {output.name}"
    for group in config.instance_group:
        if group.count < 0:
            yield f"an instance group has {group.count} instances"
    policy = config.version_policy.WhichOneof("policy_choice")
    if policy == "specific" and version not in config.version_policy.specific.versions:
        yield f"its version policy does not take version {version}"
    sizes = config.dynamic_batching.preferred_batch_size
    if any(not 0 < size <= config.max_batch_size for size in sizes):
        yield "a preferred batch size is not between 1 and max_batch_size"
