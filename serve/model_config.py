"""The Triton configurations of a served model: two models, each configured for the kinds of host.

`config.pbtxt` is for a host with a GPU, `configs/cpu.pbtxt` for one without (Triton picks it with
`--model-config-name=cpu`). The encoder has `configs/gpu-onnx.pbtxt` too, for a GPU and versions without an
engine; the text model, which has none of that name, is then run with its `config.pbtxt`, as Triton does. All
are built as protobuf messages and rendered by one function.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from bertmp.export.bundle import FP32_GRAPH, LABELS
from bertmp.export.engine.engine_options import default_profiles
from bertmp.serve.model_signature import ModelSignature, encoder_name, render
from bertmp.serve.queueing import bound_queue
from bertmp.serve.served_tasks import COMMON, TASKS, AnswerSettings
from bertmp.serve.serving_table import ServingTable

MAX_BATCH = 32
"""The largest batch of a request and of an encoder call; engines are built for it."""

MAX_TEXT_BYTES = 1_000_000
MAX_WINDOWS = 128
"""The most windows of one text: it should not keep a worker for minutes."""

GPU_INSTANCES = 2
"""Workers of a text model whose encoder runs on a GPU: while one waits for it, the other tokenizes."""

GPU_LENGTH_STEP = 16
"""On a GPU a call costs more than a little padding, so lengths are rounded up to a multiple; on a CPU not."""

TEXT_VERSIONS = 1
ENCODER_VERSIONS = 2
"""Versions loaded at once. While a text model is switched, the old version still calls its own encoder."""

VERSION_COMPATIBLE = "version_compatible"
"""An encoder's parameter: its engine loads only in a server that was started with
`--backend-config=tensorrt,version-compatible=true`."""

GPU_ONNX_FILE = "configs/gpu-onnx.pbtxt"
"""An encoder's configuration for a GPU without an engine, in its folder."""

SETTINGS = "settings.json"
"""The file in a text model's version that its code reads first."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")

REFERENCE = ServingTable(cores=2, workers=2, threads=1, graph=FP32_GRAPH)
"""The table of the configurations that are committed."""


def model_files(
    name: str,
    signature: ModelSignature,
    profiles: int | None = None,
    version_compatible: bool = False,
    serving: ServingTable = REFERENCE,
    gpu_graph: str = FP32_GRAPH,
) -> dict[str, str]:
    """Every file of the two models that does not belong to a version: path in the repository → content.

    Args:
        profiles: the engine's number of optimisation profiles; that of a default engine where left out.
        version_compatible: whether the engine is for later versions of TensorRT, too.
        serving: how the text model uses a machine without a GPU.
        gpu_graph: the graph's file that a GPU runs where there is no engine.
    """
    encoder = encoder_name(name)
    labels = {f"{name}/{LABELS}": "".join(f"{label}\n" for label in signature.labels)}
    if profiles is None:
        profiles = len(default_profiles(signature.max_length, MAX_BATCH))
    return {
        f"{name}/config.pbtxt": render(text_model(name, signature)),
        f"{name}/configs/cpu.pbtxt": render(text_model(name, signature, serving)),
        **(labels if signature.labels else {}),
        f"{encoder}/config.pbtxt": render(gpu_encoder(name, signature, profiles, version_compatible)),
        f"{encoder}/configs/cpu.pbtxt": render(cpu_encoder(name, signature)),
        f"{encoder}/{GPU_ONNX_FILE}": render(gpu_onnx_encoder(name, signature, gpu_graph)),
    }


def text_model(name: str, signature: ModelSignature, serving: ServingTable | None = None) -> Any:
    """NAME: text to answers, in Triton's Python backend.

    Args:
        serving: how a machine without a GPU is used; None for one whose GPU runs the encoder.
    """
    config = _model(name, TEXT_VERSIONS)
    config.backend = "python"
    for tensor in ("TEXT", "TEXT_PAIR") if signature.pairs else ("TEXT",):
        config.input.add(name=tensor, data_type=pb.TYPE_STRING, dims=[1])
    for output, kind in {**TASKS[signature.task].answers, **COMMON}.items():
        added = config.output.add(name=output, data_type=_TYPES[kind], dims=[1])
        if output == "PROBABILITIES":
            added.dims[:] = [len(signature.labels)]
            added.label_filename = LABELS
        if output == "EMBEDDING":
            added.dims[:] = [signature.hidden_size]
    count = GPU_INSTANCES if serving is None else serving.workers
    config.instance_group.add(count=count, kind=pb.ModelInstanceGroup.KIND_CPU)
    table = json.dumps({"length_step": GPU_LENGTH_STEP}) if serving is None else serving.to_text()
    config.parameters["serving"].string_value = table
    if serving is not None:
        config.dynamic_batching.preferred_batch_size.append(
            min(serving.preferred_batch, config.max_batch_size)
        )
    config.parameters["task"].string_value = signature.task
    return config


_TYPES = {"BYTES": pb.TYPE_STRING, "FP32": pb.TYPE_FP32, "BOOL": pb.TYPE_BOOL, "INT32": pb.TYPE_INT32}


def add_outputs(config: Any) -> bool:
    """Adds what an earlier version's text model did not return; False where there is nothing to add."""
    present = {output.name for output in config.output}
    for name in COMMON:
        if name not in present:
            config.output.add(name=name, data_type=_TYPES[COMMON[name]], dims=[1])
    return not set(COMMON) <= present


def set_serving(config: Any, serving: ServingTable) -> bool:
    """Fits a text model's configuration for a CPU to this machine; workers that a person has set stay.

    Returns:
        False where nothing changed.
    """
    text = config.parameters["serving"].string_value
    of_0_1 = replace(serving, cores=0, workers=_WORKERS_OF_0_1)  # which called the encoder
    before = ServingTable(**json.loads(text)) if text else of_0_1
    counts = [group.count for group in config.instance_group]
    same = (before.cores, before.workers) == (serving.cores, serving.workers)  # else of another memory
    if text and (counts != [before.workers] or same):
        return False
    table = replace(before, cores=serving.cores, workers=serving.workers, threads=serving.threads)
    config.parameters["serving"].string_value = table.to_text()
    if counts == [before.workers]:
        config.instance_group[0].count = table.workers
    return True


_WORKERS_OF_0_1 = 2


def gpu_encoder(name: str, signature: ModelSignature, profiles: int, version_compatible: bool = False) -> Any:
    """NAME_encoder on a GPU: token ids to logits by a TensorRT engine."""
    config = _encoder(name, signature)
    config.platform = "tensorrt_plan"
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU)
    # Each of the contexts takes the memory of its own profile, not of the largest
    # (github.com/triton-inference-server/tensorrt_backend, README).
    config.parameters["execution_context_allocation_strategy"].string_value = "ON_PROFILE_CHANGE"
    set_engine(config, profiles, version_compatible)
    return config


def set_engine(config: Any, profiles: int, version_compatible: bool) -> bool:
    """Makes Triton use all of an engine's profiles, each for other lengths: by itself it takes the first.

    Returns:
        False where the configuration is for such an engine already.
    """
    before = config.SerializeToString(deterministic=True)
    if profiles != max((len(group.profile) for group in config.instance_group), default=0):
        for group in config.instance_group:
            group.profile[:] = [str(number) for number in range(profiles)]
    if version_compatible:
        config.parameters[VERSION_COMPATIBLE].string_value = "true"
    elif VERSION_COMPATIBLE in config.parameters:
        del config.parameters[VERSION_COMPATIBLE]
    return bool(config.SerializeToString(deterministic=True) != before)


def gpu_onnx_encoder(name: str, signature: ModelSignature, graph: str = FP32_GRAPH) -> Any:
    """NAME_encoder on a GPU by the ONNX Runtime backend, with its CUDA provider for this kind of group.

    (docs/user_guide/model_configuration.md in github.com/triton-inference-server/server, and the README of
    github.com/triton-inference-server/onnxruntime_backend.)

    Args:
        graph: its file.
    """
    config = _encoder(name, signature)
    config.platform = "onnxruntime_onnx"
    config.default_model_filename = graph
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU)
    return config


def cpu_encoder(name: str, signature: ModelSignature) -> Any:
    """NAME_encoder on a CPU: the FP32 graph, in one session on all cores."""
    config = _encoder(name, signature)
    config.platform = "onnxruntime_onnx"
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    below = (signature.vocab_size, 2, signature.type_vocab_size)
    limits = {
        tensor: {"length": signature.max_length, "below": bound}
        for tensor, bound in zip(INPUTS, below, strict=True)
    }
    config.parameters["limits"].string_value = json.dumps(limits)
    config.parameters["task"].string_value = signature.task
    if signature.pairs:
        config.parameters["pairs"].string_value = "true"
    return config


def _encoder(name: str, signature: ModelSignature) -> Any:
    config = _model(encoder_name(name), ENCODER_VERSIONS)
    for output in TASKS[signature.task].outputs:
        config.output.add(name=output, data_type=pb.TYPE_FP32, dims=_output_dims(output, signature))
    # Triton runs the warm-up before it takes requests: a version that cannot run does not become ready.
    warmup = config.model_warmup.add(name="one short row", batch_size=1)
    dims = [min(16, signature.max_length)]
    for tensor in INPUTS:
        config.input.add(name=tensor, data_type=pb.TYPE_INT64, dims=[-1])
        row = pb.ModelWarmup.Input(data_type=pb.TYPE_INT64, dims=dims, zero_data=True)
        warmup.inputs[tensor].CopyFrom(row)
    return config


def _output_dims(output: str, signature: ModelSignature) -> list[int]:
    """The shape of a graph's output without the batch; -1 stands for the length."""
    width = {
        "last_hidden_state": signature.hidden_size,
        "pooler_output": signature.hidden_size,
        "prediction_logits": signature.vocab_size,
        "seq_relationship_logits": 2,
        "logits": len(signature.labels) or 1,
    }[output]
    task = TASKS[signature.task]
    return [-1, width] if task.per_token and output == task.outputs[0] else [width]


def _model(name: str, versions: int) -> Any:
    config = pb.ModelConfig(name=name, max_batch_size=MAX_BATCH)
    config.version_policy.latest.num_versions = versions
    bound_queue(config)
    return config


def text_settings(
    signature: ModelSignature,
    answering: AnswerSettings,
    *,
    pad_id: int,
    mask: int | None,
    max_length: int,
    sha256: Mapping[str, str],
) -> dict[str, Any]:
    """`settings.json` of a text model's version, read by its model.py.

    Args:
        pad_id: id of the padding token.
        mask: id of `[MASK]`; None for a task without.
        max_length: the most tokens that are read at once, `[CLS]` and `[SEP]` included.
        sha256: of the files of the encoder's version, by name.
    """
    return {
        "task": signature.task,
        "pairs": signature.pairs,
        "labels": list(signature.labels),
        "max_batch": MAX_BATCH,
        "max_length": max_length,
        "max_text_bytes": MAX_TEXT_BYTES,
        "max_windows": MAX_WINDOWS,
        "pad_id": pad_id,
        "mask": mask,
        **asdict(answering),
        "sha256": dict(sha256),
    }
