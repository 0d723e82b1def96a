"""Mixed precision: what runs in which type, and how losses are scaled; FP16 on the CPU included."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bertmp import train
from bertmp.core.errors import InputError
from bertmp.model.config import BertConfig
from bertmp.model.heads import LossOptions
from bertmp.model.packed import Batch
from bertmp.training.amp import LossScaleConfig, PrecisionPolicy
from bertmp.training.distributed.sharding import Objective
from bertmp.training.metrics import read_metrics
from tests.models import batch, head, packed

FP32_FORWARD = {
    "layer norm": {"native_layer_norm"},
    "softmax": {"_softmax"},
    "tanh of the pooler": {"tanh"},
    "loss": {"_log_softmax", "nll_loss_forward", "binary_cross_entropy_with_logits", "mse_loss"},
}
FP32_BACKWARD = {
    "layer norm": {"native_layer_norm_backward"},
    "softmax": {"_softmax_backward_data"},
    "tanh of the pooler": {"tanh_backward"},
    "loss": {"_log_softmax_backward_data", "nll_loss_backward", "mse_loss_backward"},
}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_addmm_activation"}


class Recorder(TorchDispatchMode):
    """Notes the types of the floating-point tensors that each operation reads, below autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[str, set[torch.dtype]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.types[name] |= {arg.dtype for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()}
        return func(*args, **(kwargs or {}))

    def read_by(self, names: set[str]) -> set[torch.dtype]:
        return set().union(*(self.types[name] for name in names & self.types.keys()))


CONFIG = BertConfig(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
)


def example(task: str) -> tuple[Objective, Batch]:
    """A head, in training, and a batch for it."""
    inputs = batch(60)
    tokens = int(inputs["attention_mask"].sum())
    rows = len(inputs["attention_mask"])
    targets: dict[str, dict[str, Tensor]] = {
        "classification": {"labels": torch.arange(rows) % 3},
        "multi-label-classification": {"labels": torch.ones(rows, 3)},
        "regression": {"labels": torch.linspace(-1, 1, rows)},
        "token-classification": {"labels": torch.arange(tokens) % 3},
        "pretraining": {
            "masked": torch.tensor([1, 4]),
            "masked_labels": torch.tensor([7, 8]),
            "next_sentence": torch.arange(rows) % 2,
        },
    }
    config = CONFIG.with_labels(("number",)) if task == "regression" else CONFIG.with_labels(("a", "b", "c"))
    return Objective(head(task, config).train(), LossOptions()), packed(inputs, **targets[task])


TASKS = ("classification", "multi-label-classification", "regression", "token-classification", "pretraining")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("task", TASKS)
def test_only_matrix_products_leave_fp32(task: str, precision: str) -> None:
    objective, examples = example(task)
    policy = PrecisionPolicy.resolve(precision, "dynamic", "cpu")
    with Recorder() as forward, policy.autocast():
        sums = objective(examples)
    with Recorder() as backward:
        policy.scaler().scale(sums.sum()).backward()

    assert sums.dtype == torch.float32
    for place, names in FP32_FORWARD.items():
        seen = forward.read_by(names)
        if task == "token-classification" and place.startswith("tanh"):
            assert not seen  # it has no pooler
        else:
            assert seen == {torch.float32}, place
    for place, names in FP32_BACKWARD.items():
        assert backward.read_by(names) <= {torch.float32}, place
    assert backward.read_by({"native_layer_norm_backward"}) == {torch.float32}
    assert backward.read_by({"_softmax_backward_data"}) == {torch.float32}
    # Every product, forward and backward, does run in the lower precision: this is where the speed is.
    assert forward.read_by(PRODUCTS) == {policy.dtype}
    assert backward.read_by(PRODUCTS) == {policy.dtype}
    # Master weights and their gradients stay FP32: they are unscaled and clipped there.
    assert {weight.dtype for weight in objective.parameters()} == {torch.float32}
    assert {weight.grad.dtype for weight in objective.parameters() if weight.grad is not None} == {
        torch.float32
    }


def test_in_fp32_everything_is() -> None:
    objective, examples = example("classification")
    with Recorder() as recorder, PrecisionPolicy.resolve("fp32", "dynamic", "cpu").autocast():
        objective(examples).sum().backward()
    assert set().union(*recorder.types.values()) == {torch.float32}


def test_fp16_gradients_are_unscaled_in_fp32_before_clipping() -> None:
    """Scaled by 2**16, unscaled and clipped, a gradient far below FP16's range keeps its FP32 digits."""
    policy = PrecisionPolicy.resolve("fp16", "65536", "cpu")
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer, scaler = torch.optim.SGD([weight], lr=1.0), policy.scaler()
    tiny = 1.2345678e-9  # FP16's smallest number is 6e-8
    scaler.scale((weight * tiny).sum()).backward()
    scaler.unscale(optimizer)
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full((4,), tiny))
    assert float(torch.nn.utils.clip_grad_norm_([weight], 1.0)) == pytest.approx(2 * tiny, rel=1e-6)


def test_auto_goes_by_the_device() -> None:
    assert PrecisionPolicy.resolve("auto", "dynamic", "cpu").mode == "bf16"
    assert PrecisionPolicy.resolve("auto", "dynamic", "cuda").mode == "fp16"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"init_loss_scale": 0.0}, "--init-loss-scale is 0.0"),
        ({"init_loss_scale": float("nan")}, "--init-loss-scale is nan"),
        ({"min_loss_scale": -1.0}, "--min-loss-scale is -1.0"),
        ({"init_loss_scale": 1.0, "min_loss_scale": 2.0}, "--init-loss-scale 1 is below --min-loss-scale 2"),
        ({"loss_scale_growth_interval": 0}, "--loss-scale-growth-interval is 0"),
        ({"loss_scale_backoff": 1.0}, "--loss-scale-backoff is 1.0"),
    ],
)
def test_bad_scaling(values: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        LossScaleConfig(**values)


class TestLossScaler:
    """The scaler alone, on gradients that are set by hand."""

    def step(self, scaler: Any, optimizer: torch.optim.Optimizer, gradient: float) -> None:
        (weight,) = optimizer.param_groups[0]["params"]
        scaler.scale(weight.sum())
        weight.grad = torch.tensor([float(gradient)])
        scaler.unscale(optimizer)
        if torch.isfinite(weight.grad).all():
            scaler.step(optimizer)
        else:
            scaler.skip()

    def run(self, policy: PrecisionPolicy, *gradients: float) -> list[float]:
        """The scale after each step."""
        scaler = policy.scaler()
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        scales = []
        for gradient in gradients:
            self.step(scaler, optimizer, gradient)
            scales.append(scaler.value)
        return scales

    def test_a_dynamic_scale_grows_after_its_interval_and_falls_at_once(self) -> None:
        policy = PrecisionPolicy.resolve(
            "fp16",
            "dynamic",
            "cpu",
            LossScaleConfig(
                init_loss_scale=8, loss_scale_growth_interval=2, loss_scale_backoff=0.25, min_loss_scale=2
            ),
        )
        inf = float("inf")
        assert self.run(policy, 1, 1, 1, inf, 1, 1, inf, inf, inf) == [8, 16, 16, 4, 4, 8, 2, 2, 2]

    def test_a_fixed_one_stays(self) -> None:
        policy = PrecisionPolicy.resolve("fp16", "1024", "cpu")
        assert self.run(policy, 1, float("nan"), 1) == [1024, 1024, 1024]

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_other_precisions_have_none(self, precision: str) -> None:
        policy = PrecisionPolicy.resolve(precision, "dynamic", "cpu")
        assert self.run(policy, 1, float("nan"), 1) == [1, 1, 1]
        assert policy.scaler().status == "fixed"

    def test_room(self) -> None:
        assert (
            PrecisionPolicy.resolve(
                "fp16", "dynamic", "cpu", LossScaleConfig(init_loss_scale=4, min_loss_scale=2)
            )
            .scaler()
            .status
            == "can fall"
        )
        assert (
            PrecisionPolicy.resolve(
                "fp16", "dynamic", "cpu", LossScaleConfig(init_loss_scale=2, min_loss_scale=2)
            )
            .scaler()
            .status
            == "at minimum"
        )
        assert PrecisionPolicy.resolve("fp16", "8", "cpu").scaler().status == "fixed"

    def test_a_step_left_out_for_another_reason_lowers_the_scale_too(self) -> None:
        scaler = PrecisionPolicy.resolve(
            "fp16", "dynamic", "cpu", LossScaleConfig(init_loss_scale=8)
        ).scaler()
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        (weight,) = optimizer.param_groups[0]["params"]
        scaler.scale(weight.sum())
        weight.grad = torch.ones(1)
        scaler.unscale(optimizer)
        scaler.skip()  # each gradient is finite, their norm was not
        assert scaler.value == 4


@pytest.fixture(scope="module")
def data(trec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 real questions of all labels."""
    path = tmp_path_factory.mktemp("data") / "questions.tsv"
    lines = (trec / "train.tsv").read_text(encoding="utf-8").splitlines()[:96]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def run(data: Path, model: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    """Trains in FP16 on the CPU; returns the lines of the steps."""
    defaults = {"precision": "fp16", "batch_size": 16, "learning_rate": 1e-3, "log_every": 1}
    train("classification", data, model, out, **{**defaults, **options})
    return [line for line in read_metrics(out / "metrics.jsonl") if "loss" in line]


class TestFp16OnTheCpu:
    """Loss scaling needs no GPU to be real: torch's GradScaler runs on the CPU as well."""

    def test_a_static_scale_stays(self, data: Path, tiny: Path, tmp_path: Path) -> None:
        lines = run(data, tiny, tmp_path / "run", steps=4, loss_scale="1024")
        assert [line["loss_scale"] for line in lines] == [1024] * 4
        assert lines[-1]["skipped_steps"] == 0

    def test_the_scale_does_not_change_the_gradients(self, data: Path, tiny: Path, tmp_path: Path) -> None:
        norms = [
            run(data, tiny, tmp_path / scale, steps=1, loss_scale=scale)[0]["grad_norm"]
            for scale in ("1", "4096")
        ]
        assert norms[0] == pytest.approx(norms[1], rel=0.01)

    def test_it_learns_as_fp32_does(self, data: Path, tiny: Path, tmp_path: Path) -> None:
        losses = [
            [line["loss"] for line in run(data, tiny, tmp_path / precision, steps=12, precision=precision)]
            for precision in ("fp32", "fp16", "bf16")
        ]
        assert losses[1] == pytest.approx(losses[0], rel=0.01)
        assert losses[2] == pytest.approx(losses[0], rel=0.05)

    def test_an_overflow_is_skipped_and_lowers_the_scale(
        self, data: Path, tiny: Path, tmp_path: Path
    ) -> None:
        model = steepened(tiny, tmp_path / "steep")
        lines = run(data, model, tmp_path / "run", steps=14, learning_rate=1e-6)
        scales = [line["loss_scale"] for line in lines]
        skipped = [0, *(line["skipped_steps"] for line in lines)]
        assert scales[0] == 65536
        assert 1 <= skipped[-1] < 14
        for step in range(1, 14):
            overflowed = skipped[step] > skipped[step - 1]
            assert scales[step] == scales[step - 1] * (0.5 if overflowed else 1)
        events = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "event" in line]
        assert len(events) == skipped[-1]
        assert all(event["expected"] for event in events)
        assert {event["cause"] for event in events} == {"the loss scale is too high"}


def steepened(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with a last LayerNorm that divides by very little: gradients grow ten-thousandfold."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in ("attention.output.LayerNorm", "output.dense"):
        for part in ("weight", "bias"):
            tensors[f"encoder.layer.1.{name}.{part}"] *= 1e-4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
