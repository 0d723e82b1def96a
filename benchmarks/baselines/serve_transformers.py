"""The server of transformers' documentation: FastAPI and a text-classification pipeline, torch in FP32."""

import os

from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

classifier = pipeline("text-classification", model=os.environ["CHECKPOINT"], device="cpu", top_k=None)
app = FastAPI()


class Question(BaseModel):
    """What is asked."""

    text: str


@app.post("/classify")
def classify(question: Question) -> dict[str, object]:
    """The label, and the probability of each."""
    scores = classifier([question.text])[0]
    return {"label": scores[0]["label"], "probabilities": [entry["score"] for entry in scores]}
