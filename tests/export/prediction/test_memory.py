"""A file of any size is answered in the memory that a small one takes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.prediction.heads import Heads

PEAK = """
import re, sys
from pathlib import Path
import bertmp
bertmp.predict(sys.argv[1], data=sys.argv[2], out=sys.argv[3])
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
ALLOWED = 48 * 2**10
"""KiB by which the peak may grow. All texts with their answers, kept at once, take several times as much."""


def texts(path: Path, count: int) -> Path:
    """Texts of 1 to 12 words, the same for the same count."""
    drawn = random.Random(count)
    words = ("river", "naïve", "who", "Prague", "unbelievable", "x", "2026", "?")
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            chosen = drawn.choices(words, k=drawn.randint(1, 12))
            stream.write(json.dumps({"text": f"{number} {' '.join(chosen)}"}) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "token-classification"])
def test_peak_memory_does_not_grow_with_the_number_of_texts(task: str, minilm: Path, tmp_path: Path) -> None:
    bundle, peaks = Heads(tmp_path, minilm).bundle(task), {}
    for count in (2_000, 100_000):
        data, out = texts(tmp_path / f"{count}.jsonl", count), tmp_path / f"answers-{count}.jsonl"
        done = subprocess.run(
            [sys.executable, "-c", PEAK, bundle, data, out], capture_output=True, text=True, check=True
        )
        peaks[count] = int(done.stdout)
        with data.open() as source, out.open() as answers:
            rows = 0
            for asked, answered in zip(source, answers, strict=True):
                assert json.loads(asked)["text"] == json.loads(answered)["text"]
                rows += 1
        assert rows == count
    assert peaks[100_000] - peaks[2_000] <= ALLOWED, peaks
