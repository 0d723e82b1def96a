"""`build-engine`: the FP16 or BF16 graph of a bundle, or alone, to a TensorRT engine of verified precision.

The result is a folder of two files: `model.plan` is the engine; `network.json` describes it, lists every
layer of the parsed network and holds the verification. Both are written together or not at all. Where the
verification fails nothing is built: the folder then holds `network.json` alone, which gives the reason, and
an engine of another graph or plan that was there before is removed. An engine that breaks the plan although
the network did not is kept as `model.rejected.plan`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertmp.core.errors import GateFailed, InputError
from bertmp.core.io import JsonSerializable, atomic_folder, read_json, sha256_file
from bertmp.core.options import keywords_of
from bertmp.core.progress import ProgressCallback
from bertmp.export.bundle import BUILD_ENGINE, CONFIG, CONVERT, ENGINE, NETWORK, PLAN, Bundle
from bertmp.export.engine.compatibility import ENGINE_FILE, NETWORK_FILE, REJECTED_FILE
from bertmp.export.engine.engine_options import LONGEST, EngineOptions
from bertmp.export.engine.supervisor import Job, run_job
from bertmp.export.precision.length_limit import longest_length

ENGINE_FOLDER = "engine"


@dataclass(frozen=True)
class EngineResult(JsonSerializable):
    """A built engine.

    Attributes:
        folder: where the two files lie.
        engine, network: the two files.
        builder: `tensorrt` or `tensorrt-rtx`; only the former's engines load in Triton.
        builder_version: its version.
        compute_capability: the GPUs that it runs on; `8.0+` stands for that one and all later ones.
        cuda, driver: the CUDA major and the oldest driver that it needs; empty where unknown.
        built_on: this machine's GPU; None where it has none.
        triton_releases: the Triton releases that load it, newest first.
        triton_source: the source of that list.
        triton_release: the release that it was built for.
        version_compatible: whether later versions of the runtime load it as well.
        weights: `full`, `refittable` or `stripped`.
        profiles: as `MIN:OPT:MAX`.
        memory: the estimate, see `preflight.MemoryEstimate`.
        warnings: what is allowed but may surprise.
        verified: whether every node runs in its planned precision; always true of a result.
        layers: how many layers the parsed network has.
        counts: how many layers of each kind, see `Verification.counts`.
        summary: layer type → precision → count.
        inspection: the built engine against the verification, see `worker.inspect_engine`.
        engine_bytes, engine_sha256: the engine's size in bytes and SHA-256.
        graph_sha256, plan_sha256: SHA-256 of the graph and its plan; None without a plan.
        seconds: wall time of the build.
    """

    folder: Path
    engine: Path
    network: Path
    builder: str
    builder_version: str
    compute_capability: Sequence[str]
    cuda: str
    driver: str
    built_on: str | None
    triton_releases: Sequence[str]
    triton_source: str
    triton_release: str | None
    version_compatible: bool
    weights: str
    profiles: Sequence[str]
    memory: Mapping[str, Any]
    warnings: Sequence[str]
    verified: bool
    layers: int
    counts: Mapping[str, int]
    summary: Mapping[str, Mapping[str, int]]
    inspection: Mapping[str, Any]
    engine_bytes: int
    engine_sha256: str
    graph_sha256: str = ""
    plan_sha256: str | None = None
    seconds: float = 0.0


@keywords_of(EngineOptions)
def build_engine(options: EngineOptions) -> EngineResult:
    """Builds an engine in a child process, after verifying the precision of the parsed network.

    The graph must match the plan beside it, `GRAPHSTEM.precision-plan.json`; without one, to normalisation
    and softmax in FP32 and matrix products in FP16.

    Raises:
        InputError: bad options, a stale bundle, a graph that the parser refuses, or a Triton release that
            would not load the engine.
        GateFailed: the precision is not as planned.
        BuildFailed: the builder fails, crashes or is killed.
        MissingComponent: no builder is installed.
    """
    started = time.monotonic()
    source = _find_source(options)
    options.chosen_profiles(source.positions)  # refused here, before a process is started
    plan = str(source.plan) if source.plan else None
    with atomic_folder(source.out) as folder:
        job = Job(str(source.graph), plan, str(folder), options, source.positions)
        found = run_job(job, BuildProgress(options.progress).see)
    if not found["verified"]:
        where = source.out / NETWORK_FILE
        todo = "fix the graph or its plan" if source.plan else "convert it first, with 'bertmp convert'"
        raise GateFailed(f"the precision is not verified: {found['failure']}", where, todo)
    paths = (source.out, source.out / ENGINE_FILE, source.out / NETWORK_FILE)
    recorded = {name: value for name, value in found.items() if name in EngineResult.__dataclass_fields__}
    recorded["graph_sha256"] = source.sha256(source.graph)
    recorded["plan_sha256"] = source.sha256(source.plan) if source.plan else None
    result = EngineResult(*paths, **recorded, seconds=round(time.monotonic() - started, 3))
    if bundle := source.bundle:
        results = result.to_json()
        for name in ("folder", "engine", "network", "seconds"):
            del results[name]
        bundle.record(
            BUILD_ENGINE,
            inputs=[source.graph.name, PLAN, *bundle.weights_beside(CONVERT, source.graph.name)],
            outputs=[ENGINE, NETWORK],
            tools={result.builder: result.builder_version},
            settings=options.to_json(EngineOptions),
            results=results,
            seconds=result.seconds,
        )
    return result


@dataclass(frozen=True)
class _Source:
    """What is built, and where to; a bare graph has no bundle, and its plan and positions may be unknown."""

    graph: Path
    plan: Path | None
    out: Path
    bundle: Bundle | None
    positions: int | None

    def sha256(self, file: Path) -> str:
        return self.bundle.sha256(file.name) if self.bundle else sha256_file(file)


def _find_source(options: EngineOptions) -> _Source:
    target, out = options.target, options.out
    if not target.exists():
        raise InputError("no such bundle or graph", target, "make a bundle with 'bertmp export'")
    if target.is_file():
        folder = Path(out) if out else target.with_name(f"{target.stem}.engine")
        files = {ENGINE_FILE, NETWORK_FILE, REJECTED_FILE}
        ours = folder.is_dir() and {path.name for path in folder.iterdir()} <= files
        if folder.exists() and not ours:
            what = "the folder holds something that is not an engine"
            raise InputError(what, folder, "name another with --out")
        plan = target.with_name(f"{target.stem}.{PLAN}")  # where 'bertmp convert' leaves it
        positions = _positions_beside(target) or _positions_of(options)
        return _Source(target, plan if plan.is_file() else None, folder, None, positions)
    if out is not None:
        raise InputError("a bundle's engine goes into the bundle", f"--out {out}", "leave --out out")
    bundle = Bundle.open(target)
    bundle.stage(CONVERT, f"bertmp export CHECKPOINT --out {target}")
    graph, plan = bundle.lowest_graph, target / PLAN
    return _Source(graph, plan, target / ENGINE_FOLDER, bundle, bundle.max_positions)


def _positions_beside(graph: Path) -> int | None:
    """The model's positions from a `config.json` beside a bare graph."""
    path = graph.with_name(CONFIG)
    config = read_json(path) if path.is_file() else {}
    positions = config.get("max_position_embeddings") if isinstance(config, dict) else None
    return positions if isinstance(positions, int) and positions > 0 else None


def _positions_of(options: EngineOptions) -> int | None:
    """The positions of a bare graph, where they are fewer than the profiles ask for; None otherwise."""
    asked = max((profile.max.length for profile in options.chosen_profiles(None)), default=LONGEST)
    options.progress("looking for the longest text that the graph takes")
    found = longest_length(options.target, asked)
    return found if found is not None and found < asked else None


@dataclass
class Phase:
    """A phase of the build that has begun and not ended.

    Attributes:
        name: the builder's own words.
        steps: how many steps it has.
        done: how many of them are complete.
    """

    name: str
    steps: int
    done: int = 0


@dataclass
class BuildProgress:
    """Turns the builder's messages into progress.

    Attributes:
        progress: called with the innermost phase and the per cent of the build that are done.
        phases: the phases under way, outermost first.
        fraction: the part of the build that is done, 0 to 1; it never falls.
    """

    progress: ProgressCallback
    phases: list[Phase] = field(default_factory=list)
    fraction: float = 0.0

    def see(self, message: Mapping[str, Any]) -> None:
        """Takes one message."""
        kind, name = message["kind"], message.get("name", "")
        if kind == "toolchain":
            self.progress(f"building with {name} {message['version']}")
        if kind not in ("phase", "step", "finish"):
            return
        phase = next((phase for phase in reversed(self.phases) if phase.name == name), None)
        if kind == "phase":
            self.phases.append(Phase(name, max(1, message["steps"])))
        elif kind == "step" and phase:
            phase.done = min(phase.steps, message["step"] + 1)
        elif phase:  # what stands inside it has ended with it
            del self.phases[self.phases.index(phase) :]
        # Each phase is a part of the one around it: of the step that it is at.
        fraction = 0.0 if self.phases or not phase else 1.0
        for outer in reversed(self.phases):
            fraction = min(1.0, (outer.done + fraction) / outer.steps)
        self.fraction = max(self.fraction, fraction)
        innermost = self.phases[-1].name if self.phases else "built"
        self.progress(innermost, int(100 * self.fraction), 100)
