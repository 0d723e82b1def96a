"""The weights of a checkpoint folder by canonical name, whichever program wrote them.

Supported are `model.safetensors`, sharded weights, and the legacy `pytorch_model.bin`. Of a pickle, only
tensors are loaded; one that would run code is refused.
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
WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"

_RENAMED = ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias"))
_WRAPPERS = ("module.", "_orig_mod.", "model.", "0.auto_model.")
"""Prefixes of DistributedDataParallel, `torch.compile`, Lightning and sentence-transformers."""
_BARE = ("embeddings.", "encoder.", "pooler.")
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder's weights: one file, or the shards of an index, sorted by name.

    Raises:
        InputError: there are none, or the index is damaged or names a file outside the folder.
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
    """SHA-256 of a folder's weights: of the file, or of the digests of its shards.

    Raises:
        InputError: see `weight_files`.
    """
    digests = [sha256_file(path) for path in weight_files(folder)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A folder's weights by canonical name, on the CPU, in the dtypes they were saved in; without buffers.

    Raises:
        InputError: weights are missing or damaged, or a pickle holds more than tensors.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors.update(_read_safe(path) if path.suffix == ".safetensors" else _read_pickled(path))
    named = {canonical_name(name): tensor for name, tensor in tensors.items()}
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
        what = "the file holds more than weights, which could run code"
        raise InputError(what, path, "convert it to safetensors if you trust it") from error
    except Exception as error:  # a damaged file can raise almost anything
        raise InputError("damaged weights", path, f"replace the file ({error})") from error
    tensors = _unwrap(data)
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise InputError("the file is not a dictionary of weights", path, "use a state dictionary")
    return tensors


def _unwrap(data: Any) -> dict[str, Any]:
    """The state dictionary in a file of a training script, which may hold the optimizer's state as well."""
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    return {str(name): tensor for name, tensor in data.items()} if isinstance(data, dict) else {}


def canonical_name(name: str) -> str:
    """This model's name of a weight: without wrappers' prefixes, with `bert.`, and no `gamma` or `beta`."""
    while wrapper := next((wrapper for wrapper in _WRAPPERS if name.startswith(wrapper)), ""):
        name = name.removeprefix(wrapper)
    name = name.removeprefix("encoder.") if name.startswith("encoder.bert.") else name
    for old, ours in _RENAMED:
        name = name.replace(old, ours)
    return f"bert.{name}" if name.startswith(_BARE) else name


def infer_config(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """The fields of `config.json` that follow from the shapes of a BERT's weights.

    The number of attention heads is an assumption: a head size of 64, as in all models of Devlin et al., but
    12 heads for a hidden size of 384 (MiniLM; Wang et al. 2020).
    """
    sizes: dict[str, int] = {}
    for field, name, axis in (
        ("vocab_size", WORD_EMBEDDINGS, 0),
        ("hidden_size", WORD_EMBEDDINGS, 1),
        ("max_position_embeddings", "bert.embeddings.position_embeddings.weight", 0),
        ("type_vocab_size", "bert.embeddings.token_type_embeddings.weight", 0),
        ("intermediate_size", "bert.encoder.layer.0.intermediate.dense.weight", 0),
    ):
        if name in weights and weights[name].dim() == 2:
            sizes[field] = weights[name].shape[axis]
    layers = {name.split(".")[3] for name in weights if name.startswith("bert.encoder.layer.")}
    if layers:
        sizes["num_hidden_layers"] = len(layers)
    if hidden := sizes.get("hidden_size"):
        sizes["num_attention_heads"] = 12 if hidden == 384 else max(1, hidden // 64)
    return sizes
