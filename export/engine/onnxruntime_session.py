"""`build-engine --onnxruntime`: the same bundle for hosts without TensorRT, as an ONNX Runtime session.

The first of the TensorRT, CUDA and CPU providers that ONNX Runtime has here does the work. On a GPU it gets
the bundle's FP16 or BF16 graph; on a processor the FP32 one, since ONNX Runtime has no 16-bit kernels for
x86 and would only cast to and fro. The graph is saved as ONNX Runtime's optimiser leaves it, so that a host
that opens it need not optimise again; what fits this very processor alone is left out, and the file may move.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bertmp.core.errors import BuildFailed, InputError, MissingComponent
from bertmp.core.io import JsonSerializable, atomic_folder, read_json, write_json
from bertmp.export.bundle import CONVERT, EXPORT, FP32_GRAPH, Bundle
from bertmp.export.graph import ort_sessions

STAGE = "build-onnxruntime"
FOLDER, GRAPH_FILE, SESSION_FILE = "onnxruntime", "model.onnx", "session.json"
PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
"""In the order in which they are preferred."""


@dataclass(frozen=True)
class SessionResult(JsonSerializable):
    """A prepared session.

    Attributes:
        folder, graph, session: the folder, the optimised graph and the session's settings in it.
        source: the bundle's graph that it was made from.
        provider: what runs it here.
        available: the providers that the session got, in order.
        version: ONNX Runtime's version.
        nodes, nodes_before: of the optimised graph and of its source.
        difference: the largest difference of an output between the two, on a small batch.
        graph_bytes: the optimised graph's size, weights included.
        seconds: wall time.
    """

    folder: Path
    graph: Path
    session: Path
    source: str
    provider: str
    available: Sequence[str]
    version: str
    nodes: int
    nodes_before: int
    difference: float
    graph_bytes: int
    seconds: float


def build_session(bundle_folder: Path, providers: Sequence[str] = PROVIDERS) -> SessionResult:
    """Writes `BUNDLE/onnxruntime/`: the optimised graph and the settings to open it with.

    Args:
        bundle_folder: a bundle.
        providers: those that may be used, in the order of preference.

    Raises:
        InputError: a stale bundle or anything else than one.
        MissingComponent: ONNX Runtime is not installed.
        BuildFailed: it does not take the graph.
    """
    started = time.monotonic()
    if Path(bundle_folder).is_file():
        raise InputError("--onnxruntime takes a bundle", bundle_folder, "make one with 'bertmp export'")
    bundle = Bundle.open(Path(bundle_folder))
    ort = ort_sessions.onnxruntime_module()
    bundle.stage(EXPORT, f"bertmp export CHECKPOINT --out {bundle.folder}")
    compiled = [name for name in providers if name in ort.get_available_providers()]
    # A provider that was compiled in may lack its libraries or its GPU: a session then leaves it out.
    usable = _session(bundle.folder / FP32_GRAPH, compiled).get_providers() if compiled else []
    provider = next((name for name in compiled if name in usable), None)
    if provider is None:
        raise MissingComponent("no provider of ONNX Runtime", ", ".join(providers), "see 'bertmp doctor'")
    stage = EXPORT if provider == PROVIDERS[-1] else CONVERT
    bundle.stage(stage, f"bertmp export CHECKPOINT --out {bundle.folder}")
    source = bundle.folder / FP32_GRAPH if stage == EXPORT else bundle.lowest_graph
    file, place = source.name, bundle.folder / FOLDER
    # The provider and those behind it, which take the nodes that it does not.
    chain = [name for name in PROVIDERS[PROVIDERS.index(provider) :] if name in usable]
    with atomic_folder(place) as folder:
        graph = folder / GRAPH_FILE
        # TensorRT's provider takes over parts of a graph, which cannot be saved: the rest is optimised.
        _session(source, [name for name in chain if name != PROVIDERS[0]], optimized=graph)
        opened = _session(graph, chain)
        difference = _difference(_session(source, chain), opened)
        used = list(opened.get_providers())
        options = {"graph": GRAPH_FILE, "providers": used, "optimisation": "none: it is done"}
        write_json(folder / SESSION_FILE, {**options, "source": file, "onnxruntime": ort.__version__})
        sizes = {f"{FOLDER}/{path.name}": path.stat().st_size for path in sorted(folder.iterdir())}
    results: dict[str, Any] = {
        "source": file,
        "provider": used[0],
        "available": used,
        "version": str(ort.__version__),
        "nodes": _count_nodes(place / GRAPH_FILE),
        "nodes_before": _count_nodes(source),
        "difference": difference,
        "graph_bytes": sum(size for name, size in sizes.items() if not name.endswith(SESSION_FILE)),
    }
    seconds = round(time.monotonic() - started, 3)
    bundle.record(
        STAGE,
        inputs=[file, *bundle.weights_beside(stage, file)],
        outputs=list(sizes),
        tools={"onnxruntime": results["version"]},
        settings={"providers": used},
        results=results,
        seconds=seconds,
    )
    return SessionResult(place, place / GRAPH_FILE, place / SESSION_FILE, **results, seconds=seconds)


def open_session(bundle_folder: Path) -> Any:
    """The bundle's prepared `InferenceSession`, with the provider it was prepared for.

    Raises:
        InputError: it was not prepared or is stale.
    """
    folder = Path(bundle_folder)
    Bundle.open(folder).stage(STAGE, f"bertmp build-engine {folder} --onnxruntime")
    settings = read_json(folder / FOLDER / SESSION_FILE)
    return _session(folder / FOLDER / settings["graph"], settings["providers"])


def _session(graph: Path, providers: Sequence[str], optimized: Path | None = None) -> Any:
    """A session that runs the graph as it is; with `optimized`, one that writes the optimised graph there."""
    level: Literal["disable_all", "extended"] = "disable_all" if optimized is None else "extended"
    try:
        return ort_sessions.open_session(graph, providers=providers, optimization=level, optimized=optimized)
    except InputError as error:
        raise BuildFailed("ONNX Runtime does not load the graph", graph, error.todo) from error


def _count_nodes(graph: Path) -> int:
    import onnx

    return len(onnx.load(graph, load_external_data=False).graph.node)


def _difference(old: Any, new: Any) -> float:
    """The largest absolute difference of any output between two sessions, on a batch of random tokens."""
    names = [value.name for value in old.get_inputs()]
    ids = np.random.default_rng(0).integers(0, 10, (2, 8))  # small, so that every vocabulary has them
    values = {"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    feed = {name: values.get(name, ids).astype(np.int64) for name in names}
    pairs = zip(old.run(None, feed), new.run(None, feed), strict=True)
    return max(float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) for a, b in pairs)
