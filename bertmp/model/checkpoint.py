"""Checkpoints: Hugging Face folders of `config.json`, `model.safetensors` and tokenizer files."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
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
from bertmp.model.heads import EncoderOnly, Head, Regressor, head_for, infer_head
from bertmp.model.weights import WEIGHTS, WORD_EMBEDDINGS, infer_config, read_weights


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model loaded from a folder.

    Attributes:
        model: the head with its weights, FP32, in evaluation mode.
        config: `config.json`, completed and corrected by the shapes of the weights.
        tokenizer: the folder's tokenizer, truncating at the model's maximum length.
        missing_keys: the model's weights that the folder lacks; they are initialised randomly.
        unexpected_keys: the folder's weights that the model does not have.
        folder: where it was loaded from.
        inferred: fields of `config.json` that the file lacks and that follow from the weights.
    """

    model: Head
    config: BertConfig
    tokenizer: Tokenizer
    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]
    folder: Path
    inferred: Mapping[str, int] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self.config.labels

    def notes(self) -> list[str]:
        """What the user should know about how the folder was read, one line each."""
        lines = []
        if self.inferred:
            sizes = ", ".join(f"{name} {value}" for name, value in self.inferred.items())
            lines.append(f"not in config.json, inferred from the weights: {sizes}")
        if "num_attention_heads" in self.inferred:
            assumed = f"assumed: {self.inferred['num_attention_heads']} attention heads"
            todo = "set num_attention_heads in config.json to be sure"
            lines.append(f"{assumed}, which the weights do not show; {todo}")
        if len(self.missing_keys) == len(self.model.state_dict()):
            lines.append("all weights are randomly initialised")
        elif self.missing_keys:
            lines.append(f"randomly initialised: {', '.join(self.missing_keys)}")
        if self.unexpected_keys:
            lines.append(f"unused weights of the checkpoint: {', '.join(self.unexpected_keys)}")
        broken = [name for name, tensor in self.model.state_dict().items() if not tensor.isfinite().all()]
        if broken:
            lines.append(f"NaN or infinite weights, which make the answers NaN: {', '.join(broken)}")
        return lines


def load_checkpoint(
    folder: Path, task: str | None = None, labels: tuple[str, ...] | None = None, seed: int = 0
) -> LoadedCheckpoint:
    """Loads a checkpoint folder, or initialises a model randomly from a `config.json` file.

    Args:
        folder: the folder, or the path of a `config.json`.
        task: the head; None to infer it from the configuration and the weights.
        labels: the classes of a classification head; None for the folder's own. A classifier for other labels
            is initialised again.
        seed: seed of the weights that the folder lacks.

    Raises:
        InputError: the folder or one of its files is missing or damaged, it is not a BERT, weights and
            configuration contradict each other, or `task` needs labels and has none.
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
    inferred = {name: size for name, size in infer_config(known).items() if name not in data}
    config = BertConfig.from_dict({**inferred, **data}, source)
    tokenizer = Tokenizer.load(folder, tokenizers.length_limit(folder, config.max_position_embeddings))
    if tokenizer.vocabulary_size > config.vocab_size:
        what = f"the tokenizer has {tokenizer.vocabulary_size} tokens, the model {config.vocab_size}"
        raise InputError(what, folder, "use the tokenizer that the model was trained with")
    kind = head_for(task) if task else infer_head(config, known, folder)
    known = _merge_tied(known, kind, folder)
    given = set(known)
    if labels is not None and config.labels not in (labels, (), unnamed_labels(len(labels))):
        # A classifier trained for other labels is of no use for these, unless its own are as many, unnamed.
        known = {name: tensor for name, tensor in known.items() if not name.startswith("classifier.")}
    config = _with_head_labels(config, kind, known, labels, folder)
    model = kind(config)
    initialise(model, config, torch.Generator().manual_seed(seed))
    own = tuple(model.state_dict())
    missing = own if weights is None else _load_weights(model, known, folder)
    unexpected = tuple(sorted(given - (set(own) - set(missing))))
    return LoadedCheckpoint(model.eval(), config, tokenizer, missing, unexpected, folder, inferred)


def _merge_tied(weights: Mapping[str, Tensor], kind: type[Head], folder: Path) -> dict[str, Tensor]:
    """The weights with each tied weight once.

    Raises:
        InputError: two weights differ that the head ties, so that its outputs would be wrong.
    """
    merged = dict(weights)
    for alias, name in kind.tied_weights:
        tensor = merged.pop(alias, None)
        if tensor is not None and not torch.equal(merged.setdefault(name, tensor), tensor):
            raise InputError(f"{alias} is not tied to {name}", folder, "use a checkpoint with a tied decoder")
    return merged


def _with_head_labels(
    config: BertConfig,
    kind: type[Head],
    weights: Mapping[str, Tensor],
    labels: tuple[str, ...] | None,
    folder: Path,
) -> BertConfig:
    """The configuration with the head's labels."""
    if issubclass(kind, Regressor):
        return config if len(config.labels) == 1 else config.with_labels(unnamed_labels(1))
    if not kind.classes:
        return config
    if labels is not None:
        return config.with_labels(labels)
    width = weights["classifier.weight"].shape[0] if "classifier.weight" in weights else len(config.labels)
    if width == 0:
        todo = "fine-tune it with 'bertmp train classification'"
        raise InputError("a classification head needs labels", folder, todo)
    # An id2label that contradicts the width of the classifier is ignored.
    return config if len(config.labels) == width else config.with_labels(unnamed_labels(width))


def _load_weights(model: Head, weights: Mapping[str, Tensor], folder: Path) -> tuple[str, ...]:
    """Loads the weights into the model; returns the keys that are missing."""
    own = model.state_dict()
    words = weights.get(WORD_EMBEDDINGS)
    if words is None or not any(name.startswith("bert.encoder.layer.0.") for name in weights):
        raise InputError("the weights are not a BERT's", folder, "use a BERT checkpoint")
    if words.shape[0] != model.config.vocab_size:
        what = f"the weights have {words.shape[0]} tokens, config.json says {model.config.vocab_size}"
        raise InputError(what, folder, "fix vocab_size or use the right weights")
    usable = {name: tensor for name, tensor in weights.items() if name in own}
    for name in [name for name, tensor in usable.items() if tensor.shape != own[name].shape]:
        if not name.startswith(model.own_keys):
            found, wanted = list(usable[name].shape), list(own[name].shape)
            what = f"{name} is {found} in the weights and {wanted} by config.json"
            raise InputError(what, folder, "use the configuration that belongs to the weights")
        del usable[name]  # of another head
    missing = tuple(name for name in own if name not in usable)
    lacking = [name for name in missing if not name.startswith(("bert.pooler.", *model.own_keys))]
    if lacking:
        raise InputError(f"the weights lack {lacking[0]}", folder, "use a complete BERT checkpoint")
    model.load_state_dict({name: tensor.float() for name, tensor in usable.items()}, strict=False)
    return missing


def save_checkpoint(
    folder: Path, model: Head, config: BertConfig, tokenizer: Tokenizer, files: Iterable[tuple[str, Any]] = ()
) -> None:
    """Writes a Hugging Face folder atomically.

    Args:
        folder: the folder to write.
        model: the model; its weights keep their dtype, FP32 in training.
        config: its configuration.
        tokenizer: the model's tokenizer.
        files: names and contents of further JSON files.
    """
    extra = {key: value for key, value in config.extra.items() if key != "_name_or_path"}
    with atomic_folder(folder) as temporary:
        values = replace(config, extra=extra).to_dict(model.architecture, model.problem)
        write_json(temporary / "config.json", values)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        if isinstance(model, EncoderOnly):
            state = {name.removeprefix("bert."): tensor for name, tensor in state.items()}
        save_file(state, temporary / WEIGHTS, metadata={"format": "pt"})
        tokenizer.save(temporary)
        for name, value in files:
            write_json(temporary / name, value)


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copies the tokenizer's files; returns their names."""
    names = [name for name in tokenizers.FILES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names
