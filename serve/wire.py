"""Requests and responses as tritonclient's four clients (gRPC and HTTP, each blocking and not) have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertmp.serve.serving_options import Protocol


def request_of(
    library: Any, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], classes: int = 0
) -> dict[str, Any]:
    """The tensors of a request, as arguments of a client's `infer`.

    Args:
        library: `tritonclient.grpc` or `tritonclient.http`.
        inputs: name → array `[batch, …]`; texts as bytes objects.
        outputs: the outputs wanted.
        classes: above 0, outputs come as Triton's `value:index:label` strings, this many.
    """
    from tritonclient.utils import np_to_triton_dtype

    sent = []
    for name, array in inputs.items():
        sent.append(library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        sent[-1].set_data_from_numpy(array)
    wanted = [library.InferRequestedOutput(name, class_count=classes) for name in outputs]
    return {"inputs": sent, "outputs": wanted}


def response_of(result: Any, outputs: Sequence[str], protocol: Protocol) -> tuple[dict[str, np.ndarray], int]:
    """The outputs of a response by name, and the version that answered."""
    response = result.get_response()
    answered = response.model_version if protocol == "grpc" else response["model_version"]
    return {name: result.as_numpy(name) for name in outputs}, int(answered)


def queue_timeout(seconds: float) -> int:
    """Microseconds after which the server drops a request that still waits in a queue."""
    return max(1, int(seconds * 1e6))
