"""Checkpoints: Hugging Face folders of `config.json`, `model.safetensors` and tokenizer files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bertmp import tokenizer as tokenizers
from bertmp.errors import InputError
from bertmp.files import atomic_folder, write_json
from bertmp.model.bert import initialise
from bertmp.model.config import BertConfig
from bertmp.model.heads import EncoderOnly, Head, SequenceClassifier, head_for
from bertmp.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"

_RENAMED = ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias"))
_FOREIGN_HEADS = ("cls.", "classifier.", "qa_outputs.")


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
    """

    model: Head
    config: BertConfig
    tokenizer: Tokenizer
    new: tuple[str, ...]
    unused: tuple[str, ...]
    folder: Path

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes' names in the order of the logits."""
        return self.config.labels


def load_checkpoint(
    folder: Path, task: str | None = None, labels: tuple[str, ...] | None = None, seed: int = 0
) -> LoadedCheckpoint:
    """Reads a checkpoint folder, or a `config.json` alone for a start from random weights.

    Args:
        task: the head to put on; where None, what the configuration and the weights say it is.
        labels: the classes of a new classification head; the folder's own where None.
        seed: for weights that the folder lacks.

    Errors: InputError where the folder or one of its files is missing or damaged, where it is no BERT,
    where weights and configuration contradict each other, and where `task` needs labels and has none.
    """
    folder = Path(folder)
    if folder.is_file() and folder.name.endswith(".json"):
        config, weights, folder = BertConfig.load(folder), None, folder.parent
    elif folder.is_dir():
        config, weights = BertConfig.load(folder), _read_weights(folder)
    else:
        raise InputError("no such checkpoint", folder, "name a folder with config.json and model.safetensors")
    tokenizer = Tokenizer.load(folder, config.max_position_embeddings)
    if tokenizer.vocabulary_size > config.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocabulary_size} tokens, the model {config.vocab_size}",
            folder,
            "use the tokenizer that the model was trained with",
        )
    kind = head_for(task) if task else detect_head(config, weights or {})
    config = _settle_labels(config, kind, weights or {}, labels, folder)
    model = kind(config)
    initialise(model, config, torch.Generator().manual_seed(seed))
    new, unused = (tuple(model.state_dict()), ()) if weights is None else _fill(model, weights, folder)
    return LoadedCheckpoint(model.eval(), config, tokenizer, new, unused, folder)


def detect_head(config: BertConfig, weights: Mapping[str, Tensor]) -> type[Head]:
    """What a checkpoint is: by the architecture that its configuration names, else by its weights."""
    named = (config.extra.get("architectures") or [""])[0]
    for kind in (SequenceClassifier, EncoderOnly):
        if named == kind.architecture:
            return kind
    return SequenceClassifier if "classifier.weight" in weights else EncoderOnly


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"no {WEIGHTS}", folder, "add it, or convert the checkpoint to safetensors")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError("damaged weights", path, f"replace the file ({error})") from error
    return {_our_name(name): tensor for name, tensor in weights.items() if not name.endswith("position_ids")}


def _our_name(name: str) -> str:
    for old, ours in _RENAMED:
        name = name.replace(old, ours)
    return name if name.startswith(("bert.", *_FOREIGN_HEADS)) else f"bert.{name}"


def _settle_labels(
    config: BertConfig,
    kind: type[Head],
    weights: Mapping[str, Tensor],
    labels: tuple[str, ...] | None,
    folder: Path,
) -> BertConfig:
    """The configuration with the labels that the head will have."""
    if not issubclass(kind, SequenceClassifier):
        return config
    if labels is not None:
        return config.with_labels(labels)
    width = weights["classifier.weight"].shape[0] if "classifier.weight" in weights else len(config.labels)
    if width == 0:
        raise InputError(
            "a classification head needs labels", folder, "fine-tune it with 'bertmp train classification'"
        )
    if len(config.labels) == width:
        return config
    # An id2label that contradicts the classifier's width says nothing about these logits.
    return config.with_labels(tuple(f"LABEL_{number}" for number in range(width)))


def _fill(model: Head, weights: dict[str, Tensor], folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Copies the weights in; returns the names that were missing and those that were left over."""
    own = model.state_dict()
    words = weights.get("bert.embeddings.word_embeddings.weight")
    if words is None or not any(name.startswith("bert.encoder.layer.0.") for name in weights):
        raise InputError("the weights are no BERT's", folder / WEIGHTS, "use a BERT checkpoint")
    if words.shape[0] != model.config.vocab_size:
        raise InputError(
            f"the weights have {words.shape[0]} tokens, config.json says {model.config.vocab_size}",
            folder,
            "mend vocab_size or use the right weights",
        )
    fresh_head = (
        [
            name
            for name in weights
            if name.startswith(model.own_keys) and name in own and weights[name].shape != own[name].shape
        ]
        if model.own_keys
        else []
    )
    usable = {name: tensor for name, tensor in weights.items() if name in own and name not in fresh_head}
    for name, tensor in usable.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{name} is {list(tensor.shape)} in the weights and {list(own[name].shape)} by config.json",
                folder,
                "use the configuration that belongs to the weights",
            )
    new = tuple(name for name in own if name not in usable)
    lacking = [name for name in new if not name.startswith(("bert.pooler.", *model.own_keys))]
    if lacking:
        raise InputError(f"the weights lack {lacking[0]}", folder / WEIGHTS, "use a complete BERT checkpoint")
    model.load_state_dict({name: tensor.float() for name, tensor in usable.items()}, strict=False)
    return new, tuple(sorted(set(weights) - set(usable)))


def save_checkpoint(folder: Path, model: Head, config: BertConfig, tokenizer: Tokenizer | Path) -> None:
    """Writes a Hugging Face folder, whole or not at all.

    Args:
        model: its weights are written as they are, FP32 master weights included.
        tokenizer: a tokenizer, or the folder whose tokenizer files are copied.
    """
    config = replace(
        config, extra={key: value for key, value in config.extra.items() if key != "_name_or_path"}
    )
    with atomic_folder(folder) as temporary:
        write_json(temporary / "config.json", config.to_dict(model.architecture))
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        if isinstance(model, EncoderOnly):
            state = {name.removeprefix("bert."): tensor for name, tensor in state.items()}
        save_file(state, temporary / WEIGHTS, metadata={"format": "pt"})
        if isinstance(tokenizer, Tokenizer):
            tokenizer.save(temporary)
        else:
            copy_tokenizer(tokenizer, temporary)


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copies the tokenizer's files from folder to folder; returns their names."""
    names = [name for name in tokenizers.FILES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names
