"""The weights of a checkpoint folder, whatever wrote them, by the names that this model gives them.

Read are `model.safetensors`, its shards, and the legacy `pytorch_model.bin`, of which tensors alone are
taken: whatever else a pickle would do is refused.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, sha256_file

WEIGHTS = "model.safetensors"
LEGACY = "pytorch_model.bin"
WORDS = "bert.embeddings.word_embeddings.weight"

_RENAMED = ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias"))
_WRAPPERS = ("module.", "_orig_mod.")
_BARE = ("embeddings.", "encoder.", "pooler.")
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: one, or an index's shards in the order of their names.

    Errors: InputError where there are none, or where an index is damaged or names a file elsewhere.
    """
    for name in (WEIGHTS, LEGACY):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            return _shards(index)
    raise InputError(f"no {WEIGHTS}", folder, "add the checkpoint's weights")


def _shards(index: Path) -> list[Path]:
    data = read_json(index)
    names = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(names, dict) or not names:
        raise InputError("the index lists no weights", index, "replace it")
    shards = [index.parent / str(name) for name in sorted({str(name) for name in names.values()})]
    for shard in shards:
        if shard.parent != index.parent or not shard.is_file():
            raise InputError(f"no {shard.name}, which the index names", index.parent, "add the missing shard")
    return shards


def fingerprint(folder: Path) -> str:
    """SHA-256 of a folder's weights: of the file, or over the digests of several.

    Errors: see `weight_files`.
    """
    digests = [sha256_file(path) for path in weight_files(folder)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A folder's weights by our names, on the CPU, in the types they were saved in.

    `gamma` and `beta`, wrappers' prefixes, missing `bert.` prefixes and buffers that are no weights are
    brought to one form.

    Errors: InputError where weights are missing or damaged, or where a pickle holds more than tensors.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors.update(_read_safe(path) if path.suffix == ".safetensors" else _read_pickled(path))
    named = {our_name(name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if not name.endswith(_BUFFERS)}


def _read_safe(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError("damaged weights", path, f"replace the file ({error})") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            "the file holds more than weights, which could run code",
            path,
            "convert it to safetensors where you trust it",
        ) from error
    except Exception as error:  # whatever a damaged file makes of the format's parts
        raise InputError("damaged weights", path, f"replace the file ({error})") from error
    tensors = _unwrap(data)
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise InputError("the file is not a dictionary of weights", path, "use a state dictionary")
    return tensors


def _unwrap(data: Any) -> dict[str, Any]:
    """The state dictionary in what training scripts save beside their optimizer's state."""
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    return {str(name): tensor for name, tensor in data.items()} if isinstance(data, dict) else {}


def our_name(name: str) -> str:
    """The name that a foreign weight has here."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    for old, ours in _RENAMED:
        name = name.replace(old, ours)
    return f"bert.{name}" if name.startswith(_BARE) else name


def sizes_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """The fields of `config.json` that weights of a BERT show; what they do not show is left out.

    The number of attention heads is an assumption: 64 wide each, as in all of Devlin et al.'s models,
    except that a hidden size of 384 has 12 (MiniLM; Wang et al. 2020).
    """
    sizes: dict[str, int] = {}
    for field, name, axis in (
        ("vocab_size", WORDS, 0),
        ("hidden_size", WORDS, 1),
        ("max_position_embeddings", "bert.embeddings.position_embeddings.weight", 0),
        ("type_vocab_size", "bert.embeddings.token_type_embeddings.weight", 0),
        ("intermediate_size", "bert.encoder.layer.0.intermediate.dense.weight", 0),
    ):
        if name in weights and weights[name].dim() == 2:
            sizes[field] = weights[name].shape[axis]
    layers = {name.split(".")[3] for name in weights if name.startswith("bert.encoder.layer.")}
    if layers:
        sizes["num_hidden_layers"] = len(layers)
    if "hidden_size" in sizes:
        hidden = sizes["hidden_size"]
        sizes["num_attention_heads"] = 12 if hidden == 384 else max(1, hidden // 64)
    return sizes
