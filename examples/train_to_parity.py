"""Trains a small BERT for a few steps, exports it, builds an engine and checks every stage.

    python examples/train_to_parity.py [FOLDER]

It takes about a minute on 2 cores and needs no GPU. It downloads MiniLM and the TREC questions, as
`bertmp download minilm trec` does.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import bertmp
from bertmp.export.parity.result import ParityReport


def main(folder: Path, steps: int = 40, examples: int = 100) -> ParityReport:
    """Runs the pipeline up to parity.

    Args:
        folder: where the run, the bundle and the report are written.
        steps: optimizer steps of 32 examples.
        examples: how many test questions parity compares.
    """
    inputs = bertmp.download(["minilm", "trec"])
    test = folder / "test.tsv"
    folder.mkdir(parents=True, exist_ok=True)
    with (inputs["trec"] / "test.tsv").open(encoding="utf-8") as lines:
        test.write_text("".join(islice(lines, examples)), encoding="utf-8")

    trained = bertmp.train(
        "classification",
        data=inputs["trec"] / "train.tsv",
        eval_data=test,
        model=inputs["minilm"],
        out=folder / "run",
        steps=steps,
        learning_rate=2e-4,
    )
    if trained.evaluation:
        print(f"trained {trained.steps} steps: {trained.evaluation.to_json()}")

    exported = bertmp.export_checkpoint(trained.checkpoint, folder / "bundle")
    print(f"exported: {exported.nodes}, FP16 file {exported.bytes_fp16 / exported.bytes_fp32:.3f} of FP32")

    engine = bertmp.build_engine(exported.bundle, profiles=["1x1:8x32:32x64"])
    print(f"engine of {engine.builder} {engine.builder_version}: {engine.layers} layers, precision verified")

    report = bertmp.parity(exported.bundle, test, report=folder / "report")
    for stage in report.to_json()["stages"]:
        print(f"{stage['name']:12}{stage.get('metrics') or 'not run'}")
    print(f"parity {'passed' if report.passed else 'failed'}: {folder / 'report' / 'report.html'}")
    return report


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "build/example")
    sys.exit(0 if main(target).passed else 1)
