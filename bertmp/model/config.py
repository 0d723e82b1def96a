"""The configuration of a BERT: the fields of Hugging Face's `config.json` that this model uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.io import read_json

ACTIVATIONS = (
    *("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "quick_gelu"),
    *("relu", "silu", "swish", "tanh"),
)
"""Hugging Face's names; some are the same function."""


@dataclass(frozen=True)
class BertConfig:
    """Sizes and rates of a BERT; names and defaults are Hugging Face's (BERT-base, Devlin et al. 2019).

    Attributes:
        classifier_dropout: dropout before a classification head; `hidden_dropout_prob` if None.
        labels: the names of the classes in the order of the logits (`id2label`); may be empty.
        extra: all other keys of the file, which are saved again.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    classifier_dropout: float | None = None
    labels: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def load(cls, path: Path) -> BertConfig:
        """Reads `config.json`, or the one in a folder.

        Raises:
            InputError: it is missing, not a JSON object, or not the configuration of a supported BERT.
        """
        return cls.from_dict(cls.read(path), Path(path))

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """The unchecked keys of `config.json`, or of the one in a folder.

        Raises:
            InputError: it is missing or not a JSON object.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "config.json"
        if not path.is_file():
            final = path.parent / "final"
            todo = (
                f"name {final}" if (final / path.name).is_file() else "name a checkpoint folder that has one"
            )
            raise InputError("no config.json", path.parent, todo)
        data = read_json(path)
        if not isinstance(data, dict):
            raise InputError("config.json is not a JSON object", path, "replace it")
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: Path) -> BertConfig:
        """The checked configuration from Hugging Face's keys; `where` is for messages."""
        kind = data.get("model_type", "bert")
        if kind != "bert":
            raise InputError(f"the model is not a BERT but '{kind}'", where, "use a BERT checkpoint")
        if data.get("position_embedding_type", "absolute") != "absolute":
            raise InputError("relative position embeddings are not supported", where, "use absolute ones")
        if data.get("pruned_heads"):
            what = "attention heads were pruned (pruned_heads), which is not supported"
            raise InputError(what, where, "use the checkpoint before pruning")
        if data.get("pad_token_id", 0) is None:  # transformers writes null where a tokenizer has no padding
            data = {**data, "pad_token_id": 0}
        if data.get("is_decoder") or data.get("add_cross_attention"):
            raise InputError("the model is a decoder", where, "use a BERT encoder")
        known = {f.name for f in fields(cls)} - {"labels", "extra"}
        values = {key: value for key, value in data.items() if key in known}
        read = {*known, "id2label", "label2id", "num_labels"}
        extra = {key: value for key, value in data.items() if key not in read}
        labels = _labels(data.get("id2label"), where) or unnamed_labels(data.get("num_labels"))
        config = cls(**values, labels=labels, extra=extra)
        config._check(where)
        return config

    def _check(self, where: Path) -> None:
        sizes = [f.name for f in fields(self) if f.type == "int" and f.name != "pad_token_id"]
        rates = ["hidden_dropout_prob", "attention_probs_dropout_prob"]
        rates += ["classifier_dropout"] if self.classifier_dropout is not None else []
        for name in sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} is {value!r}, not a positive integer", where, "fix config.json")
        for name in (*rates, "layer_norm_eps", "initializer_range"):
            value, is_rate = getattr(self, name), name in rates
            if not isinstance(value, (int, float)) or not 0 <= value < 1 or not (value or is_rate):
                what = "a rate from 0 to 1" if is_rate else "a small number"
                raise InputError(f"{name} is {value!r}, not {what}", where, "fix config.json")
        pad = self.pad_token_id
        if not isinstance(pad, int) or not 0 <= pad < self.vocab_size:
            raise InputError(f"pad_token_id is {pad!r}, not a token id", where, "fix config.json")
        if self.hidden_size % self.num_attention_heads:
            what = f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} heads"
            raise InputError(what, where, "fix config.json")
        if self.hidden_act not in ACTIVATIONS:
            todo = f"use one of {', '.join(ACTIVATIONS)}"
            raise InputError(f"unknown activation {self.hidden_act!r}", where, todo)

    def with_labels(self, labels: tuple[str, ...]) -> BertConfig:
        """The configuration with other classes."""
        return replace(self, labels=labels)

    @property
    def text_pairs(self) -> bool:
        """Whether the model was fine-tuned on pairs of texts; what other tools wrote does not say."""
        return bool(self.extra.get("text_pairs"))

    def with_text_pairs(self, pairs: bool) -> BertConfig:
        """The configuration of a model that was trained on pairs of texts, or on single ones."""
        extra = {key: value for key, value in self.extra.items() if key != "text_pairs"}
        return replace(self, extra={**extra, "text_pairs": True} if pairs else extra)

    def to_dict(self, architecture: str, problem: str = "") -> dict[str, Any]:
        """Hugging Face's keys, as in `config.json`.

        Args:
            architecture: Hugging Face's class.
            problem: the `problem_type`; may be empty.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("labels", "extra")}
        extra = {key: value for key, value in self.extra.items() if key != "problem_type"}
        out = {**extra, **values, "model_type": "bert", "architectures": [architecture]}
        if problem:
            out["problem_type"] = problem
        if self.labels:
            out["id2label"] = {str(number): label for number, label in enumerate(self.labels)}
            out["label2id"] = {label: number for number, label in enumerate(self.labels)}
        return out


def unnamed_labels(count: Any) -> tuple[str, ...]:
    """Hugging Face's names of `count` unnamed classes; none if `count` is not an integer."""
    return tuple(f"LABEL_{number}" for number in range(count)) if isinstance(count, int) else ()


def _labels(id2label: Any, where: Path) -> tuple[str, ...]:
    if not id2label:
        return ()
    try:
        by_id = {int(number): str(label) for number, label in id2label.items()}
    except (AttributeError, ValueError, TypeError) as error:
        raise InputError("id2label does not map numbers to names", where, "fix config.json") from error
    if sorted(by_id) != list(range(len(by_id))):
        raise InputError("id2label has gaps", where, "number the labels 0, 1, 2, …")
    return tuple(by_id[number] for number in range(len(by_id)))
