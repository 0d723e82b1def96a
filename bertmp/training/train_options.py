"""The options of `bertmp train`, one class per panel of its help."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from bertmp.core.errors import InputError
from bertmp.core.options import Options, argument, option
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.data.data_options import DataOptions

# fmt: off


class OptimisationOptions(Options, group="Optimisation"):
    """Steps, batches, the optimizer and the loss."""

    epochs: int = option(default=3, minimum=1, resumable=True, help="Passes over the training data.")
    steps: int | None = option(default=None, minimum=1, help="Optimizer steps, instead of epochs.")
    batch_size: int = option(
        default=32, minimum=1, help="Examples per optimizer step, over all processes and micro-batches.")
    optimizer: Literal["adamw", "lamb"] = option(default="adamw", help="LAMB is for large batches.")
    learning_rate: float = option(default=5e-5, above=0, help="Peak learning rate.")
    warmup_ratio: float = option(
        default=0.1, minimum=0, below=1, formerly="warmup",
        help="Share of the steps in which the learning rate rises; after it, the rate falls linearly to 0.")
    weight_decay: float = option(
        default=0.01, minimum=0, help="Decoupled weight decay; biases and LayerNorms are exempt.")
    layerwise_lr_decay: float = option(
        default=1.0, above=0, maximum=1, formerly="layer_decay",
        help="Each block's learning rate is this times that of the block above it.")
    max_grad_norm: float = option(
        default=1.0, minimum=0, help="Clip gradients to this L2 norm; 0 turns it off.")
    label_smoothing: float = option(
        default=0.0, minimum=0, below=1, help="Share of a label's weight that is spread over all classes.")
    class_weights: Literal["none", "balanced"] = option(
        default="none", help="Weigh classes by the inverse of their frequency with balanced.")
    seed: int = option(
        default=0, minimum=0, below=2**63, help="Seed of the data order, dropout and new weights.")


class LossScaleConfig(Options, group="Mixed precision"):
    """How a dynamic loss scale moves (Micikevicius et al. 2018, section 3.2)."""

    init_loss_scale: float = option(
        default=2.0**16, above=0, formerly="initial_scale", help="First dynamic loss scale.")
    loss_scale_growth_interval: int = option(
        default=2000, minimum=1, formerly="scale_growth_interval",
        help="Finite steps in a row after which a dynamic loss scale doubles.")
    loss_scale_backoff: float = option(
        default=0.5, above=0, below=1, formerly="scale_backoff",
        help="Factor on a dynamic loss scale after an overflow.")
    min_loss_scale: float = option(
        default=1.0, above=0, formerly="min_scale", resumable=True,
        help="A dynamic loss scale never falls below this value; an overflow at it is a fault.")

    def check(self) -> None:
        if self.init_loss_scale < self.min_loss_scale:
            raise InputError(
                f"--init-loss-scale {self.init_loss_scale:g} is below "
                f"--min-loss-scale {self.min_loss_scale:g}", "--init-loss-scale", "increase it")


class PrecisionOptions(LossScaleConfig, group="Mixed precision", resumable=True):
    """The compute type and the loss scale."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        default="auto", help="Compute type of the matrix products; auto is bf16 on the CPU and fp16 on CUDA.")
    loss_scale: str = option(
        default="dynamic", metavar="dynamic|NUMBER", help="Loss scaling of fp16: dynamic, or a fixed scale.")


class MonitorOptions(Options, group="Divergence monitor", resumable=True):
    """When the divergence monitor rolls a run back, and when it stops it."""

    max_consecutive_skips: int = option(
        default=10, minimum=1, formerly="max_skipped",
        help="Roll back to the last good state after this many non-finite steps in a row.")
    max_rollbacks: int = option(
        default=2, minimum=0,
        help="Stop with exit code 3 where the run would roll back more often than this.")
    rollback_lr_factor: float = option(
        default=0.5, above=0, maximum=1, formerly="rollback_rate",
        help="Factor on the learning rate after a rollback.")
    loss_spike_factor: float = option(
        default=4.0, minimum=0, formerly="explosion_factor",
        help="A loss above this many times the recent median is a spike; 0 turns the check off.")
    loss_spike_patience: int = option(
        default=20, minimum=1, formerly="explosion_steps",
        help="Roll back after this many loss spikes in a row.")

    def check(self) -> None:
        factor = self.loss_spike_factor
        if factor and factor <= 1:
            raise InputError(
                f"--loss-spike-factor is {factor}", "--loss-spike-factor", "give a factor above 1, or 0")


class DistributionOptions(Options, group="Distribution", resumable=True):
    """How a step's work is divided over time, processes and devices."""

    gradient_accumulation_steps: int = option(
        default=1, minimum=1, formerly="accumulate",
        help="Micro-batches per optimizer step: less memory, the same step.")
    activation_checkpointing: bool = option(
        default=False, help="Recompute activations in the backward pass: less memory, the same step.")
    data_parallel: int | None = option(
        default=None, minimum=1,
        help="Data-parallel groups, with torchrun; by default every process is one.")
    tensor_parallel: int = option(
        default=1, minimum=1, help="Processes per data-parallel group, which split each block.")
    fsdp: bool = option(
        default=False, formerly="shard",
        help="Shard weights, gradients and optimizer states over the data-parallel processes (FSDP2).")
    num_workers: int = option(
        default=0, minimum=0, formerly="workers",
        help="Processes that prepare batches ahead of time; 0 prepares them in the training process.")


class CheckpointOptions(Options, group="Checkpoints and evaluation", resumable=True):
    """What is saved, logged and evaluated, and when."""

    resume: bool = option(
        default=False, saved=False,
        help="Continue from the newest saved state; from the beginning where there is none.")
    overwrite: bool = option(
        default=False, saved=False, help="Replace a finished run in the folder.")
    save_every: int = option(default=0, minimum=0, help="Save a resumable state every N steps; 0 saves none.")
    save_total_limit: int = option(
        default=2, minimum=1, formerly="keep", help="How many resumable states are kept.")
    log_every: int = option(default=10, minimum=1, help="Write metrics every N steps.")
    eval_every: int = option(
        default=0, minimum=0, help="Evaluate every N steps; 0 evaluates after every epoch.")
    keep_best: bool = option(
        default=False, help="RUN/final is the checkpoint of the best evaluation instead of the last step's.")
    patience: int = option(
        default=0, minimum=0,
        help="Stop after this many evaluations without a better one; 0 never stops early.")


class MaskingOptions(Options, group="Pre-training"):
    """How a corpus becomes samples."""

    no_nsp: bool = option(
        default=False, help="Pre-train on masked tokens alone, without next-sentence prediction.")
    mlm_probability: float = option(
        default=0.15, above=0, below=1, formerly="mask_rate", help="Share of tokens that are masked.")
    whole_word_masking: bool = option(default=False, help="Mask all tokens of a word or none.")
    short_seq_prob: float = option(
        default=0.1, minimum=0, maximum=1, formerly="short_rate",
        help="Share of samples that are packed to a shorter length.")


class TrainOptions(
    DataOptions, OptimisationOptions, PrecisionOptions, MonitorOptions, DistributionOptions,
    CheckpointOptions, MaskingOptions, group="Data",
):
    """The options of `bertmp train`."""

    task: Literal["classification", "token-classification", "regression", "pretraining"] = argument(
        kw_only=False, metavar="TASK",
        help="What to train: classification, token-classification, regression or pretraining.")
    data: Path = option(
        kw_only=False, metavar="FILE", resumable=True,
        help="Training examples: .tsv, .csv, .jsonl, .parquet; for pre-training also .txt or a prepared one.")
    model: Path = option(
        kw_only=False, metavar="CHECKPOINT", resumable=True,
        help="A checkpoint folder, the name of a downloaded one, or a config.json for random weights.")
    out: Path = option(kw_only=False, metavar="RUN", resumable=True, help="The run's folder.")
    eval_data: Path | None = option(
        default=None, metavar="FILE", resumable=True, help="Examples to evaluate on after every epoch.")
    max_length: int | None = option(
        default=None, minimum=3,
        help="Truncate inputs to this many tokens; default: the checkpoint's model_max_length, or its "
        "positions.")
    multi_label: bool = option(
        default=False, help="In classification, an example may have several labels, or none.")
    progress: ProgressCallback = option(
        default=null_progress, on_command_line=False, help="Called with log lines and the state of the run.")

    def check(self) -> None:
        DataOptions.check(self)
        LossScaleConfig.check(self)
        MonitorOptions.check(self)
        if self.gradient_accumulation_steps > self.batch_size:
            flag, value = "--gradient-accumulation-steps", self.gradient_accumulation_steps
            raise InputError(f"{flag} is {value}", flag, "give at most the batch size")
        if self.label_smoothing and self.task in ("regression", "pretraining"):
            raise InputError(f"{self.task} has no --label-smoothing", "--label-smoothing", "leave it out")
        if self.multi_label and self.task != "classification":
            raise InputError(f"{self.task} has no --multi-label", "--multi-label", "leave it out")
        if (self.patience or self.keep_best) and self.eval_data is None:
            flag = "--patience" if self.patience else "--keep-best"
            raise InputError(f"{flag} without evaluation data", flag, "give --eval-data")
        static_loss_scale(self.loss_scale)


# fmt: on


def static_loss_scale(text: str) -> float | None:
    """The fixed loss scale that `--loss-scale` gives; None where it is dynamic.

    Raises:
        InputError: the text is neither `dynamic` nor a positive number.
    """
    if text == "dynamic":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"loss scale '{text}'", "--loss-scale", "give 'dynamic' or a positive number")
    return value
