"""What Triton is told about a served classifier: two models, each with settings for two kinds of host.

`config.pbtxt` is for a host with a GPU, `configs/cpu.pbtxt` for one without (Triton picks it with
`--model-config-name=cpu`). Both are built as protobuf messages and rendered by one function.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from bertmp.core.errors import InputError
from bertmp.export.engine.profiles import default_profiles

MAX_BATCH = 32
"""The most texts a request may have, and the most rows of one encoder call; engines are built for it."""

MAX_TEXT_BYTES = 1_000_000
INSTANCES = 2
"""Processes of a model on a processor: while one waits for the other model, the other works."""

GPU_LENGTH_STEP = 16
"""On a GPU a call costs more than a little padding, so lengths are rounded up; on a processor not."""

TEXT_VERSIONS = 1
ENCODER_VERSIONS = 2
"""Versions loaded at once. While a text model is swapped, the old one still calls its own encoder."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")

Host = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class Contract:
    """What a client can rely on through all versions of a model.

    Attributes:
        labels: the classes in the order of the logits.
        max_length: the most tokens, `[CLS]` and `[SEP]` included; longer texts are cut.
        vocabulary: the number of token ids.
        segments: the number of segment ids.
    """

    labels: tuple[str, ...]
    max_length: int
    vocabulary: int
    segments: int

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise InputError(
                f"{len(self.labels)} labels where at least 2 are needed", "", "deploy a classifier"
            )
        for label in self.labels:
            if not label.strip() or "\n" in label or "\r" in label:
                raise InputError(f"{label!r} cannot be a label", "", "name it in one line of text")
        if len(set(self.labels)) != len(self.labels):
            raise InputError("two labels are the same", "", "give every class its own name")
        if self.max_length < 3 or self.vocabulary < 1 or self.segments < 1:
            raise InputError("the model takes no text", "", "check the checkpoint's config.json")

    def difference(self, other: Contract) -> str | None:
        """The first thing in which `other` differs, in words; None where they agree."""
        if self.labels != other.labels:
            return f"labels {', '.join(self.labels)} against {', '.join(other.labels)}"
        for name in ("max_length", "vocabulary", "segments"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} {mine} against {theirs}"
        return None


@dataclass(frozen=True)
class ModelFile:
    """One file of a model's folder, relative to the repository."""

    path: str
    content: str


def encoder_name(name: str) -> str:
    """The name of the model that computes the logits of the text model `name`."""
    return f"{name}_encoder"


def model_files(name: str, contract: Contract, profiles: int | None = None) -> tuple[ModelFile, ...]:
    """Everything of the two models that does not belong to a version.

    Args:
        profiles: the engine's number of optimisation profiles; that of a default engine where left out.
    """
    encoder = encoder_name(name)
    if profiles is None:
        profiles = len(default_profiles(contract.max_length, MAX_BATCH))
    return (
        ModelFile(f"{name}/config.pbtxt", render(text_model(name, contract, "gpu"))),
        ModelFile(f"{name}/configs/cpu.pbtxt", render(text_model(name, contract, "cpu"))),
        ModelFile(f"{name}/labels.txt", "".join(f"{label}\n" for label in contract.labels)),
        ModelFile(f"{encoder}/config.pbtxt", render(gpu_encoder(name, contract, profiles))),
        ModelFile(f"{encoder}/configs/cpu.pbtxt", render(cpu_encoder(name, contract))),
    )


def render(config: Any) -> str:
    """A ModelConfig message as Triton reads it from a file."""
    return str(text_format.MessageToString(config, as_utf8=True))


def parse(path: Path) -> Any:
    """The ModelConfig message in a file.

    Errors: InputError where the file is missing or is no such message.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except FileNotFoundError as error:
        raise InputError("no such model configuration", path, "deploy the model again") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InputError("not a Triton model configuration", path, f"mend it ({error})") from error


def read_contract(repository: Path, name: str) -> Contract:
    """The contract of a model in the repository, from its configuration and labels.

    Errors: InputError where its files are missing or not as `deploy` writes them.
    """
    path = repository / encoder_name(name) / "configs" / "cpu.pbtxt"
    config = parse(path)
    try:
        limits = json.loads(config.parameters["limits"].string_value)
        labels = (repository / name / "labels.txt").read_text(encoding="utf-8").splitlines()
        ids, segments = limits["input_ids"], limits["token_type_ids"]
        return Contract(tuple(labels), ids["length"], ids["below"], segments["below"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("the model was not written by 'bertmp deploy'", path, "use another name") from error


def text_model(name: str, contract: Contract, host: Host) -> Any:
    """NAME: text to label, in Triton's Python backend."""
    config = _model(name, TEXT_VERSIONS)
    config.backend = "python"
    config.input.add(name="TEXT", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name="LABEL", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(
        name="PROBABILITIES", data_type=pb.TYPE_FP32, dims=[len(contract.labels)], label_filename="labels.txt"
    )
    config.output.add(name="TRUNCATED", data_type=pb.TYPE_BOOL, dims=[1])
    config.output.add(name="TOKENS", data_type=pb.TYPE_INT32, dims=[1])
    config.instance_group.add(count=INSTANCES, kind=pb.ModelInstanceGroup.KIND_CPU)
    config.parameters["length_step"].string_value = str(GPU_LENGTH_STEP if host == "gpu" else 1)
    return config


def gpu_encoder(name: str, contract: Contract, profiles: int) -> Any:
    """NAME_encoder on a GPU: token ids to logits by a TensorRT plan."""
    config = _encoder(name, contract)
    config.platform = "tensorrt_plan"
    # Triton takes the first profile alone unless it is told of the others: each holds other lengths.
    config.instance_group.add(
        count=1, kind=pb.ModelInstanceGroup.KIND_GPU, profile=[str(number) for number in range(profiles)]
    )
    return config


def cpu_encoder(name: str, contract: Contract) -> Any:
    """NAME_encoder on a processor: the FP32 graph."""
    config = _encoder(name, contract)
    config.platform = "onnxruntime_onnx"
    config.instance_group.add(count=INSTANCES, kind=pb.ModelInstanceGroup.KIND_CPU)
    config.parameters["limits"].string_value = json.dumps(_limits(contract))
    return config


def engine_profiles(config: Any) -> int:
    """How many profiles a GPU encoder's configuration tells Triton of."""
    return max((len(group.profile) for group in config.instance_group), default=0)


def _encoder(name: str, contract: Contract) -> Any:
    config = _model(encoder_name(name), ENCODER_VERSIONS)
    for tensor in INPUTS:
        config.input.add(name=tensor, data_type=pb.TYPE_INT64, dims=[-1])
    config.output.add(name="logits", data_type=pb.TYPE_FP32, dims=[len(contract.labels)])
    # A version that cannot run does not become ready: Triton runs this before it takes requests.
    warmup = config.model_warmup.add(name="one short row", batch_size=1)
    for tensor in INPUTS:
        warmup.inputs[tensor].CopyFrom(
            pb.ModelWarmup.Input(data_type=pb.TYPE_INT64, dims=[min(16, contract.max_length)], zero_data=True)
        )
    return config


def _model(name: str, versions: int) -> Any:
    config = pb.ModelConfig(name=name, max_batch_size=MAX_BATCH)
    config.version_policy.latest.num_versions = versions
    config.dynamic_batching.SetInParent()
    return config


def _limits(contract: Contract) -> dict[str, dict[str, int]]:
    below = {"input_ids": contract.vocabulary, "attention_mask": 2, "token_type_ids": contract.segments}
    return {tensor: {"length": contract.max_length, "below": below[tensor]} for tensor in INPUTS}


def text_settings(name: str, contract: Contract, pad_id: int) -> dict[str, Any]:
    """`settings.json` of a text version: what its model.py needs to know."""
    return {
        "encoder": encoder_name(name),
        "labels": list(contract.labels),
        "max_batch": MAX_BATCH,
        "max_length": contract.max_length,
        "max_text_bytes": MAX_TEXT_BYTES,
        "pad_id": pad_id,
    }


def contract_of(config: dict[str, Any], labels: list[str]) -> Contract:
    """The contract of a bundle, from its `config.json` (Hugging Face's keys) and labels.

    Errors: InputError where a key is missing.
    """
    try:
        return Contract(
            tuple(labels),
            int(config["max_position_embeddings"]),
            int(config["vocab_size"]),
            int(config.get("type_vocab_size", 2)),
        )
    except KeyError as error:
        raise InputError(f"config.json does not name {error}", "", "export the checkpoint again") from error
