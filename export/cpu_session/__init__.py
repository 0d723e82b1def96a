"""The FP32 graph as a session on a CPU, in FP32 or in BF16.

BF16 is OpenVINO's: it rounds weights and inputs of matrix products, and adds in FP32. Parity and the workers
of a server open their sessions here, so that what is checked is what answers. It runs inside Triton, too, and
imports nothing of this project.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .worker import at_low_priority

PROVIDER = "OpenVINOExecutionProvider"
_FEATURES = frozenset(("avx512_bf16", "amx_bf16"))
"""Of a processor that multiplies BF16 in hardware, as Linux names them."""


class NoBf16(Exception):
    """The graph cannot be run in BF16 here; the message says why."""


def require_bf16() -> str:
    """Checks this process's processor and ONNX Runtime.

    Returns:
        The version of ONNX Runtime.

    Raises:
        NoBf16: one of them has no BF16.
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            flags = next((line for line in stream if line.startswith("flags")), "")
    except OSError:
        flags = ""
    if _FEATURES.isdisjoint(flags.split()):
        raise NoBf16("the processor has no BF16 (AVX512-BF16 or AMX)")
    try:
        import onnxruntime
    except ImportError as error:
        raise NoBf16(f"ONNX Runtime cannot be imported: {error}") from error
    if PROVIDER not in onnxruntime.get_available_providers():
        raise NoBf16(f"ONNX Runtime {onnxruntime.__version__} has no OpenVINO")
    return str(onnxruntime.__version__)


def open_bf16(graph: str, threads: int) -> Any:
    """An ONNX Runtime session that computes in BF16.

    Args:
        graph: the ONNX file, in FP32.
        threads: of one run.

    Raises:
        NoBf16: this machine or its ONNX Runtime cannot, or OpenVINO does not take the graph.
    """
    import onnxruntime

    require_bf16()
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": "1",
        # Else the workers of a server all sit on the same core.
        "ENABLE_CPU_PINNING": "NO",
    }
    device = {"device_type": "CPU", "load_config": json.dumps({"CPU": settings})}
    try:
        session = onnxruntime.InferenceSession(
            graph, session_options(threads), providers=[(PROVIDER, device)]
        )
    except Exception as error:  # the runtime's own exceptions share no other base
        raise NoBf16(f"OpenVINO does not take the graph: {' '.join(str(error).split())[:300]}") from error
    if PROVIDER not in session.get_providers():  # it falls back by itself
        raise NoBf16("OpenVINO does not take the graph")
    return session


def open_session(
    graph: str,
    threads: int,
    precision: str,
    warn: Callable[[str], None],
    keep_memory: bool = True,
) -> tuple[Any, str]:
    """An ONNX Runtime session on the CPU, and the precision that it computes in.

    Args:
        graph: the ONNX file, in FP32.
        threads: of one run.
        precision: `bf16`, where this machine has it, or `fp32`.
        warn: told why it is FP32 although BF16 was asked for.
        keep_memory: whether the runtime keeps memory for the next run: it keeps as much as the largest run
            so far has taken.
    """
    if precision == "bf16":
        try:
            return open_bf16(graph, threads), "bf16"
        except NoBf16 as error:
            warn(f"{graph} is run in FP32 and not in BF16: {error}")

    def open_fp32() -> Any:
        import onnxruntime

        options = session_options(threads)
        options.enable_mem_pattern = options.enable_cpu_mem_arena = keep_memory
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    # Further threads would be of the lower priority for ever.
    return at_low_priority(open_fp32) if threads == 1 else open_fp32(), "fp32"


def session_options(threads: int) -> Any:
    """Options of a session with `threads` threads, which sleep while they are idle.

    With several workers on few cores, spinning threads take time from the others.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
