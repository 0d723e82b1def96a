"""A BERT of twice the width and depth out of a small one, with weights of real scale.

No checkpoint of BERT-base's size comes with the packages that the benchmarks fetch, and random weights would
not do: what makes FP16 hard are the outliers that training leaves in the weights and, through them, in the
activations. So every channel stands twice, and a matrix W of `[out, in]` becomes `[2 out, 2 in]` with the
entries (W + N) / 2 in one copy of an input channel and (W − N) / 2 in the other, where N holds the values of
the same W in a random order. The product of a doubled input is the old one, and so are all activations,
outliers included; the entries are distributed like those of the trained matrix, at the smaller scale that a
layer of twice the fan-in has. Each layer stands twice, one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bertmp.data.tokenizer import Tokenizer
    from bertmp.model.config import BertConfig
    from bertmp.model.heads import Head


def wide(config: BertConfig) -> BertConfig:
    """The doubled shape; MiniLM's 6 layers of 384 become BERT-base's 12 of 768."""
    return replace(
        config,
        hidden_size=2 * config.hidden_size,
        intermediate_size=2 * config.intermediate_size,
        num_hidden_layers=2 * config.num_hidden_layers,
    )


def widen(weights: Mapping[str, Tensor], layers: int, seed: int = 0) -> dict[str, Tensor]:
    """The doubled model's weights.

    Args:
        weights: of a BERT with `layers` layers, by Hugging Face's names.
    """
    generator = torch.Generator().manual_seed(seed)
    wider: dict[str, Tensor] = {}
    for layer in range(2 * layers):
        of, to = f"bert.encoder.layer.{layer // 2}.", f"bert.encoder.layer.{layer}."
        for name in (name for name in weights if name.startswith(of)):
            wider[to + name.removeprefix(of)] = _double(name, weights[name], generator)
    for name, weight in weights.items():
        if not name.startswith("bert.encoder.layer."):
            wider[name] = _double(name, weight, generator)
    return wider


def _double(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    # A head of twice the size sums twice as many products and is divided by √2 more: √2 too much.
    scale = 0.5**0.5 if ".self.query." in name else 1.0
    if name == "classifier.bias":
        return weight
    if weight.ndim == 1:
        return scale * weight.repeat_interleave(2)
    if "embeddings" in name:
        return weight.repeat_interleave(2, dim=1)
    rows = weight if name == "classifier.weight" else weight.repeat_interleave(2, dim=0)
    drawn = weight.flatten()[torch.randint(weight.numel(), (rows.numel(),), generator=generator)]
    noise = drawn.view_as(rows)
    return scale * torch.stack([(rows + noise) / 2, (rows - noise) / 2], dim=2).flatten(1)


def fit_classifier(model: Head, tokenizer: Tokenizer, data: Path, texts: int = 512) -> None:
    """Fits the classifier to labelled texts by least squares: doubled layers answer something new.

    Args:
        model: a classifier over `model.config.labels`; its classifier's weights are replaced.
        data: `label<TAB>text`; the first `texts` of it are used.
    """
    from bertmp.data.batches import pad_batch
    from bertmp.data.readers import read_examples

    examples = read_examples(data, need_labels=True)
    order = sorted(range(min(texts, len(examples))), key=lambda row: len(examples.texts[row]))
    features, wanted = [], []
    for start in range(0, len(order), 16):
        rows = order[start : start + 16]
        encoded = tokenizer.encode([examples.texts[row] for row in rows])
        ids, mask, types = map(torch.from_numpy, pad_batch(encoded, tokenizer.pad_id).values())
        with torch.inference_mode():
            features.append(model.bert(ids, mask, types)[1])
        assert examples.labels is not None
        wanted += [model.config.labels.index(examples.labels[row]) for row in rows]
    pooled = torch.cat(features).double()
    inputs = torch.cat([pooled, torch.ones(len(pooled), 1, dtype=torch.float64)], dim=1)
    # Logits of ±4: the margins of a trained classifier.
    targets = 8.0 * torch.nn.functional.one_hot(torch.tensor(wanted), len(model.config.labels)).double() - 4.0
    ridge = inputs.T @ inputs + 0.1 * torch.eye(inputs.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(ridge, inputs.T @ targets).float()
    with torch.no_grad():
        model.classifier.weight.copy_(solution[:-1].T)
        model.classifier.bias.copy_(solution[-1])
