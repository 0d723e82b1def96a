"""A text classifier for Triton's Python backend: TEXT → LABEL, PROBABILITIES, TRUNCATED, TOKENS, FILES.

The tokenizer lies beside this file, and in `lib/` the package that reads it, which stock containers lack. The
numbers come from the encoder model of the same version, called inside the server. The texts of all requests
of one call are tokenized together and grouped by length: on a CPU, batches without padding are the fast ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from tokenizers import Tokenizer


class BadRequest(Exception):
    """A request that its sender has to correct; the message describes the fault."""


class TritonPythonModel:
    """One model instance; `settings.json` and `tokenizer.json` are in the version's folder."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = os.path.join(args["model_repository"], args["model_version"])
        with open(os.path.join(folder, "settings.json"), encoding="utf-8") as stream:
            self.settings = json.load(stream)
        parameters = json.loads(args["model_config"])["parameters"]
        self.version = int(args["model_version"])
        self.labels = np.array([label.encode() for label in self.settings["labels"]], dtype=object)
        self.length_step = int(parameters["length_step"]["string_value"])
        self.tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        with open(os.path.join(folder, "tokenizer.json"), "rb") as stream:
            files = {"tokenizer.json": hashlib.sha256(stream.read()).hexdigest()}
        self.files = json.dumps({**self.settings.get("sha256", {}), **files}).encode()
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.settings["max_length"])

    async def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answers each request by itself: one that is refused or fails does not affect the others."""
        texts: list[str] = []
        spans: list[range] = []
        errors: dict[int, Any] = {}
        for number, request in enumerate(requests):
            start = len(texts)
            try:
                texts.extend(self._read(request))
            except BadRequest as error:
                errors[number] = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            spans.append(range(start, len(texts)))
        encodings = self.tokenizer.encode_batch_fast(texts) if texts else []
        logits, row_errors = await self._logits(encodings)
        responses = []
        for number, rows in enumerate(spans):
            failed = errors.get(number) or next((row_errors[row] for row in rows if row in row_errors), None)
            if failed is not None:
                responses.append(pb_utils.InferenceResponse(error=failed))
            else:
                wanted = requests[number].requested_output_names()
                responses.append(self._answer(encodings[rows.start : rows.stop], logits[rows], wanted))
        return responses

    def _read(self, request: Any) -> list[str]:
        """The request's texts, `[batch, 1]` bytes in it, as strings."""
        rows = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().reshape(-1)
        max_bytes = self.settings["max_text_bytes"]
        return [read_text(value, row, len(rows), max_bytes) for row, value in enumerate(rows)]

    async def _logits(self, encodings: Sequence[Any]) -> tuple[np.ndarray, dict[int, Any]]:
        """Logits FP32 `[rows, labels]`, and the error of every row that has none."""
        logits = np.zeros((len(encodings), len(self.labels)), dtype=np.float32)
        row_errors: dict[int, Any] = {}
        lengths = [len(encoding) for encoding in encodings]
        groups = group_by_length(lengths, self.length_step, self.settings["max_batch"])
        calls = [self._encoder_request([encodings[row] for row in rows], length) for length, rows in groups]
        replies = await asyncio.gather(*(call.async_exec() for call in calls))
        for (_, rows), response in zip(groups, replies):  # noqa: B905 (equal by construction)
            if response.has_error():
                row_errors.update(dict.fromkeys(rows, response.error()))
            else:
                logits[rows] = pb_utils.get_output_tensor_by_name(response, "logits").as_numpy()
        return logits, row_errors

    def _encoder_request(self, encodings: Sequence[Any], length: int) -> Any:
        """The request to this version's encoder, rows padded to `length` or the model's maximum."""
        shape = (len(encodings), min(length, self.settings["max_length"]))
        ids = np.full(shape, self.settings["pad_id"], dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            count = len(encoding)
            ids[row, :count], types[row, :count], mask[row, :count] = encoding.ids, encoding.type_ids, 1
        return pb_utils.InferenceRequest(
            model_name=self.settings["encoder"],
            model_version=self.version,
            requested_output_names=["logits"],
            # The TensorRT backend leaves outputs in the GPU's memory otherwise, where as_numpy() raises.
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
            inputs=[
                pb_utils.Tensor("input_ids", ids),
                pb_utils.Tensor("attention_mask", mask),
                pb_utils.Tensor("token_type_ids", types),
            ],
        )

    def _answer(self, encodings: Sequence[Any], logits: np.ndarray, wanted: Sequence[str]) -> Any:
        """The response: each text's label, its probabilities, how much of it was read, and by which files."""
        truncated = [bool(encoding.overflowing) for encoding in encodings]
        counts = [len(encoding) for encoding in encodings]
        found = {
            "LABEL": self.labels[logits.argmax(axis=1)].reshape(-1, 1),
            "PROBABILITIES": softmax(logits),
            "TRUNCATED": np.array(truncated, dtype=bool).reshape(-1, 1),
            "TOKENS": np.array(counts, dtype=np.int32).reshape(-1, 1),
            "FILES": np.array([self.files] * len(counts), dtype=object).reshape(-1, 1),
        }
        return pb_utils.InferenceResponse(
            output_tensors=[pb_utils.Tensor(name, found[name]) for name in found if name in wanted]
        )


def read_text(value: bytes, row: int, rows: int, max_bytes: int) -> str:
    """One text of a request, checked.

    Raises:
        BadRequest: it is empty, longer than `max_bytes`, or not UTF-8.
    """
    where = f"text {row + 1} of {rows}" if rows > 1 else "the text"
    if len(value) > max_bytes:
        raise BadRequest(f"{where} is too large: {len(value)} bytes, the most is {max_bytes}")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = value[error.start]
        raise BadRequest(f"{where} is not UTF-8: byte 0x{byte:02x} at position {error.start}") from error
    if not text.strip():
        raise BadRequest(f"{where} is empty")
    return text


def group_by_length(lengths: Sequence[int], step: int, max_rows: int) -> list[tuple[int, list[int]]]:
    """Batches of rows of equal length, up to `step`.

    Args:
        lengths: each row's length in tokens.
        step: lengths are rounded up to a multiple of it; 1 leaves no padding.
        max_rows: the most rows a batch may have.

    Returns:
        A list of (length, rows), every row in exactly one of them.
    """
    by_length: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        by_length.setdefault(-(-length // step) * step, []).append(row)
    return [
        (length, rows[start : start + max_rows])
        for length, rows in sorted(by_length.items())
        for start in range(0, len(rows), max_rows)
    ]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities FP32 of logits `[rows, labels]`, summed in double precision."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
