"""A stand-in for `triton_python_backend_utils` with the documented rules of where tensors lie.

An encoder's outputs lie in the GPU's memory, as those of Triton's TensorRT backend do, unless the request
prefers the CPU's. `as_numpy()` of a tensor on the GPU raises (server issue 5952, python_backend's README,
"Interoperability and GPU Support" and "Input Tensor Device Placement").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

TRITONSERVER_MEMORY_CPU, TRITONSERVER_MEMORY_GPU = "cpu", "gpu"

ENCODERS: dict[str, Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]] = {}
"""Model name → what it computes; a test fills it."""


class TritonModelException(Exception):
    pass


class TritonError(Exception):
    INVALID_ARG, INTERNAL = "invalid argument", "internal"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        super().__init__(message)
        self.code = code

    def message(self) -> str:
        return str(self)


class Logger:
    LINES: ClassVar[list[str]] = []

    @staticmethod
    def log_warn(message: str) -> None:
        Logger.LINES.append(message)


class Tensor:
    def __init__(self, name: str, array: np.ndarray, memory: str = TRITONSERVER_MEMORY_CPU) -> None:
        self._name, self._array, self._memory = name, array, memory

    def name(self) -> str:
        return self._name

    def is_cpu(self) -> bool:
        return self._memory == TRITONSERVER_MEMORY_CPU

    def as_numpy(self) -> np.ndarray:
        if not self.is_cpu():
            raise TritonModelException("Tensor is stored in GPU and cannot be converted to NumPy.")
        return self._array


class PreferredMemory:
    def __init__(self, memory: str, device_id: int = 0) -> None:
        self.memory, self.device_id = memory, device_id


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class InferenceResponseSender:
    """Keeps what was sent; after the final response, Triton takes no other."""

    def __init__(self) -> None:
        self.sent: list[InferenceResponse] = []

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        if self.sent:
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        self.sent.append(response)
        assert flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL


class InferenceRequest:
    def __init__(
        self,
        model_name: str = "",
        requested_output_names: Sequence[str] = (),
        inputs: Sequence[Tensor] = (),
        model_version: int = -1,
        preferred_memory: PreferredMemory | None = None,
    ) -> None:
        self._model, self._inputs, self._outputs = model_name, list(inputs), list(requested_output_names)
        self.sender = InferenceResponseSender()
        self._memory = preferred_memory.memory if preferred_memory else TRITONSERVER_MEMORY_GPU

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def get_response_sender(self) -> InferenceResponseSender:
        return self.sender

    def exec(self) -> InferenceResponse:
        found = ENCODERS[self._model]({tensor.name(): tensor.as_numpy() for tensor in self._inputs})
        return InferenceResponse([Tensor(name, found[name], self._memory) for name in self._outputs])

    async def async_exec(self) -> InferenceResponse:
        return self.exec()


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor | None:
    return next((tensor for tensor in response.output_tensors() if tensor.name() == name), None)


def __getattr__(name: str) -> Any:
    raise AttributeError(f"the stand-in has no {name}: add it as Triton documents it")
