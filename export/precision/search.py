"""Searching for few FP32 nodes that keep the measured error within a budget.

The rules' plan comes first. Where its error exceeds the budget, the nodes that cause most of it are
promoted to FP32, worst first; then nodes that are FP32 for a heuristic reason only are demoted as far as
the budget allows. Normalisation and softmax stay FP32 unless the user allows otherwise, and so does what
lies within the headroom of overflow: other inputs may be larger than these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bertmp.export.graph.nodes import EXACT_OPS, MATMUL_OPS
from bertmp.export.precision.cast_placement import Side
from bertmp.export.precision.fp16_emulation import Evaluator, MeasuredError
from bertmp.export.precision.plan import PrecisionPlan, Reason, SearchRecord, SearchStep
from bertmp.export.precision.planner import Planner
from bertmp.export.precision.ranges import Progress
from bertmp.export.precision.switched import GroupErrors

EVALUATIONS = 160
"""The most measurements of one search: of plans, and of blocks and nodes alone."""

_FOR_RANKING = 110
"""How many of them may go into comparing blocks and nodes; a node that is left has its share of its block."""

_FOR_CHOICE = 128
"""About how many tokens decide between plans of equally few casts."""

_FOR_RANKING_TOKENS = 64
"""About how many tokens the errors of blocks and nodes alone are measured on."""

_NEAR = 1.05
"""Where a budget cannot be met, what comes within this factor of the least error is as good."""


def measured(planner: Planner, evaluator: Evaluator) -> PrecisionPlan:
    """Of the plans with fewest casts the one with the lower error, and that error as its `search`.

    The mean over the shorter examples decides: the maximum over a few dozen is that of one, and says little
    about others.
    """
    run = _Search(planner, evaluator)
    starts = run.start_plans()
    running = [evaluator.running(plan) for _, plan, _ in starts]
    best = 0
    if len(starts) > 1:
        found = [each.measure(evaluator.calibration.shortest(_FOR_CHOICE)) for each in running]
        best = min(range(len(starts)), key=lambda number: (found[number].flips, found[number].mean_error))
    run.known[starts[best][1].digest()] = running[best].measure()
    return run.settled(run.measured(*starts[best]), None, None)


def search(
    planner: Planner,
    evaluator: Evaluator,
    max_error: float,
    blocks: Mapping[str, str],
    progress: Progress = lambda done, total: None,
) -> PrecisionPlan:
    """A plan with few FP32 nodes that changes no label and no output value by more than `max_error`.

    Where there is none, one that comes nearest, with the node that limits it in `search.bound_by`.

    Args:
        max_error: the largest absolute change of an output value on the evaluator's examples.
        blocks: node name → block.
        progress: called with the number of plans measured, and the most that will be.

    Raises:
        InputError: the examples do not fit the graph's inputs.
    """
    run = _Search(planner, evaluator, progress)
    starts = [run.measured(*start) for start in run.start_plans()]
    limit, bound = _Limit(max_error), None
    meets = [point for point in starts if limit.met(point.found)]
    if meets:
        # Both need the same casts; a budget asks for the fewer FP32 nodes.
        at = min(meets, key=lambda point: len(point.plan.kept_fp32()))
    else:
        start = min(starts, key=lambda point: (point.found.flips, point.found.max_error))
        at, limit, bound = _promote(run, start, limit, blocks)
    at = _drop(run, at, limit)
    progress(EVALUATIONS, EVALUATIONS)
    return run.settled(at, max_error, bound)


@dataclass(frozen=True)
class _Limit:
    """The error that a plan may have."""

    max_error: float
    flips: int = 0

    def met(self, found: MeasuredError) -> bool:
        return found.finite and found.flips <= self.flips and found.max_error <= self.max_error


@dataclass(frozen=True)
class _Point:
    """A plan with the arguments that the planner made it from, and its error."""

    plan: PrecisionPlan
    found: MeasuredError
    prefer: Side
    promoted: Mapping[str, Reason] = field(default_factory=dict)
    demoted: frozenset[str] = frozenset()


@dataclass
class _Search:
    """Measures plans and records the curve of error against FP32 nodes.

    Attributes:
        known: digest of a plan → its error.
        spent: measurements done, those of blocks and nodes alone included.
    """

    planner: Planner
    evaluator: Evaluator
    progress: Progress = lambda done, total: None
    steps: list[SearchStep] = field(default_factory=list)
    known: dict[str, MeasuredError] = field(default_factory=dict)
    spent: int = 0

    def start_plans(self) -> list[tuple[Side, PrecisionPlan, str]]:
        """The rules' plans: of equally few casts the one with most FP32 nodes and the one with fewest."""
        most, fewest = self.planner.plan(), self.planner.plan(prefer="low")
        found: list[tuple[Side, PrecisionPlan, str]] = [
            ("fp32", most, "the rules, and FP32 wherever it costs no cast"),
            ("low", fewest, "the rules alone"),
        ]
        return found[:1] if fewest.digest() == most.digest() else found

    def point(
        self, prefer: Side, promoted: Mapping[str, Reason], demoted: Collection[str], changed: str
    ) -> _Point:
        """Makes and measures a plan and records the step."""
        plan = self.planner.plan(promoted, demoted, prefer=prefer)
        return self.measured(prefer, plan, changed, promoted, demoted)

    def measured(
        self,
        prefer: Side,
        plan: PrecisionPlan,
        changed: str,
        promoted: Mapping[str, Reason] | None = None,
        demoted: Collection[str] = (),
    ) -> _Point:
        """Measures a plan and records the step."""
        found = self._measure(plan)
        self.steps.append(SearchStep(len(plan.kept_fp32()), found.max_error, found.flips, changed))
        return _Point(plan, found, prefer, promoted or {}, frozenset(demoted))

    def count(self) -> None:
        """Counts a measurement."""
        self.progress(min(self.spent, EVALUATIONS), EVALUATIONS)
        self.spent += 1

    def settled(self, at: _Point, max_error: float | None, bound: str | None) -> PrecisionPlan:
        texts = self.evaluator.calibration.texts
        record = SearchRecord(max_error, at.found.max_error, at.found.flips, texts, tuple(self.steps), bound)
        return replace(at.plan, search=record)

    def _measure(self, plan: PrecisionPlan) -> MeasuredError:
        digest = plan.digest()
        if digest not in self.known:
            self.count()
            self.known[digest] = self.evaluator.measure(plan)
        return self.known[digest]


def _promote(
    run: _Search, start: _Point, limit: _Limit, blocks: Mapping[str, str]
) -> tuple[_Point, _Limit, str | None]:
    """Promotes the worst nodes, as few as meet the limit.

    Where the limit cannot be met: as few as come near the least error, and the node that limits it.
    """
    errors = _errors_alone(run, start.plan, blocks)
    fixed = _never_promoted(run.planner)
    ranking = [name for name in errors if name not in fixed]

    def promoted(number: int) -> _Point:
        reasons = {
            name: Reason(
                "search",
                f"in {start.plan.target.upper()} it changes an output by {errors[name]:.2g} by itself, and "
                f"{limit.max_error:g} is all that is allowed",
                {"error": errors[name], "max_error": limit.max_error},
            )
            for name in ranking[:number]
        }
        return run.point(start.prefer, reasons, (), f"promoted {_listed(ranking[:number])}")

    most, bound, reachable = promoted(len(ranking)), None, limit
    if not limit.met(most.found):
        reachable = _Limit(most.found.max_error * _NEAR, most.found.flips)
        bound = next((name for name in errors if name in fixed), ranking[0] if ranking else None)
    known = {len(ranking): most, 0: start}
    return _fewest(len(ranking), promoted, reachable, known), reachable, bound


def _errors_alone(run: _Search, plan: PrecisionPlan, blocks: Mapping[str, str]) -> dict[str, float]:
    """Low-precision nodes and each one's own error, worst first; nodes that round nothing are left out.

    Blocks are measured first, then the nodes of the worst blocks, on the shortest examples; a node that is
    not measured gets an equal share of its block's error.
    """
    members: dict[str, list[str]] = {}
    for node in plan.nodes:
        rounds = node.op not in EXACT_OPS or node.name in run.planner.heavy
        if node.precision == plan.target and rounds and node.op != "Constant":
            members.setdefault(blocks[node.name], []).append(node.name)
    names = [name for group in members.values() for name in group]
    number = {name: at for at, name in enumerate(names)}
    measured = GroupErrors(run.evaluator, plan, [[name] for name in names], _FOR_RANKING_TOKENS)

    def alone(low: Sequence[str]) -> float:
        run.count()
        return measured.measure({number[name] for name in low})

    worst = sorted(((alone(group), block) for block, group in members.items()), reverse=True)
    errors: dict[str, float] = {}
    for error, block in worst:
        group = members[block]
        if run.spent + len(group) <= _FOR_RANKING:
            errors.update({name: alone([name]) for name in group})
        else:
            errors.update(dict.fromkeys(group, error / len(group)))
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def _never_promoted(planner: Planner) -> frozenset[str]:
    """Readers of the big tables, which would fill twice the memory, and nodes that the user allows low."""
    products = {node.name for node in planner.nodes if node.op_type in MATMUL_OPS}
    return (planner.heavy - products) | planner.allowed


def _fewest(most: int, point: Callable[[int], _Point], limit: _Limit, known: dict[int, _Point]) -> _Point:
    """The point with the fewest promoted nodes that meets the limit: doubling, then halving."""
    below, above = 0, min(1, most)
    while above < most:
        known[above] = point(above)
        if limit.met(known[above].found):
            break
        below, above = above, min(2 * above, most)
    while above - below > 1:
        middle = (below + above) // 2
        known[middle] = point(middle)
        below, above = (below, middle) if limit.met(known[middle].found) else (middle, above)
    return known[above]


def _drop(run: _Search, at: _Point, limit: _Limit) -> _Point:
    """Demotes the nodes that are FP32 for a heuristic reason and that the limit does not need there."""
    kept = [node.name for node in at.plan.kept_fp32() if run.planner.can_demote(node.name)]
    judged = [name for name in kept if name in run.planner.verdicts or name in at.promoted]
    # The promoted nodes are ranked by error: those with the least are tried first.
    order = [*(name for name in judged if name not in at.promoted), *reversed(list(at.promoted))]
    return _drop_each(run, at, [name for name in order if name in judged], limit)


def _drop_each(run: _Search, at: _Point, names: Sequence[str], limit: _Limit) -> _Point:
    """Tries to demote all of `names` at once; where that exceeds the limit, each half in turn."""
    if not names or run.spent >= EVALUATIONS:
        return at
    promoted = {name: reason for name, reason in at.promoted.items() if name not in names}
    demoted = at.demoted | {name for name in names if name in run.planner.verdicts}
    tried = run.point(at.prefer, promoted, demoted, f"dropped {_listed(names)}")
    if limit.met(tried.found):
        return tried
    if len(names) == 1:
        return at
    half = len(names) // 2
    return _drop_each(run, _drop_each(run, at, names[:half], limit), names[half:], limit)


def _listed(names: Sequence[str]) -> str:
    """How many names there are, and the first few."""
    if not names:
        return "nothing"
    shown = ", ".join(names[:3])
    return f"{len(names)} node{'s'[: len(names) != 1]}: {shown}{', …' if len(names) > 3 else ''}"
