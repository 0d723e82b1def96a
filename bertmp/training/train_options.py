"""The settings of a training run: checked once, saved beside the result."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from bertmp.core.errors import InputError
from bertmp.core.io import write_toml

OPTIMIZERS = ("adamw", "lamb")
CLASS_WEIGHTS = ("none", "balanced")
TASKS = ("classification", "pretraining", "token-classification", "regression")


@dataclass(frozen=True)
class TrainOptions:
    """What a run does; the names are the command's options.

    Attributes:
        task: the head that is trained.
        data, eval_data: data files; evaluation is left out where the second is None.
        model: a checkpoint folder, or a `config.json` for a start from random weights.
        out: the run's folder.
        precision, loss_scale: see `amp.Policy.resolve`.
        epochs: passes over the data; `steps`, where given, ends the run instead.
        batch_size: examples a step, over all processes and micro-batches.
        accumulate: micro-batches a step; less memory, the same step.
        activation_checkpointing: computes each block a second time in the backward pass; less memory.
        data_parallel: groups of processes that share out each batch; all processes where None.
        tensor_parallel: processes of such a group, which share out each block.
        shard: spreads weights, gradients and optimizer states over the data-parallel processes.
        workers: processes that prepare batches ahead of time; 0 prepares them in between.
        optimizer: `adamw`, or `lamb` for large batches.
        learning_rate: the peak; it rises over the first `warmup` of all steps and falls linearly to 0.
        weight_decay: decoupled (Loshchilov & Hutter 2019); biases and LayerNorms are exempt.
        layer_decay: each block learns at this times the rate of the block above it; 1 for all alike.
        max_grad_norm: gradients are clipped to this L2 norm; 0 switches clipping off.
        max_length: the most tokens of a text; the model's positions where None.
        label_smoothing: share of a label's weight that is spread over all classes.
        multi_label: in classification, a text may have several labels, or none.
        label_separator: what stands between them in the label's column.
        class_weights: `none`, or `balanced` to weigh each class by the inverse of its frequency.
        eval_every: steps between evaluations; every epoch where 0.
        keep_best: `final` is the checkpoint of the best evaluation instead of the last one's.
        patience: evaluations without a better one after which the run ends early; 0 never ends it.
        no_nsp: pre-trains on masked words alone, without next-sentence prediction.
        mask_rate: share of each sample's tokens that are masked in pre-training.
        whole_word_masking: masks all pieces of a word or none.
        short_rate: share of pre-training samples that are packed to a shorter length.
        save_every: steps between resumable states; 0 saves none.
        log_every: steps between lines of `metrics.jsonl`.
        keep: how many of them are kept.
        max_skipped: steps in a row that are not finite with which skipping ends and the run goes back.
        max_rollbacks: how often the run goes back to its last good state before it stops; 0 stops at once.
        rollback_rate: what the learning rate is multiplied with on going back.
        explosion_factor: how many times the median of the last losses counts as exploding; 0 never does.
        explosion_steps: exploding losses in a row at which the run goes back.
        initial_scale, scale_growth_interval, scale_backoff, min_scale: see `amp.Scaling`.
    """

    task: str
    data: Path
    model: Path
    out: Path
    eval_data: Path | None = None
    precision: str = "auto"
    loss_scale: str = "dynamic"
    epochs: int = 3
    steps: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    activation_checkpointing: bool = False
    data_parallel: int | None = None
    tensor_parallel: int = 1
    shard: bool = False
    workers: int = 0
    optimizer: str = "adamw"
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    max_length: int | None = None
    label_smoothing: float = 0.0
    class_weights: str = "none"
    seed: int = 0
    eval_every: int = 0
    keep_best: bool = False
    patience: int = 0
    no_nsp: bool = False
    mask_rate: float = 0.15
    whole_word_masking: bool = False
    short_rate: float = 0.1
    save_every: int = 0
    log_every: int = 10
    keep: int = 2
    max_skipped: int = 10
    max_rollbacks: int = 2
    rollback_rate: float = 0.5
    explosion_factor: float = 4.0
    explosion_steps: int = 20
    initial_scale: float = 2.0**16
    scale_growth_interval: int = 2000
    scale_backoff: float = 0.5
    min_scale: float = 1.0
    text_column: str = "text"
    text_pair_column: str = "text_pair"
    label_column: str = "label"
    multi_label: bool = False
    label_separator: str = ","

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InputError(f"unknown task '{self.task}'", "TASK", f"use one of {', '.join(TASKS)}")
        for name in ("epochs", "batch_size", "accumulate", "tensor_parallel", "log_every"):
            self._require(getattr(self, name) >= 1, name, "give at least 1")
        for name in ("keep", "max_skipped", "explosion_steps"):
            self._require(getattr(self, name) >= 1, name, "give at least 1")
        for name in ("workers", "eval_every", "save_every", "seed", "patience", "max_rollbacks"):
            self._require(getattr(self, name) >= 0, name, "give 0 or a positive number")
        groups = self.data_parallel
        self._require(groups is None or groups >= 1, "data_parallel", "give at least 1")
        self._require(self.seed < 1 << 63, "seed", "give a number below 2**63")
        self._require(self.steps is None or self.steps >= 1, "steps", "give at least 1")
        self._require(self.max_length is None or self.max_length >= 3, "max_length", "give at least 3")
        rate = self.learning_rate
        self._require(math.isfinite(rate) and rate > 0, "learning_rate", "give a positive number")
        self._require(0 <= self.warmup < 1, "warmup", "give a share of the steps, from 0 to below 1")
        self._require(0 < self.mask_rate < 1, "mask_rate", "give a share between 0 and 1")
        self._require(0 <= self.short_rate <= 1, "short_rate", "give a share from 0 to 1")
        self._require(0 <= self.label_smoothing < 1, "label_smoothing", "give a share from 0 to below 1")
        self._require(self.accumulate <= self.batch_size, "accumulate", "give at most the batch size")
        if self.label_smoothing and self.task in ("regression", "pretraining"):
            raise InputError(f"{self.task} has no --label-smoothing", "--label-smoothing", "leave it out")
        self._require(self.label_separator != "", "label_separator", "give one character or more")
        if self.multi_label and self.task != "classification":
            raise InputError(f"{self.task} has no --multi-label", "--multi-label", "leave it out")
        self._require(0 < self.layer_decay <= 1, "layer_decay", "give a factor above 0, at most 1")
        self._require(self.optimizer in OPTIMIZERS, "optimizer", f"use one of {', '.join(OPTIMIZERS)}")
        self._require(
            self.class_weights in CLASS_WEIGHTS, "class_weights", f"use one of {', '.join(CLASS_WEIGHTS)}"
        )
        if (self.patience or self.keep_best) and self.eval_data is None:
            option = "--patience" if self.patience else "--keep-best"
            raise InputError(f"{option} without evaluation data", option, "give --eval-data")
        self._require(0 < self.rollback_rate <= 1, "rollback_rate", "give a factor above 0, at most 1")
        factor = self.explosion_factor
        self._require(factor == 0 or 1 < factor < math.inf, "explosion_factor", "give a factor above 1, or 0")
        for name in ("weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            self._require(math.isfinite(value) and value >= 0, name, "give 0 or a positive number")

    def _require(self, holds: bool, name: str, todo: str) -> None:
        if not holds:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is {getattr(self, name)}", option, todo)

    def save(self, path: Path) -> None:
        """Writes the settings as TOML; `bertmp train --config` takes the file."""
        values = asdict(self)
        for name in ("data", "eval_data", "model", "out"):
            values[name] = None if values[name] is None else str(Path(values[name]).resolve())
        write_toml(path, values)
