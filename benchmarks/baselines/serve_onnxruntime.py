"""The small server that many write: FastAPI and ONNX Runtime, a session of one thread for all requests.

FastAPI calls the function below from its own threads, so that every core computes an answer of its own.
"""

import os
from pathlib import Path

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel
from tokenizers import Tokenizer

bundle = Path(os.environ["BUNDLE"])
labels = (bundle / "labels.txt").read_text(encoding="utf-8").splitlines()
tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(bundle / "model.onnx", options, providers=["CPUExecutionProvider"])
app = FastAPI()


class Question(BaseModel):
    """What is asked."""

    text: str


@app.post("/classify")
def classify(question: Question) -> dict[str, object]:
    """The label, and the probability of each."""
    ids = np.array([tokenizer.encode(question.text).ids], dtype=np.int64)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    logits = session.run(["logits"], feed)[0][0]
    scores = np.exp(logits - logits.max())
    return {"label": labels[logits.argmax()], "probabilities": (scores / scores.sum()).tolist()}
