"""The graphs that are converted, each made by `measure` in a process of its own.

All are classifiers of TREC questions and lie in a folder with their tokenizer and `config.json`.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.converters.widen import fit_classifier, wide, widen

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def measure(name: str, checkpoint: str, data: str, out: str) -> dict[str, Any]:
    """Makes one graph, `OUT/model.onnx`.

    Args:
        name: a key of `GRAPHS`.
        checkpoint: a classifier trained on TREC, a Hugging Face folder.
        data: TREC's training half.
        out: the folder to write.
    """
    from bertmp.model.checkpoint import copy_tokenizer

    warnings.simplefilter("ignore")
    folder = Path(out)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    GRAPHS[name](Path(checkpoint), Path(data), folder)
    copy_tokenizer(Path(checkpoint), folder)
    if not (folder / "config.json").is_file():
        shutil.copyfile(Path(checkpoint) / "config.json", folder / "config.json")
    return {}


def quickstart(checkpoint: Path, data: Path, out: Path) -> None:
    """What `make quickstart` exports: MiniLM fine-tuned, 6 layers of 384, opset 18, explicit attention."""
    import onnx

    from bertmp.export.graph.tracing import export_graph
    from bertmp.model.checkpoint import load_checkpoint

    onnx.save(export_graph(load_checkpoint(checkpoint).model), out / "model.onnx")


def bert_base(checkpoint: Path, data: Path, out: Path) -> None:
    """BERT-base's size, 12 layers of 768, widened from the trained classifier: see widen.py."""
    import onnx

    from bertmp.core.io import write_json
    from bertmp.export.graph.tracing import export_graph
    from bertmp.model.checkpoint import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    config = wide(loaded.config)
    model = type(loaded.model)(config).eval()
    model.load_state_dict(widen(loaded.model.state_dict(), loaded.config.num_hidden_layers))
    fit_classifier(model, loaded.tokenizer, data)
    write_json(out / "config.json", config.to_dict(model.architecture, model.problem))
    onnx.save(export_graph(model), out / "model.onnx")


def overflow(checkpoint: Path, data: Path, out: Path) -> None:
    """The quickstart's model made to overflow without changing its function.

    The fourth layer's values are 20,000 times as large, and the projection that reads them 1/20,000.
    """
    import onnx
    import torch

    from bertmp.export.graph.tracing import export_graph
    from bertmp.model.checkpoint import load_checkpoint

    model = load_checkpoint(checkpoint).model
    attention = model.bert.encoder.layer[3].attention
    with torch.no_grad():
        attention.self.value.weight.mul_(20_000)
        attention.self.value.bias.mul_(20_000)
        attention.output.dense.weight.div_(20_000)
    onnx.save(export_graph(model), out / "model.onnx")


def sdpa(checkpoint: Path, data: Path, out: Path) -> None:
    """transformers' own model with scaled-dot-product attention, torch's dynamo exporter, opset 18.

    The exporter writes attention with an IsNaN and a Where after every softmax.
    """
    import torch

    batch = torch.export.Dim("batch", min=1, max=65536)
    length = torch.export.Dim("length", min=1, max=512)
    program = torch.onnx.export(
        _transformers_model(checkpoint, "sdpa"),
        _example(),
        dynamo=True,
        opset_version=18,
        input_names=list(INPUTS),
        output_names=["logits"],
        dynamic_shapes=({0: batch, 1: length},) * len(INPUTS),
        verbose=False,
    )
    assert program is not None
    program.save(out / "model.onnx")


def opset13(checkpoint: Path, data: Path, out: Path) -> None:
    """The same from torch's older exporter at opset 13, which takes every LayerNorm and GELU apart."""
    import torch

    axes = {name: {0: "batch", 1: "length"} for name in INPUTS}
    torch.onnx.export(
        _transformers_model(checkpoint, "eager"),
        _example(),
        str(out / "model.onnx"),
        dynamo=False,
        opset_version=13,
        input_names=list(INPUTS),
        output_names=["logits"],
        dynamic_axes={**axes, "logits": {0: "batch"}},
    )


GRAPHS: dict[str, Callable[[Path, Path, Path], None]] = {
    "quickstart": quickstart,
    "bert-base": bert_base,
    "sdpa": sdpa,
    "opset13": opset13,
    "overflow": overflow,
}


def _transformers_model(checkpoint: Path, attention: str) -> Any:
    import torch
    from transformers import BertForSequenceClassification

    class Logits(torch.nn.Module):
        """The model with its inputs in their order, and its logits alone."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits

    model = BertForSequenceClassification.from_pretrained(checkpoint, attn_implementation=attention)
    return Logits(model).eval()


def _example() -> tuple[Any, ...]:
    import torch

    # Three tensors of their own: the tracer takes one tensor that is passed twice for one input.
    return tuple(torch.full((2, 7), fill, dtype=torch.int64) for fill in (1, 1, 0))
