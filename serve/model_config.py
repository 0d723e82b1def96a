"""The Triton configurations of a served classifier: two models, each configured for two kinds of host.

`config.pbtxt` is for a host with a GPU, `configs/cpu.pbtxt` for one without (Triton picks it with
`--model-config-name=cpu`). Both are built as protobuf messages and rendered by one function.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from bertmp.core.errors import InputError
from bertmp.export.bundle import LABELS, read_labels
from bertmp.export.engine.engine_options import default_profiles
from bertmp.serve.queueing import bound_queue

MAX_BATCH = 32
"""The largest batch of a request and of an encoder call; engines are built for it."""

MAX_TEXT_BYTES = 1_000_000
INSTANCES = 2
"""Instances of a model on a CPU: while one waits for the other model, the other works."""

GPU_LENGTH_STEP = 16
"""On a GPU a call costs more than a little padding, so lengths are rounded up to a multiple; on a CPU not."""

TEXT_VERSIONS = 1
ENCODER_VERSIONS = 2
"""Versions loaded at once. While a text model is switched, the old version still calls its own encoder."""

VERSION_COMPATIBLE = "version_compatible"
"""An encoder's parameter: its engine loads only in a server that was started with
`--backend-config=tensorrt,version-compatible=true`."""

SETTINGS = "settings.json"
"""The file in a text model's version that its code reads first."""

FILES = "FILES"
"""A text model's output: the SHA-256 of the version's graph, engine and tokenizer, a JSON object by file."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")

Host = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class ModelSignature:
    """What a client can rely on through all versions of a model.

    Attributes:
        labels: the classes in the order of the logits.
        max_length: the most tokens that the encoder takes; a text model may truncate its texts to fewer.
        vocab_size: the number of token ids.
        type_vocab_size: the number of token type ids.
    """

    labels: tuple[str, ...]
    max_length: int
    vocab_size: int
    type_vocab_size: int

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            what = f"{len(self.labels)} labels where at least 2 are needed"
            raise InputError(what, "", "deploy a classifier")
        for label in self.labels:
            if not label.strip() or "\n" in label or "\r" in label:
                raise InputError(f"{label!r} cannot be a label", "", "name it in one line of text")
        if len(set(self.labels)) != len(self.labels):
            raise InputError("two labels are the same", "", "give every class its own name")
        if self.max_length < 3 or self.vocab_size < 1 or self.type_vocab_size < 1:
            raise InputError("the model takes no text", "", "check the checkpoint's config.json")

    def difference(self, other: ModelSignature) -> str | None:
        """The first difference from `other`, in words; None where they agree."""
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            if mine != theirs:
                first, second = (", ".join(v) if isinstance(v, tuple) else v for v in (mine, theirs))
                return f"{name} {first} against {second}"
        return None


def signature_of(config: dict[str, Any], labels: list[str]) -> ModelSignature:
    """The signature of a bundle, from its `config.json` (Hugging Face's keys) and labels.

    Raises:
        InputError: a key is missing.
    """
    try:
        return ModelSignature(
            tuple(labels),
            int(config["max_position_embeddings"]),
            int(config["vocab_size"]),
            int(config.get("type_vocab_size", 2)),
        )
    except KeyError as error:
        raise InputError(f"config.json does not name {error}", "", "export the checkpoint again") from error


def read_signature(repository: Path, name: str) -> ModelSignature:
    """The signature of a model in the repository, from its configuration and labels.

    Raises:
        InputError: its files are missing or not as `deploy` writes them.
    """
    path, labels_file = signature_files(repository, name)
    config = read_model_config(path)
    try:
        limits = json.loads(config.parameters["limits"].string_value)
        labels = read_labels(labels_file)
        ids, types = limits["input_ids"], limits["token_type_ids"]
        return ModelSignature(tuple(labels), ids["length"], ids["below"], types["below"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("the model was not written by 'bertmp deploy'", path, "use another name") from error


def signature_files(repository: Path, name: str) -> tuple[Path, Path]:
    """The files that name a model's signature: the encoder's configuration for a CPU, and the labels."""
    return repository / encoder_name(name) / "configs" / "cpu.pbtxt", repository / name / LABELS


def encoder_name(name: str) -> str:
    """The name of the model that computes the logits of the text model `name`."""
    return f"{name}_encoder"


def model_files(
    name: str, signature: ModelSignature, profiles: int | None = None, version_compatible: bool = False
) -> dict[str, str]:
    """Every file of the two models that does not belong to a version: path in the repository → content.

    Args:
        profiles: the engine's number of optimisation profiles; that of a default engine where left out.
        version_compatible: whether the engine is for later versions of TensorRT, too.
    """
    encoder = encoder_name(name)
    if profiles is None:
        profiles = len(default_profiles(signature.max_length, MAX_BATCH))
    return {
        f"{name}/config.pbtxt": render(text_model(name, signature, "gpu")),
        f"{name}/configs/cpu.pbtxt": render(text_model(name, signature, "cpu")),
        f"{name}/labels.txt": "".join(f"{label}\n" for label in signature.labels),
        f"{encoder}/config.pbtxt": render(gpu_encoder(name, signature, profiles, version_compatible)),
        f"{encoder}/configs/cpu.pbtxt": render(cpu_encoder(name, signature)),
    }


def render(config: Any) -> str:
    """A ModelConfig message as Triton reads it from a file."""
    return str(text_format.MessageToString(config, as_utf8=True))


def read_model_config(path: Path) -> Any:
    """The ModelConfig message in a file.

    Raises:
        InputError: the file is missing or is not such a message.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except FileNotFoundError as error:
        raise InputError("no such model configuration", path, "deploy the model again") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InputError("not a Triton model configuration", path, f"fix it ({error})") from error


def text_model(name: str, signature: ModelSignature, host: Host) -> Any:
    """NAME: text to label, in Triton's Python backend."""
    config = _model(name, TEXT_VERSIONS)
    config.backend = "python"
    config.input.add(name="TEXT", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="LABEL", data_type=pb.TYPE_STRING, dims=[1])
    dims = [len(signature.labels)]
    config.output.add(name="PROBABILITIES", data_type=pb.TYPE_FP32, dims=dims, label_filename="labels.txt")
    config.output.add(name="TRUNCATED", data_type=pb.TYPE_BOOL, dims=[1])
    config.output.add(name="TOKENS", data_type=pb.TYPE_INT32, dims=[1])
    config.output.add(name=FILES, data_type=pb.TYPE_STRING, dims=[1])
    config.instance_group.add(count=INSTANCES, kind=pb.ModelInstanceGroup.KIND_CPU)
    config.parameters["length_step"].string_value = str(GPU_LENGTH_STEP if host == "gpu" else 1)
    return config


def add_files_output(config: Any) -> bool:
    """Adds the output `FILES` to a text model's configuration; False where it has it already."""
    if any(output.name == FILES for output in config.output):
        return False
    config.output.add(name=FILES, data_type=pb.TYPE_STRING, dims=[1])
    return True


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


def cpu_encoder(name: str, signature: ModelSignature) -> Any:
    """NAME_encoder on a CPU: the FP32 graph."""
    config = _encoder(name, signature)
    config.platform = "onnxruntime_onnx"
    config.instance_group.add(count=INSTANCES, kind=pb.ModelInstanceGroup.KIND_CPU)
    below = (signature.vocab_size, 2, signature.type_vocab_size)
    limits = {
        tensor: {"length": signature.max_length, "below": bound}
        for tensor, bound in zip(INPUTS, below, strict=True)
    }
    config.parameters["limits"].string_value = json.dumps(limits)
    return config


def _encoder(name: str, signature: ModelSignature) -> Any:
    config = _model(encoder_name(name), ENCODER_VERSIONS)
    config.output.add(name="logits", data_type=pb.TYPE_FP32, dims=[len(signature.labels)])
    # Triton runs the warm-up before it takes requests: a version that cannot run does not become ready.
    warmup = config.model_warmup.add(name="one short row", batch_size=1)
    dims = [min(16, signature.max_length)]
    for tensor in INPUTS:
        config.input.add(name=tensor, data_type=pb.TYPE_INT64, dims=[-1])
        row = pb.ModelWarmup.Input(data_type=pb.TYPE_INT64, dims=dims, zero_data=True)
        warmup.inputs[tensor].CopyFrom(row)
    return config


def _model(name: str, versions: int) -> Any:
    config = pb.ModelConfig(name=name, max_batch_size=MAX_BATCH)
    config.version_policy.latest.num_versions = versions
    bound_queue(config)
    return config


def text_settings(
    name: str, signature: ModelSignature, pad_id: int, max_length: int, sha256: Mapping[str, str]
) -> dict[str, Any]:
    """`settings.json` of a text model's version, read by its model.py.

    Args:
        sha256: of the files of the encoder's version, by name.
        pad_id: id of the padding token.
        max_length: the most tokens of a text, `[CLS]` and `[SEP]` included; longer ones are truncated.
    """
    return {
        "encoder": encoder_name(name),
        "labels": list(signature.labels),
        "max_batch": MAX_BATCH,
        "max_length": max_length,
        "max_text_bytes": MAX_TEXT_BYTES,
        "pad_id": pad_id,
        "sha256": dict(sha256),
    }
