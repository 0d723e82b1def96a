"""Whether a Triton server on this machine can run a graph in BF16 on its processor."""

from __future__ import annotations

from bertmp.core.errors import MissingComponent
from bertmp.core.hardware import Machine, machine
from bertmp.environment.triton_install import TritonRuntime, find_runtime


def bf16_runtime(here: Machine | None = None) -> TritonRuntime:
    """The Triton server that can.

    Args:
        here: this machine; looked up where left out.

    Raises:
        MissingComponent: the processor has no BF16, or there is no server with OpenVINO.
    """
    if not (here or machine()).bf16_cpu:
        raise MissingComponent("the processor has no BF16 (AVX512-BF16 or AMX)", "", "serve FP32")
    runtime = find_runtime()
    if not runtime.openvino:
        if runtime.kind == "system":
            what = "the Triton on the PATH has a backend of its own for graphs"
            raise MissingComponent(what, runtime.executable, "serve FP32")
        what = f"the Triton environment's Python {runtime.python_version} has no OpenVINO"
        raise MissingComponent(what, runtime.python, "name Python 3.11 or later in BERTMP_TRITON_PYTHON")
    return runtime


def why_no_bf16(here: Machine | None = None) -> str:
    """Why it cannot, in words; empty where it can."""
    try:
        bf16_runtime(here)
    except MissingComponent as error:
        return error.what
    return ""
