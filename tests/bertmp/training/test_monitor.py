"""What the overflow watch decides, without a model."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertmp.training.stability.monitor import (
    Action,
    DivergenceMonitor,
    FaultSite,
    MonitorOptions,
    MonitorState,
    StepFacts,
)

FAULT = StepFacts(math.nan, finite=False, fault=FaultSite("bert.pooler", "output"))
TOO_HIGH = StepFacts(
    1.0, finite=False, fault=FaultSite("classifier", "gradient"), scale_too_high=True, scale_status="can fall"
)


def decisions(watch: DivergenceMonitor, *facts: StepFacts) -> list[Action]:
    return [watch.observe(each).action for each in facts]


class TestDeciding:
    def test_skips_then_goes_back_then_stops(self) -> None:
        watch = DivergenceMonitor(MonitorOptions(max_consecutive_skips=3, max_rollbacks=2))
        for _ in range(2):
            assert decisions(watch, FAULT, FAULT, FAULT) == [Action.SKIP, Action.SKIP, Action.ROLL_BACK]
            watch.record_rollback()
        assert watch.state.rate_factor == 0.25
        assert decisions(watch, FAULT, FAULT, FAULT) == [Action.SKIP, Action.SKIP, Action.STOP]

    def test_a_finite_step_ends_the_row(self) -> None:
        watch = DivergenceMonitor(MonitorOptions(max_consecutive_skips=2, max_rollbacks=0))
        assert decisions(watch, *[FAULT, StepFacts(1.0)] * 50) == [Action.SKIP, Action.USE] * 50

    def test_the_cause_names_module_and_kind(self) -> None:
        action = DivergenceMonitor(MonitorOptions(max_consecutive_skips=1, max_rollbacks=0)).observe(FAULT)
        assert action.cause == "1 steps in a row were not finite: the output of bert.pooler is not finite"

    def test_a_scale_that_is_too_high_is_expected_and_no_fault(self) -> None:
        watch = DivergenceMonitor(MonitorOptions(max_consecutive_skips=2))
        actions = [watch.observe(TOO_HIGH) for _ in range(16)]
        assert {(action.action, action.expected) for action in actions} == {(Action.SKIP, True)}
        assert watch.state.calm

    def test_a_scale_that_has_collapsed_is_a_fault_at_once(self) -> None:
        collapsed = StepFacts(
            1.0, False, FaultSite("classifier", "gradient"), scale_too_high=True, scale_status="at minimum"
        )
        action = DivergenceMonitor(MonitorOptions()).observe(collapsed)
        assert action.action is Action.ROLL_BACK
        assert (
            action.cause == "the loss scale has fallen to its minimum: a gradient at classifier is not finite"
        )

    def test_a_fixed_scale_that_is_too_high_is_a_fault(self) -> None:
        fixed = StepFacts(
            1.0, False, FaultSite("classifier", "gradient"), scale_too_high=True, scale_status="fixed"
        )
        watch = DivergenceMonitor(MonitorOptions(max_consecutive_skips=2, max_rollbacks=0))
        assert decisions(watch, fixed, fixed) == [Action.SKIP, Action.STOP]

    def test_broken_weights_are_not_skipped(self) -> None:
        broken = StepFacts(math.nan, False, FaultSite("bert.pooler.dense", "parameter"))
        assert DivergenceMonitor(MonitorOptions()).observe(broken).action is Action.ROLL_BACK
        assert DivergenceMonitor(MonitorOptions(max_rollbacks=0)).observe(broken).action is Action.STOP

    @pytest.mark.parametrize("usual", [1e-3, 1.0, 1e4])
    def test_a_loss_that_explodes_while_finite(self, usual: float) -> None:
        watch = DivergenceMonitor(MonitorOptions(loss_spike_factor=4, loss_spike_patience=5))
        calm = [StepFacts(usual * (1 + 0.3 * math.sin(step))) for step in range(40)]
        assert set(decisions(watch, *calm)) == {Action.USE}
        high = [StepFacts(usual * 10)] * 4
        assert decisions(watch, *high, StepFacts(usual), *high) == [Action.USE] * 9  # not in a row
        assert decisions(watch, StepFacts(usual * 1e6)) == [Action.ROLL_BACK]

    def test_an_early_or_vanished_loss_may_jump(self) -> None:
        watch = DivergenceMonitor(MonitorOptions(loss_spike_factor=4, loss_spike_patience=2))
        assert set(decisions(watch, *[StepFacts(50.0 if step % 2 else 1.0) for step in range(12)])) == {
            Action.USE
        }
        watch = DivergenceMonitor(MonitorOptions(loss_spike_factor=4, loss_spike_patience=2))
        falling = [StepFacts(2.0 * 0.97**step) for step in range(400)]
        assert set(decisions(watch, *falling, *[StepFacts(0.05)] * 9)) == {Action.USE}

    def test_zero_switches_it_off(self) -> None:
        watch = DivergenceMonitor(MonitorOptions(loss_spike_factor=0, loss_spike_patience=1))
        assert set(decisions(watch, *[StepFacts(10.0**step) for step in range(40)])) == {Action.USE}

    @given(
        st.lists(
            st.sampled_from([FAULT, TOO_HIGH, StepFacts(1.0), StepFacts(9.0), StepFacts(1e9)]), max_size=60
        ),
        st.integers(0, 60),
    )
    @settings(max_examples=60, deadline=None)
    def test_a_watch_restored_from_json_decides_the_same(self, facts: list[StepFacts], cut: int) -> None:
        rules = MonitorOptions(max_consecutive_skips=3, max_rollbacks=9, loss_spike_patience=3)
        whole = DivergenceMonitor(rules)
        expected = decisions(whole, *facts)
        first = DivergenceMonitor(rules)
        got = decisions(first, *facts[:cut])
        second = DivergenceMonitor(rules, MonitorState.from_json(json.loads(json.dumps(asdict(first.state)))))
        assert got + decisions(second, *facts[cut:]) == expected
        assert second.state == whole.state
