"""Checkpoints: Hugging Face folders of `config.json`, `model.safetensors` and tokenizer files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bertmp.core.errors import InputError
from bertmp.core.io import atomic_folder, write_json
from bertmp.data import tokenizer as tokenizers
from bertmp.data.tokenizer import Tokenizer
from bertmp.model.bert import initialise
from bertmp.model.config import BertConfig, unnamed_labels
from bertmp.model.heads import EncoderOnly, Head, Regressor, head_for
from bertmp.model.heads.infer_task import detect_task
from bertmp.model.weights import WEIGHTS, WORDS, read_weights, sizes_of


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model read from a folder.

    Attributes:
        model: the head with its weights, FP32, in evaluation mode.
        config: what `config.json` says, corrected by the weights' shapes.
        tokenizer: the folder's tokenizer, cutting at the model's positions.
        new: the weights that the folder lacks and that were initialised at random.
        unused: the folder's weights that this head has no place for.
        folder: where it was read from.
        assumed: sizes that `config.json` does not give and the weights do, by its names.
    """

    model: Head
    config: BertConfig
    tokenizer: Tokenizer
    new: tuple[str, ...]
    unused: tuple[str, ...]
    folder: Path
    assumed: Mapping[str, int] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes' names in the order of the logits."""
        return self.config.labels

    def remarks(self) -> list[str]:
        """What the user should know of how the folder was understood, a line each."""
        lines = []
        if self.assumed:
            sizes = ", ".join(f"{name} {value}" for name, value in self.assumed.items())
            lines.append(f"taken from the weights, since config.json does not say it: {sizes}")
        if "num_attention_heads" in self.assumed:
            lines.append(
                f"assumed: {self.assumed['num_attention_heads']} attention heads, "
                "which weights do not show; write num_attention_heads into config.json to be sure"
            )
        if len(self.new) == len(self.model.state_dict()):
            lines.append("all weights start at random")
        elif self.new:
            lines.append(f"starts at random: {', '.join(self.new)}")
        if self.unused:
            lines.append(f"not used from the checkpoint: {', '.join(self.unused)}")
        return lines


def load_checkpoint(
    folder: Path, task: str | None = None, labels: tuple[str, ...] | None = None, seed: int = 0
) -> LoadedCheckpoint:
    """Reads a checkpoint folder, or a `config.json` alone for a start from random weights.

    Args:
        task: the head to put on; where None, what the configuration and the weights say it is.
        labels: the classes of a new classification head; the folder's own where None. A classifier of
            other labels is not taken over.
        seed: for weights that the folder lacks.

    Errors: InputError where the folder or one of its files is missing or damaged, where it is no BERT,
    where weights and configuration contradict each other, and where `task` needs labels and has none.
    """
    folder = Path(folder)
    weights: dict[str, Tensor] | None = None
    if folder.is_file() and folder.name.endswith(".json"):
        source, folder = folder, folder.parent
        data = BertConfig.read(source)
    elif folder.is_dir():
        source, data = folder, BertConfig.read(folder)
        weights = read_weights(folder)
    else:
        raise InputError("no such checkpoint", folder, "name a folder with config.json and model.safetensors")
    known = weights or {}
    assumed = {name: size for name, size in sizes_of(known).items() if name not in data}
    config = BertConfig.from_dict({**assumed, **data}, source)
    tokenizer = _tokenizer(folder, config)
    kind = head_for(task or detect_task(config, known, folder))
    known = _untied(known, kind, folder)
    given = set(known)
    if labels is not None and not _has_labels(config, labels):
        # What a classifier learned about other labels says nothing about these.
        known = {name: tensor for name, tensor in known.items() if not name.startswith("classifier.")}
    config = _settle_labels(config, kind, known, labels, folder)
    model = kind(config)
    initialise(model, config, torch.Generator().manual_seed(seed))
    own = tuple(model.state_dict())
    new = own if weights is None else _fill(model, known, folder)
    unused = tuple(sorted(given - (set(own) - set(new))))
    return LoadedCheckpoint(model.eval(), config, tokenizer, new, unused, folder, assumed)


def _tokenizer(folder: Path, config: BertConfig) -> Tokenizer:
    tokenizer = Tokenizer.load(folder, config.max_position_embeddings)
    if tokenizer.vocabulary_size > config.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocabulary_size} tokens, the model {config.vocab_size}",
            folder,
            "use the tokenizer that the model was trained with",
        )
    return tokenizer


def _untied(weights: Mapping[str, Tensor], kind: type[Head], folder: Path) -> dict[str, Tensor]:
    """The weights with what a head ties under one name.

    Errors: InputError where two weights differ that the head ties: its answers would not be the model's.
    """
    untied = dict(weights)
    for other, ours in kind.tied:
        tensor = untied.pop(other, None)
        if tensor is not None and not torch.equal(untied.setdefault(ours, tensor), tensor):
            raise InputError(f"{other} is not tied to {ours}", folder, "use a checkpoint with a tied decoder")
    return untied


def _has_labels(config: BertConfig, labels: tuple[str, ...]) -> bool:
    """Whether a checkpoint's classes are these, or may be, since nobody named them."""
    return config.labels in (labels, (), unnamed_labels(len(labels)))


def _settle_labels(
    config: BertConfig,
    kind: type[Head],
    weights: Mapping[str, Tensor],
    labels: tuple[str, ...] | None,
    folder: Path,
) -> BertConfig:
    """The configuration with the labels that the head will have."""
    if issubclass(kind, Regressor):
        return config if len(config.labels) == 1 else config.with_labels(unnamed_labels(1))
    if not kind.classes:
        return config
    if labels is not None:
        return config.with_labels(labels)
    width = weights["classifier.weight"].shape[0] if "classifier.weight" in weights else len(config.labels)
    if width == 0:
        raise InputError(
            "a classification head needs labels", folder, "fine-tune it with 'bertmp train classification'"
        )
    # An id2label that contradicts the classifier's width says nothing about these logits.
    return config if len(config.labels) == width else config.with_labels(unnamed_labels(width))


def _fill(model: Head, weights: Mapping[str, Tensor], folder: Path) -> tuple[str, ...]:
    """Copies the weights in; returns the names of the model's weights that were missing."""
    own = model.state_dict()
    _check_is_bert(model.config, weights, folder)
    usable = {name: tensor for name, tensor in weights.items() if name in own}
    for name, tensor in list(usable.items()):
        if tensor.shape == own[name].shape:
            continue
        if not name.startswith(model.own_keys):
            raise InputError(
                f"{name} is {list(tensor.shape)} in the weights and {list(own[name].shape)} by config.json",
                folder,
                "use the configuration that belongs to the weights",
            )
        del usable[name]  # another head's
    new = tuple(name for name in own if name not in usable)
    lacking = [name for name in new if not name.startswith(("bert.pooler.", *model.own_keys))]
    if lacking:
        raise InputError(f"the weights lack {lacking[0]}", folder, "use a complete BERT checkpoint")
    model.load_state_dict({name: tensor.float() for name, tensor in usable.items()}, strict=False)
    return new


def _check_is_bert(config: BertConfig, weights: Mapping[str, Tensor], folder: Path) -> None:
    words = weights.get(WORDS)
    if words is None or not any(name.startswith("bert.encoder.layer.0.") for name in weights):
        raise InputError("the weights are no BERT's", folder, "use a BERT checkpoint")
    if words.shape[0] != config.vocab_size:
        raise InputError(
            f"the weights have {words.shape[0]} tokens, config.json says {config.vocab_size}",
            folder,
            "fix vocab_size or use the right weights",
        )


def save_checkpoint(
    folder: Path,
    model: Head,
    config: BertConfig,
    tokenizer: Tokenizer | Path,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes a Hugging Face folder, whole or not at all.

    Args:
        model: its weights are written as they are, FP32 master weights included.
        tokenizer: a tokenizer, or the folder whose tokenizer files are copied.
        notes: file name → JSON value, further files to lie in the folder.
    """
    config = replace(
        config, extra={key: value for key, value in config.extra.items() if key != "_name_or_path"}
    )
    with atomic_folder(folder) as temporary:
        write_json(temporary / "config.json", config.to_dict(model.architecture, model.problem))
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        if isinstance(model, EncoderOnly):
            state = {name.removeprefix("bert."): tensor for name, tensor in state.items()}
        save_file(state, temporary / WEIGHTS, metadata={"format": "pt"})
        if isinstance(tokenizer, Tokenizer):
            tokenizer.save(temporary)
        else:
            copy_tokenizer(tokenizer, temporary)
        for name, value in (notes or {}).items():
            write_json(temporary / name, value)


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copies the tokenizer's files from folder to folder; returns their names."""
    names = [name for name in tokenizers.FILES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names
