"""Parity on 100,000 texts takes bounded memory; `make bench-pipeline` measures its time."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serve.bundles import make_bundle

MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, done.returncode)
"""


def run(bundle: Path, data: Path, report: Path) -> tuple[int, dict[str, Any]]:
    """The peak memory of a parity run in bytes, and its report."""
    gates = report.with_suffix(".toml")  # how far random weights are off is not the question here
    gates.write_text("".join(f"[onnx-{one}]\nmax_error = 1.0\n" for one in ("fp32", "fp16", "fp16-emulated")))
    command = [sys.executable, "-m", "bertmp", "parity", bundle, "--data", data, "--report", report]
    command += ["--gates", gates]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, command)], capture_output=True, text=True, check=True
    )
    peak, code = map(int, done.stdout.split())
    assert code == 0, done.stderr
    return peak, json.loads((report / "report.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_100_000_texts_take_bounded_memory(minilm: Path, trec: Path, tmp_path: Path) -> None:
    bundle, chosen = make_bundle(tmp_path, minilm, seed=0, fp16=True), random.Random(0)
    lines = (trec / "train.tsv").read_text(encoding="utf-8").splitlines()
    peaks, report = {}, {}
    for count in (1_000, 100_000):
        data = tmp_path / f"{count}.tsv"
        rows = (f"{chosen.choice(lines)} {number}\n" for number in range(count))
        data.write_text("".join(rows), encoding="utf-8")
        peaks[count], report = run(bundle, data, tmp_path / f"report-{count}")
    assert report["data"]["texts"] == 100_000
    # The texts, their token ids and each stage's answers: 2.5 kB a text at the most.
    assert peaks[100_000] - peaks[1_000] < 250e6
    assert (tmp_path / "report-100000" / "report.html").stat().st_size < 2e6
