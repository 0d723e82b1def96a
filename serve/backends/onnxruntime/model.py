"""Serves unmodified `platform: "onnxruntime_onnx"` models where Triton has no backend of that name.

Triton's Python backend runs this file once per model instance. The model's configuration may set these
`parameters`:

    intra_op_thread_count   threads of one session; by default the cores are divided among the instances
    limits                  JSON: input name → {"length": most columns, "below": every value is at least 0
                            and less than this}; a request beyond them is refused before it is run
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from cpu_session import open_session
from cpu_session.worker import Progress, let_live_versions_go_first
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

PRECISION = "precision.json"
"""The file of a version that says what its graphs shall be run in: file → `bf16`; FP32 without it."""

Feed = dict[str, np.ndarray]
"""A request's inputs by name."""


class BadRequest(Exception):
    """A request that its sender has to correct; the message describes the fault."""


class TritonPythonModel:
    """One model instance, with its own session."""

    def initialize(self, args: dict[str, str]) -> None:
        let_live_versions_go_first(args["model_name"])
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        name = config.get("default_model_filename") or "model.onnx"
        graph = os.path.join(args["model_repository"], args["model_version"], name)
        self.batched = config["max_batch_size"] > 0
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]
        self.limits = json.loads(parameters.get("limits", "{}"))
        precision = read_precision(os.path.dirname(graph)).get(name, "fp32")
        threads = thread_count(config, parameters)
        self.session, _ = open_session(graph, threads, precision, pb_utils.Logger.log_warn)
        self.progress = Progress()
        self._check_names()

    def _check_names(self) -> None:
        """Refuses a configuration that does not match the graph at load, not at the first request."""
        present = {entry.name for entry in (*self.session.get_inputs(), *self.session.get_outputs())}
        for name in (*self.inputs, *self.outputs):
            if name not in present:
                raise pb_utils.TritonModelException(f"the graph has no input or output '{name}'")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Runs requests of one shape as one batch; each is answered or refused by itself."""
        with self.progress:
            return self._answers(requests)

    def _answers(self, requests: Sequence[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        groups: dict[Any, list[tuple[int, Feed]]] = {}
        for number, request in enumerate(requests):
            try:
                feed = self._feed(request)
            except BadRequest as error:
                responses[number] = error_response(error)
                continue
            key = tuple(array.shape[1:] for array in feed.values()) if self.batched else number
            groups.setdefault(key, []).append((number, feed))
        for members in groups.values():
            for number, response in self._run(members, requests):
                responses[number] = response
        return responses

    def _feed(self, request: Any) -> Feed:
        """The request's inputs by name, checked.

        Raises:
            BadRequest: an input exceeds its limits, or the inputs differ in shape.
        """
        feed = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
        for name, limit in self.limits.items():
            check(name, feed[name], limit)
        shapes = {feed[name].shape for name in self.limits}
        if len(shapes) > 1:
            raise BadRequest(f"{', '.join(self.limits)} differ in shape")
        return feed

    def _run(self, members: Sequence[tuple[int, Feed]], requests: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """(request number, response) of each member; of a failed batch one by one."""
        feeds = [feed for _, feed in members]
        single = len(feeds) == 1
        batch = feeds[0] if single else {n: np.concatenate([f[n] for f in feeds]) for n in self.inputs}
        try:
            arrays = self.session.run(self.outputs, batch)
        except Exception as error:
            if single:
                yield members[0][0], error_response(error)
            else:
                for member in members:
                    yield from self._run([member], requests)
            return
        parts = [arrays] if single else split(arrays, [len(feed[self.inputs[0]]) for feed in feeds])
        for (number, _), part in zip(members, parts):  # noqa: B905 (equal by construction)
            yield number, self._answer(requests[number], part)

    def _answer(self, request: Any, arrays: Sequence[np.ndarray]) -> Any:
        wanted = set(request.requested_output_names())
        named = zip(self.outputs, arrays)  # noqa: B905 (equal by construction)
        return pb_utils.InferenceResponse([pb_utils.Tensor(n, a) for n, a in named if n in wanted])


def read_precision(version: str) -> dict[str, str]:
    """What the graphs of a version shall be run in, by file."""
    path = os.path.join(version, PRECISION)
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as stream:
        return dict(json.load(stream))


def thread_count(config: Mapping[str, Any], parameters: Mapping[str, str]) -> int:
    """The threads of one session."""
    if "intra_op_thread_count" in parameters:
        return int(parameters["intra_op_thread_count"])
    instances = sum(group["count"] for group in config["instance_group"])
    return max(1, len(os.sched_getaffinity(0)) // max(1, instances))


def check(name: str, values: np.ndarray, limit: Mapping[str, int]) -> None:
    """Checks `values` `[batch, length]` against what the model can take.

    Raises:
        BadRequest: names the input, the limit and the first value beyond it.
    """
    if values.size == 0:
        raise BadRequest(f"{name} is empty: its shape is {list(values.shape)}")
    if values.shape[-1] > limit["length"]:
        raise BadRequest(f"{name} is too long: {values.shape[-1]} tokens, the most is {limit['length']}")
    beyond = (values < 0) | (values >= limit["below"])
    if beyond.any():
        first = values[beyond].flat[0]
        raise BadRequest(f"{name} has the value {first}, outside 0 to {limit['below'] - 1}")


def split(arrays: Sequence[np.ndarray], sizes: Sequence[int]) -> list[tuple[np.ndarray, ...]]:
    """The outputs of a batch, split into one tuple of arrays per request."""
    ends = np.cumsum(sizes)[:-1]
    return list(zip(*(np.split(array, ends) for array in arrays)))  # noqa: B905 (equal by construction)


def error_response(error: Exception) -> Any:
    """The response to a request that cannot be answered, with a status for the kind of fault."""
    senders_fault = isinstance(error, (BadRequest, ort_errors.InvalidArgument))
    code = pb_utils.TritonError.INVALID_ARG if senders_fault else pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
