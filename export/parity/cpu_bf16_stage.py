"""The FP32 graph in BF16 on the processor, as a Triton server without a GPU may serve it.

It runs in a process of the server's own Python, which has OpenVINO, with the session that a worker of the
server opens. Whether it passes decides in which precision `deploy` serves; the bundle's verdict does not
depend on it.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import PIPE
from typing import IO, BinaryIO, cast

from bertmp.core.errors import MissingComponent
from bertmp.core.hardware import machine
from bertmp.environment.server_bf16 import bf16_runtime
from bertmp.export import cpu_session
from bertmp.export.consistency.check import Outputs
from bertmp.export.consistency.tolerance import unmeasured_tolerance
from bertmp.export.cpu_session.pipe import MAIN, receive, send
from bertmp.export.parity.self_check import check_graph
from bertmp.export.parity.stage import Feed, ParityInputs, Skipped, StageOutput, answer_all

CPU_BF16 = "cpu-bf16"
NOT_SERVED = "a CPU serves FP32"
"""What follows where the stage was not run or failed."""

TOLERANCE = unmeasured_tolerance("bf16")
"""By how much two answers to the same row may differ."""


@dataclass(frozen=True)
class CpuBf16Stage:
    """The FP32 graph in BF16.

    Attributes:
        graph: the ONNX file.
    """

    graph: Path
    name: str = CPU_BF16

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        """Answers all examples, in batches of bounded size."""
        try:
            runtime = bf16_runtime()
        except MissingComponent as error:
            return Skipped(f"{error.what}: {NOT_SERVED}")
        with _process(runtime.python, self.graph) as process:
            answered = answer_all(inputs, process.answer, advance)
            found = check_graph(inputs, process.answer, TOLERANCE)
        details: dict[str, object] = {
            "runs on": f"ONNX Runtime {process.version}, OpenVINO, CPU",
            "arithmetic": "products of BF16 numbers, added in FP32",
        }
        return replace(answered, details=details, consistency=found)


class ProcessFailed(RuntimeError):
    """The process ended, or the runtime in it failed."""


@dataclass(frozen=True)
class _Process:
    """The running process, and the version of its ONNX Runtime."""

    inward: BinaryIO
    outward: BinaryIO
    errors: IO[bytes]
    version: str = ""

    def answer(self, feed: Feed) -> Outputs:
        """The graph's outputs for one batch.

        Raises:
            ProcessFailed: it has none.
        """
        try:
            send(self.inward, feed)
        except BrokenPipeError as error:
            raise self._ended() from error
        outputs, facts = self.next()
        if "error" in facts:
            raise ProcessFailed(str(facts["error"]))
        return outputs

    def next(self) -> tuple[Outputs, dict[str, object]]:
        """The next message.

        Raises:
            ProcessFailed: it has ended.
        """
        try:
            message = receive(self.outward)
        except EOFError as error:
            raise self._ended() from error
        if message is None:
            raise self._ended()
        return message

    def _ended(self) -> ProcessFailed:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return ProcessFailed(f"OpenVINO's process ended{': ' if lines else ''}{lines[-1] if lines else ''}")


@contextmanager
def _process(python: Path, graph: Path) -> Iterator[_Process]:
    """The process, with the graph loaded; it ends with the context.

    Raises:
        ProcessFailed: the graph cannot be run in it.
    """
    package = Path(cpu_session.__file__).resolve().parent.parent
    command = [str(python), "-I", "-c", MAIN, str(package), str(graph), str(machine().cores)]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=errors) as child,
    ):
        try:
            process = _Process(cast(BinaryIO, child.stdin), cast(BinaryIO, child.stdout), errors)
            facts = process.next()[1]
            if "no_bf16" in facts:
                raise ProcessFailed(str(facts["no_bf16"]))
            yield replace(process, version=str(facts["onnxruntime"]))
        finally:
            child.kill()
