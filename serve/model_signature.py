"""What clients can rely on through all versions of a served model, and where a repository says it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from bertmp.core.errors import InputError
from bertmp.export.bundle import LABELS, read_labels
from bertmp.serve.served_tasks import TASKS, labels_of, task_of


@dataclass(frozen=True)
class ModelSignature:
    """What a client can rely on through all versions of a model.

    Attributes:
        labels: the classes in the order of the logits; none for a task without.
        max_length: the most tokens that the encoder takes; a text model may truncate its texts to fewer.
        vocab_size: the number of token ids.
        type_vocab_size: the number of token type ids.
        task: what it answers, one of `TASKS`.
        pairs: whether it takes pairs of texts.
        hidden_size: the size of an embedding; 0 for other tasks.
    """

    labels: tuple[str, ...]
    max_length: int
    vocab_size: int
    type_vocab_size: int
    task: str = "classification"
    pairs: bool = False
    hidden_size: int = 0

    def __post_init__(self) -> None:
        least = task_of(self.task, "").least_labels
        if len(self.labels) < least:
            what = f"{len(self.labels)} labels where at least {least} are needed"
            raise InputError(what, "", "export the checkpoint with the names of its classes")
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


def signature_of(
    config: dict[str, Any], labels: Sequence[str], task: str = "classification", pairs: bool = False
) -> ModelSignature:
    """The signature of a bundle, from its `config.json` (Hugging Face's keys), labels and task.

    Raises:
        InputError: a key is missing, or the task cannot be served.
    """
    task_of(task, "")
    try:
        return ModelSignature(
            labels_of(task, labels),
            int(config["max_position_embeddings"]),
            int(config["vocab_size"]),
            int(config.get("type_vocab_size", 2)),
            task,
            pairs,
            int(config["hidden_size"]) if task == "encoder" else 0,
        )
    except KeyError as error:
        raise InputError(f"config.json does not name {error}", "", "export the checkpoint again") from error


def read_signature(repository: Path, name: str) -> ModelSignature:
    """The signature of a model in the repository, from its configuration and labels.

    Raises:
        InputError: its files are missing or not as `deploy` writes them.
    """
    path = encoder_file(repository, name)
    config = read_model_config(path)
    try:
        limits = json.loads(config.parameters["limits"].string_value)
        task = config.parameters["task"].string_value or "classification"  # 0.1 served nothing else
        labels = read_labels(repository / name / LABELS) if TASKS[task].least_labels else ()
        ids, types = limits["input_ids"], limits["token_type_ids"]
        pairs = config.parameters["pairs"].string_value == "true"
        hidden = config.output[0].dims[-1] if task == "encoder" else 0
        return ModelSignature(tuple(labels), ids["length"], ids["below"], types["below"], task, pairs, hidden)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("the model was not written by 'bertmp deploy'", path, "use another name") from error


def encoder_file(repository: Path, name: str) -> Path:
    """The file that names a model's signature, but for its labels: the encoder's configuration for a CPU."""
    return repository / encoder_name(name) / "configs" / "cpu.pbtxt"


def names_signature(repository: Path, name: str) -> bool:
    """Whether the files that name a model's signature are there."""
    path = encoder_file(repository, name)
    if not path.is_file():
        return False
    task = read_model_config(path).parameters["task"].string_value or "classification"
    return not TASKS[task].least_labels or (repository / name / LABELS).is_file()


def encoder_name(name: str) -> str:
    """The name of the model that gives the graph's outputs of the text model `name`."""
    return f"{name}_encoder"


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
