"""Executing an engine on a GPU: torch tensors as buffers, one CUDA graph a shape, no copy but in and out.

Each shape that is asked for gets a slot the first time: an execution context, input and output buffers on
the GPU, pinned buffers on the host, and the CUDA graph of one run. From then on a batch is one copy in for
each input, one launch, one copy out for each output. A captured graph belongs to its context, so contexts
are not shared between shapes; the memory that they work in is, as one shape runs at a time.

Written to the documented API of TensorRT and TensorRT-RTX (`create_execution_context` with an allocation
strategy, `set_device_memory`, `set_input_shape`, `set_tensor_address`, `execute_async_v3`). It was not run:
that takes an NVIDIA GPU with the builder's runtime.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertmp.core.errors import BuildFailed, InputError, MissingComponent
from bertmp.core.hardware import Gpu, find_gpu
from bertmp.export.engine.builders import Toolchain, find_toolchain
from bertmp.export.engine.compatibility import EngineFile, open_engine, require_device, require_runtime
from bertmp.export.engine.engine_options import Profile, Shape, choose_profile, parse_profile

if TYPE_CHECKING:
    import tensorrt

SLOTS = 64
"""Shapes that stay prepared; the least recently used one is replaced."""


def why_not(builder: str) -> str:
    """The reason why an engine of this builder cannot run on this machine; empty where it can."""
    import torch

    if not torch.cuda.is_available():
        return "no GPU"
    try:
        find_toolchain(builder)
    except MissingComponent as error:
        return f"no runtime of {builder}: {error.where}"
    return ""


def load_engine(folder: Path) -> Engine:
    """Loads the engine in a folder.

    Raises:
        MissingComponent: there is no GPU, or the builder's runtime is not installed.
        InputError: an engine that is truncated, or of another builder, version or GPU.
        BuildFailed: the runtime refuses it all the same.
    """
    file = open_engine(folder)
    reason = why_not(file.builder)
    device = find_gpu()
    if reason or device is None:
        todo = "run it on a machine with an NVIDIA GPU and its builder's runtime ('bertmp doctor')"
        raise MissingComponent(f"the engine cannot run here: {reason or 'no GPU'}", file.path, todo)
    tools = find_toolchain(file.builder)
    require_runtime(file, tools.name, tools.version)
    require_device(file, device.name, device.compute_capability)
    return Engine(tools, file, device)


@dataclass
class _Slot:
    """One shape, ready to run.

    Attributes:
        context: its execution context.
        host_inputs, inputs: pinned and GPU tensors by input name, INT64 `[batch, length]`.
        outputs, host_outputs: GPU and pinned tensors by output name.
        graph: the captured run; None where the context cannot be captured.
    """

    context: tensorrt.IExecutionContext
    host_inputs: Mapping[str, Any]
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    host_outputs: Mapping[str, Any]
    graph: Any = None


class Engine:
    """A deserialised engine on this machine's GPU. For one thread.

    Args:
        file: where it lies, and its profiles.

    Attributes:
        tools, file, device: what it runs with.
        profiles: in the engine's order.

    Raises:
        BuildFailed: the runtime refuses the file.
    """

    def __init__(self, tools: Toolchain, file: EngineFile, device: Gpu) -> None:
        import torch

        trt = tools.module
        self.tools, self.file, self.device = tools, file, device
        self.profiles: Sequence[Profile] = [parse_profile(text) for text in file.profiles]
        self._torch = torch
        self._stream = torch.cuda.Stream()
        # The runtime must outlive the engine, and the engine its contexts.
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(file.path.read_bytes())
        if self._engine is None:
            raise BuildFailed("the runtime does not load the engine", file.path, "build it on this machine")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = {name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        self.inputs = tuple(name for name in names if name in inputs)
        self.outputs = tuple(name for name in names if name not in inputs)
        # One piece of memory for all contexts: they never run at the same time.
        self._scratch = torch.empty(self._engine.device_memory_size_v2, dtype=torch.uint8, device="cuda")
        self._slots: OrderedDict[Shape, _Slot] = OrderedDict()

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs one batch.

        Args:
            batch: the graph's inputs by name, INT64 `[batch, length]`; all of one shape.

        Returns:
            Every output by name.

        Raises:
            InputError: no profile holds the shape.
            BuildFailed: the engine does not run.
        """
        slot = self.prepare(Shape(*batch[self.inputs[0]].shape))
        for name, buffer in slot.host_inputs.items():
            buffer.numpy()[:] = batch[name]
        self.launch(slot)
        self._stream.synchronize()
        return {name: buffer.numpy().copy() for name, buffer in slot.host_outputs.items()}

    def launch(self, slot: _Slot) -> None:
        """Queues the copies in, one run and the copies out on the engine's stream; does not wait."""
        with self._torch.cuda.stream(self._stream):
            for name, buffer in slot.inputs.items():
                buffer.copy_(slot.host_inputs[name], non_blocking=True)
            if slot.graph is not None:
                slot.graph.replay()
            else:
                self._enqueue(slot.context)
            for name, buffer in slot.host_outputs.items():
                buffer.copy_(slot.outputs[name], non_blocking=True)

    def synchronize(self) -> None:
        """Waits for all that was queued."""
        self._stream.synchronize()

    def prepare(self, shape: Shape) -> _Slot:
        """The slot of a shape, made where it is new.

        Raises:
            InputError: no profile holds the shape.
        """
        if shape not in self._slots:
            self._slots[shape] = self._make(shape)
            if len(self._slots) > SLOTS:
                self._slots.popitem(last=False)
        self._slots.move_to_end(shape)
        return self._slots[shape]

    def _make(self, shape: Shape) -> _Slot:
        index = choose_profile(self.profiles, shape)
        if index is None:
            what, known = f"no profile of the engine holds {shape}", ", ".join(map(str, self.profiles))
            raise InputError(what, known, "build it with a profile that does")
        torch = self._torch
        with torch.cuda.stream(self._stream):
            context = self._new_context(index)
            dims = tuple(shape)
            inputs = {name: torch.zeros(dims, dtype=torch.int64, device="cuda") for name in self.inputs}
            for name, buffer in inputs.items():
                context.set_input_shape(name, dims)
                context.set_tensor_address(name, buffer.data_ptr())
            outputs = {name: self._output(context, name) for name in self.outputs}
            for name, buffer in outputs.items():
                context.set_tensor_address(name, buffer.data_ptr())
            slot = _Slot(context, _pinned(torch, inputs), inputs, outputs, _pinned(torch, outputs))
            # The first run does what a shape needs once, and must not be captured.
            self._enqueue(context)
            self._stream.synchronize()
            slot.graph = self._capture(context)
        return slot

    def _new_context(self, profile: int) -> tensorrt.IExecutionContext:
        """A context on the common memory, with its profile chosen."""
        strategy = self.tools.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise BuildFailed("the runtime makes no context for the engine", self.file.path)
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        context.set_optimization_profile_async(profile, self._stream.cuda_stream)
        self._stream.synchronize()
        return context

    def _output(self, context: tensorrt.IExecutionContext, name: str) -> Any:
        torch, trt = self._torch, self.tools.module
        types = {
            trt.DataType.FLOAT: torch.float32,
            trt.DataType.HALF: torch.float16,
            trt.DataType.INT64: torch.int64,
        }
        shape, kind = tuple(context.get_tensor_shape(name)), types[self._engine.get_tensor_dtype(name)]
        return torch.empty(shape, dtype=kind, device="cuda")

    def _capture(self, context: tensorrt.IExecutionContext) -> Any:
        """The CUDA graph of one run; None where something in the engine cannot be captured."""
        torch = self._torch
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._enqueue(context)
        except (RuntimeError, BuildFailed):
            return None
        return graph

    def _enqueue(self, context: tensorrt.IExecutionContext) -> None:
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise BuildFailed("the engine did not run", self.file.path, "see the runtime's message above")


def _pinned(torch: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Page-locked host tensors of the same shapes and types: the only ones that copy without waiting."""
    return {name: torch.empty_like(tensor, device="cpu", pin_memory=True) for name, tensor in tensors.items()}
