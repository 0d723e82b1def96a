"""`build-engine`: a bundle's FP16 graph, or any FP16 graph, to a TensorRT engine of proven precision.

The result is a folder of two files. `model.plan` is the engine; `network.json` lists every layer of the
parsed network and the proof. Both appear together or not at all. Where the proof fails nothing is built:
the folder then holds `network.json` alone, which says why, and an engine that stood there before, of
another graph or another plan, is gone with it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bertmp.errors import GateFailed, InputError
from bertmp.export.bundle import BUILD_ENGINE, CONFIG, CONVERT, ENGINE, FP16_GRAPH, NETWORK, PLAN, Bundle
from bertmp.export.engine.job import ENGINE_FILE, NETWORK_FILE, Job, Settings
from bertmp.export.engine.profiles import parse_profile
from bertmp.export.engine.supervisor import run_job
from bertmp.export.manifest import record
from bertmp.files import atomic_folder, read_json

ENGINE_FOLDER = "engine"
LONGEST = 512
"""Where default profiles end for a graph whose positions nothing tells."""

Watch = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class EngineResult:
    """A built engine.

    Attributes:
        folder: where the two files lie.
        engine, network: the two files.
        builder: `tensorrt` or `tensorrt-rtx`; only the former's engines load in Triton.
        builder_version: its version.
        compute_capability: the GPUs that it runs on.
        profiles: as `MIN:OPT:MAX`.
        proven: whether every node runs in its planned precision; always true of a result.
        layers: how many layers the parsed network has.
        counts: the proof's account, see `Proof.counts`.
        summary: layer type → precision → count.
        engine_bytes: the engine's size.
        seconds: wall time of the whole build.
    """

    folder: Path
    engine: Path
    network: Path
    builder: str
    builder_version: str
    compute_capability: Sequence[str]
    profiles: Sequence[str]
    proven: bool
    layers: int
    counts: Mapping[str, int]
    summary: Mapping[str, Mapping[str, int]]
    engine_bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        paths = {name: str(getattr(self, name)) for name in ("folder", "engine", "network")}
        return {**asdict(self), **paths}


def build_engine(
    target: Path,
    *,
    profiles: Sequence[str] = (),
    builder: str = "auto",
    timing_cache: Path | None = None,
    compute_capability: Sequence[str] = (),
    max_batch: int = 32,
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    out: Path | None = None,
    watch: Watch = lambda message: None,
) -> EngineResult:
    """Builds an engine in a child process, after proving the precision of the parsed network.

    Args:
        target: a bundle's folder, or an ONNX graph in FP16. The graph is held to the plan beside it,
            `GRAPHSTEM.precision-plan.json`, else to normalisation and softmax in FP32 and matrix products
            in FP16.
        profiles: `MIN:OPT:MAX` each, shapes written BATCHxLENGTH; empty for a profile a length bucket.
        builder: `auto`, `tensorrt` or `tensorrt-rtx`.
        timing_cache: file of kernel timings, read and written (TensorRT alone).
        compute_capability: GPUs to build for, e.g. `8.9` (TensorRT-RTX alone); empty for the portable engine.
        max_batch: the largest batch of the default profiles.
        workspace_mib: the most scratch memory that a layer may use, in MiB.
        optimization_level: the builder's own 0 to 5.
        out: folder for a bare graph's result; `GRAPHSTEM.engine` beside the graph without it.
        watch: gets the builder's messages as they come, see `supervisor.run_job`.

    Errors: InputError for bad options, a stale bundle or a graph that the parser refuses; GateFailed
    where the precision is not as planned; BuildFailed where the builder fails, crashes or is killed;
    MissingComponent where no builder is installed.
    """
    started = time.monotonic()
    source = _find_source(Path(target), out)
    settings = _settings(
        source,
        profiles,
        builder,
        timing_cache,
        compute_capability,
        max_batch,
        workspace_mib,
        optimization_level,
    )
    with atomic_folder(source.out) as folder:
        job = Job(str(source.graph), str(source.plan) if source.plan else None, str(folder), settings)
        found = run_job(job, watch)
    if not found["proven"]:
        where = source.out / NETWORK_FILE
        raise GateFailed(
            f"the precision is not proven: {found['failure']}", where, "mend the graph or its plan"
        )
    result = _result(source.out, found, time.monotonic() - started)
    if source.bundle is not None:
        _record(source.bundle, result, settings)
    return result


@dataclass(frozen=True)
class _Source:
    """What is built, and where to; a bare graph has no bundle, and its plan and positions may be unknown."""

    graph: Path
    plan: Path | None
    out: Path
    bundle: Bundle | None
    positions: int | None


def _find_source(target: Path, out: Path | None) -> _Source:
    if not target.exists():
        raise InputError("no such bundle or graph", target, "make a bundle with 'bertmp export'")
    if target.is_file():
        folder = Path(out) if out else target.with_name(f"{target.stem}.engine")
        if folder.exists() and not _is_ours(folder):
            raise InputError(
                "the folder holds something else than an engine", folder, "name another with --out"
            )
        plan = target.with_name(f"{target.stem}.{PLAN}")  # where 'bertmp convert' leaves it
        return _Source(target, plan if plan.is_file() else None, folder, None, _positions_beside(target))
    if out is not None:
        raise InputError("a bundle's engine goes into the bundle", f"--out {out}", "leave --out out")
    bundle = Bundle.open(target)
    bundle.manifest.stage(CONVERT, target, f"bertmp export CHECKPOINT --out {target}")
    return _Source(target / FP16_GRAPH, target / PLAN, target / ENGINE_FOLDER, bundle, bundle.max_positions)


def _is_ours(folder: Path) -> bool:
    """Whether a folder may be replaced: it is empty or holds what an earlier build left."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {ENGINE_FILE, NETWORK_FILE}


def _positions_beside(graph: Path) -> int | None:
    """The model's positions from a `config.json` beside a bare graph."""
    path = graph.with_name(CONFIG)
    config = read_json(path) if path.is_file() else {}
    positions = config.get("max_position_embeddings") if isinstance(config, dict) else None
    return positions if isinstance(positions, int) and positions > 0 else None


def _settings(
    source: _Source,
    profiles: Sequence[str],
    builder: str,
    timing_cache: Path | None,
    compute_capability: Sequence[str],
    max_batch: int,
    workspace_mib: int | None,
    optimization_level: int | None,
) -> Settings:
    for target in compute_capability:
        if not re.fullmatch(r"[0-9]{1,2}\.[0-9]", target):
            raise InputError(
                f"'{target}' is not a compute capability", "--compute-capability", "write it as 8.9"
            )
    if max_batch < 1:
        raise InputError(f"a largest batch of {max_batch}", "--max-batch", "give at least 1")
    if workspace_mib is not None and workspace_mib < 1:
        raise InputError(f"a workspace of {workspace_mib} MiB", "--workspace", "give at least 1")
    if optimization_level is not None and not 0 <= optimization_level <= 5:
        raise InputError(f"no optimisation level {optimization_level}", "--optimization-level", "give 0 to 5")
    if timing_cache is not None and Path(timing_cache).is_dir():
        raise InputError("the timing cache is a folder", timing_cache, "name a file")
    return Settings(
        builder=builder,
        profiles=[parse_profile(text, source.positions) for text in profiles],
        max_batch=max_batch,
        max_length=source.positions or LONGEST,
        compute_capability=list(dict.fromkeys(compute_capability)),
        timing_cache=str(timing_cache) if timing_cache else None,
        workspace_mib=workspace_mib,
        optimization_level=optimization_level,
    )


def _result(folder: Path, found: Mapping[str, Any], seconds: float) -> EngineResult:
    told = ("builder", "builder_version", "compute_capability", "profiles", "proven", "layers", "counts",
            "summary", "engine_bytes")  # fmt: skip
    return EngineResult(
        folder=folder,
        engine=folder / ENGINE_FILE,
        network=folder / NETWORK_FILE,
        seconds=round(seconds, 3),
        **{name: found[name] for name in told},
    )


def _record(bundle: Bundle, result: EngineResult, settings: Settings) -> None:
    """Enters the stage `build-engine` into the bundle's manifest."""
    manifest = bundle.manifest
    # A graph of more than 2 GiB keeps its weights in files beside it.
    weights = [name for name in manifest.stages[CONVERT].outputs if name.startswith(f"{FP16_GRAPH}.")]
    results = {key: value for key, value in result.to_json().items()
               if key not in ("folder", "engine", "network", "seconds")}  # fmt: skip
    entry = record(
        bundle.folder,
        inputs=[FP16_GRAPH, PLAN, *weights],
        outputs=[ENGINE, NETWORK],
        tools=[],
        settings={**asdict(settings), "profiles": [str(profile) for profile in settings.profiles]},
        results=results,
        seconds=result.seconds,
    )
    entry = replace(entry, tools={**entry.tools, result.builder: result.builder_version})
    manifest.with_stage(BUILD_ENGINE, entry).save(bundle.folder)
