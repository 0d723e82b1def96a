"""What a text takes without a server: tokenised and run in one process, one text after the other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def measure(bundle: str, texts: list[str], threads: int) -> dict[str, Any]:
    """The labels, and the milliseconds of each text, all of which were answered before.

    Args:
        threads: of the session: as many as a run of the server has.
    """
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    folder = Path(bundle)
    labels = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )

    def answer(text: str) -> int:
        ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        return int(session.run(["logits"], feed)[0][0].argmax())

    found = [labels[answer(text)] for text in texts]  # the first time of a length takes memory for it
    times = []
    for text in texts:
        started = time.perf_counter()
        answer(text)
        times.append(1000 * (time.perf_counter() - started))
    return {"labels": found, "milliseconds": times}
