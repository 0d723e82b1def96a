"""What the overflow watch does about faults that are injected into real runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bertmp.core.errors import TrainingStopped
from bertmp.data.tokenizer import Encoded
from bertmp.model.config import BertConfig
from bertmp.model.heads import LossOptions
from bertmp.training.amp import LossScaleConfig, PrecisionPolicy
from bertmp.training.checkpoints import CheckpointManager
from bertmp.training.distributed import DistributedContext
from bertmp.training.distributed.sharding import Objective
from bertmp.training.loop import Trainer
from bertmp.training.metrics import read_metrics
from bertmp.training.tasks.task import Encodings
from bertmp.training.train_options import TrainOptions
from tests.models import classifier


class Said:
    """A progress callback that keeps the log lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, message: str, completed: int | None = None, total: int | None = None, /) -> None:
        if completed is None:
            self.lines.append(message)


def toy(
    out: Path, precision: str = "fp32", scaling: LossScaleConfig | None = None, **options: Any
) -> Trainer:
    """A run of a random classifier over random tokens."""
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    ).with_labels(("a", "b", "c"))
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(64):
        length = int(rng.integers(3, 12))
        rows.append(Encoded(rng.integers(1, 50, length).tolist(), [0] * length, False))
    data = Encodings(rows, {"labels": np.arange(64) % 3})
    fixed = {"steps": 20, "batch_size": 8, "learning_rate": 1e-3, "log_every": 1, "progress": Said()}
    options = {**fixed, **options}
    settings = TrainOptions("classification", Path("data"), Path("model"), out, **options)
    policy = PrecisionPolicy.resolve(precision, settings.loss_scale, "cpu", scaling)
    objective = Objective(classifier(config), LossOptions())
    return Trainer(objective, data, None, settings, policy, DistributedContext.single(), {})


def part(trainer: Trainer, name: str) -> nn.Module:
    return trainer.objective.head.get_submodule(name)


def events(trainer: Trainer) -> list[dict[str, Any]]:
    return [line for line in read_metrics(trainer.settings.out / "metrics.jsonl") if "event" in line]


def infinite(trainer: Trainer, module: str, when: Callable[[], bool]) -> None:
    """Makes a module's output infinite in one place, as long as `when` holds."""

    def hook(layer: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        return output.index_fill(0, torch.tensor([0]), math.inf) if when() and layer.training else None

    part(trainer, module).register_forward_hook(hook)


def not_a_number(trainer: Trainer, parameter: str, when: Callable[[], bool]) -> None:
    """Makes a parameter's gradient NaN, as long as `when` holds."""
    weight = trainer.objective.head.get_parameter(parameter)
    weight.register_hook(lambda gradient: gradient * math.nan if when() else None)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "module", ["bert.encoder.layer.1.intermediate.dense", "bert.embeddings.LayerNorm", "classifier"]
)
def test_an_infinite_activation_is_traced_to_its_module(precision: str, module: str, tmp_path: Path) -> None:
    trainer = toy(tmp_path, precision, LossScaleConfig(init_loss_scale=64), steps=8)
    infinite(trainer, module, lambda: trainer.position.step == 4)
    trainer.train()
    (event,) = events(trainer)
    assert event["step"] == 5
    assert (event["event"], event["module"], event["kind"]) == ("non-finite", module, "output")
    assert (event["expected"], event["action"]) == (False, "skip")
    assert event["loss_scale"] == (64 if precision == "fp16" else 1)
    assert trainer.position.skipped == 1
    assert trainer.scaler.value == (32 if precision == "fp16" else 1)
    assert any(f"the output of {module} is not finite" in line for line in trainer.progress.lines)


@pytest.mark.parametrize(
    "parameter",
    ["bert.encoder.layer.0.attention.self.query.weight", "bert.embeddings.word_embeddings.weight"],
)
def test_a_nan_gradient_is_traced_to_its_module(parameter: str, tmp_path: Path) -> None:
    trainer = toy(tmp_path, gradient_accumulation_steps=2)
    not_a_number(trainer, parameter, lambda: trainer.position.step in (3, 9))
    trainer.train()
    assert [(event["step"], event["module"], event["kind"]) for event in events(trainer)] == [
        (4, parameter.removesuffix(".weight"), "gradient"),
        (10, parameter.removesuffix(".weight"), "gradient"),
    ]
    assert all(bool(weight.isfinite().all()) for weight in trainer.objective.parameters())


def test_a_skipped_step_changes_nothing(tmp_path: Path) -> None:
    trainer = toy(tmp_path, steps=1)
    before = [weight.clone() for weight in trainer.objective.parameters()]
    not_a_number(trainer, "classifier.bias", lambda: trainer.position.step == 0)
    with pytest.raises(TrainingStopped, match="every step was skipped"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.objective.parameters(), strict=True))
    assert not trainer.optimizer.state


def test_healthy_steps_carry_no_hooks_and_a_replay_leaves_none(tmp_path: Path) -> None:
    trainer = toy(tmp_path)
    seen: list[int] = []

    def count(layer: nn.Module, inputs: Any) -> None:
        hooks = [len(module._forward_hooks) for module in trainer.objective.modules()]
        hooks += [len(module._backward_hooks) for module in trainer.objective.modules()]
        seen.append(sum(hooks))

    part(trainer, "bert.encoder").register_forward_pre_hook(count)
    not_a_number(trainer, "classifier.bias", lambda: trainer.position.step == 2)
    trainer.train()
    assert len(seen) == 21
    assert seen[3] > 0  # the replay
    assert [count for number, count in enumerate(seen) if number != 3] == [0] * 20


def test_a_run_with_a_skipped_step_goes_on_as_if_nothing_were_watched(tmp_path: Path) -> None:
    """The replay draws no random number that a later step would have drawn."""
    finals = []
    for name in ("one", "two"):
        trainer = toy(tmp_path / name, max_consecutive_skips=5)
        not_a_number(trainer, "classifier.bias", lambda trainer=trainer: trainer.position.step == 2)
        trainer.train()
        finals.append([weight.clone() for weight in trainer.objective.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))


class TestFp16:
    def test_a_scale_that_is_too_high_finds_its_level(self, tmp_path: Path) -> None:
        trainer = toy(tmp_path, "fp16", LossScaleConfig(init_loss_scale=2.0**26), max_consecutive_skips=2)
        trainer.train()
        found = events(trainer)
        assert 3 < len(found) < 12
        assert all(event["expected"] and event["kind"] == "gradient" for event in found)
        assert found[0]["cause"] == "the loss scale is too high"
        assert [event["loss_scale"] for event in found] == [2.0 ** (26 - n) for n in range(len(found))]
        assert trainer.position.skipped == len(found)

    def test_a_fault_is_not_mistaken_for_it(self, tmp_path: Path) -> None:
        trainer = toy(
            tmp_path, "fp16", LossScaleConfig(init_loss_scale=64), max_consecutive_skips=3, max_rollbacks=0
        )
        infinite(trainer, "bert.pooler", lambda: trainer.position.step >= 2)
        with pytest.raises(TrainingStopped, match=r"3 steps in a row .* the output of bert.pooler"):
            trainer.train()

    def test_a_collapsing_scale_stops_the_run(self, tmp_path: Path) -> None:
        trainer = toy(
            tmp_path,
            "fp16",
            LossScaleConfig(init_loss_scale=2.0**26, min_loss_scale=2.0**23),
            max_rollbacks=0,
        )
        with pytest.raises(TrainingStopped, match="the loss scale has fallen to its minimum"):
            trainer.train()
        assert [event["loss_scale"] for event in events(trainer)] == [2.0**n for n in (26, 25, 24, 23)]

    def test_the_scale_grows_backs_off_and_keeps_to_its_minimum(self, tmp_path: Path) -> None:
        scaling = LossScaleConfig(
            init_loss_scale=16, loss_scale_growth_interval=3, loss_scale_backoff=0.25, min_loss_scale=8
        )
        trainer = toy(tmp_path, "fp16", scaling, steps=12)
        infinite(trainer, "classifier", lambda: trainer.position.step in (4, 5))
        trainer.train()
        lines = read_metrics(tmp_path / "metrics.jsonl")
        scales = [line["loss_scale"] for line in lines if "loss" in line]
        assert scales == [16, 16, 16, 32, 32, 8, 8, 8, 8, 16, 16, 16]


class TestGoingBack:
    def test_a_fault_that_a_lower_rate_heals(self, tmp_path: Path) -> None:
        trainer = toy(tmp_path, save_every=4, max_consecutive_skips=3)
        infinite(
            trainer,
            "bert.encoder.layer.0.output",
            lambda: trainer.position.step >= 10 and trainer.monitor.state.rate_factor == 1,
        )
        trainer.train()
        *faults, rollback = events(trainer)
        assert [event["action"] for event in faults] == ["skip", "skip", "go back"]
        assert (rollback["event"], rollback["step"], rollback["to_step"]) == ("rollback", 13, 8)
        assert rollback["rate_factor"] == 0.5
        logged = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
        assert [line["step"] for line in logged] == [*range(1, 13), *range(9, 21)]
        before, after = logged[8], logged[12]
        assert after["learning_rate"] == pytest.approx(before["learning_rate"] / 2)
        assert after["loss"] == before["loss"]  # the same weights, batch and dropout
        assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == [
            "step-00000016",
            "step-00000020",
        ]

    def test_without_saved_states_it_goes_back_to_the_start(self, tmp_path: Path) -> None:
        trainer = toy(tmp_path, max_consecutive_skips=1)
        not_a_number(
            trainer,
            "classifier.bias",
            lambda: trainer.position.step == 13 and trainer.monitor.state.rollbacks == 0,
        )
        trainer.train()
        assert events(trainer)[-1]["to_step"] == 0
        assert trainer.position.step == 20
        assert not (tmp_path / "last-good").exists()

    @pytest.mark.parametrize(
        ("steps", "options", "states", "own"),
        [
            (1200, {}, [], [0, 500, 1000]),
            (4000, {}, [], [0, 1000, 2000, 3000]),
            (1200, {"max_rollbacks": 0}, [], []),
            (1200, {"save_every": 400}, [400, 800, 1200], [0]),
        ],
    )
    def test_which_states_are_kept_for_it(
        self, steps: int, options: dict[str, Any], states: list[int], own: list[int], tmp_path: Path
    ) -> None:
        settings = TrainOptions("classification", Path("data"), Path("model"), tmp_path, **options)
        checkpoints = CheckpointManager(settings, {}, steps)
        due = {step: checkpoints.due(step) for step in range(steps + 1)}
        assert [step for step, where in due.items() if where is checkpoints.states] == states
        assert [step for step, where in due.items() if where not in (None, checkpoints.states)] == own

    def test_a_state_saved_amid_faults_is_not_gone_back_to(self, tmp_path: Path) -> None:
        trainer = toy(tmp_path, save_every=3, save_total_limit=9, max_consecutive_skips=4, max_rollbacks=1)
        not_a_number(
            trainer,
            "classifier.bias",
            lambda: trainer.position.step in range(7, 11) and trainer.monitor.state.rollbacks == 0,
        )
        trainer.train()  # faults in steps 8 to 11, a state after step 9
        assert events(trainer)[-1]["to_step"] == 6

    def test_it_stops_in_the_end_and_names_cause_and_state(self, tmp_path: Path) -> None:
        trainer = toy(tmp_path, save_every=4, max_consecutive_skips=2, max_rollbacks=1)
        not_a_number(trainer, "bert.pooler.dense.weight", lambda: trainer.position.step in (9, 10))
        with pytest.raises(TrainingStopped) as stopped:
            trainer.train()
        assert str(stopped.value).startswith(
            "2 steps in a row were not finite: a gradient at bert.pooler.dense is not finite (step 11): "
            f"the last good state is {tmp_path / 'steps' / 'step-00000008'}; "
        )
        assert [event["event"] for event in events(trainer)].count("rollback") == 1

    def test_weights_that_became_nan(self, tmp_path: Path) -> None:
        trainer = toy(tmp_path, save_every=4)
        poison_after(trainer, 6)
        trainer.train()
        fault, rollback = events(trainer)
        assert (fault["module"], fault["kind"]) == ("bert.encoder.layer.1.output.dense", "parameter")
        assert (rollback["step"], rollback["to_step"]) == (7, 4)

    def test_weights_that_became_nan_in_the_last_step(self, tmp_path: Path) -> None:
        trainer = toy(tmp_path, save_every=4)
        poison_after(trainer, 20)
        trainer.train()
        assert events(trainer)[-1]["to_step"] == 16
        assert any("no state is saved" in line for line in trainer.progress.lines)
        assert all(bool(weight.isfinite().all()) for weight in trainer.objective.parameters())

    def test_a_loss_that_explodes(self, tmp_path: Path) -> None:
        trainer = toy(tmp_path, steps=60, save_every=10, loss_spike_patience=5, learning_rate=1e-4)
        weight = trainer.objective.head.classifier.weight

        def blow_up(*_: Any) -> None:
            if trainer.position.step == 33 and trainer.monitor.state.rollbacks == 0:
                weight.data.mul_(1000)

        trainer.optimizer.register_step_post_hook(blow_up)
        trainer.train()
        explosion, rollback = events(trainer)
        assert explosion["event"] == "explosion"
        assert explosion["cause"].startswith("the loss spikes: above ")
        assert rollback["to_step"] == 30


def poison_after(trainer: Trainer, steps: int) -> None:
    """Makes a weight NaN at the end of a step, once."""
    weight = trainer.objective.head.bert.encoder.layer[1].output.dense.weight
    left = [1]

    def poison(*_: Any) -> None:
        if trainer.position.step == steps - 1 and left:
            weight.data[0, 0] = math.nan
            left.pop()

    trainer.optimizer.register_step_post_hook(poison)
