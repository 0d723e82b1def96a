"""The tasks that can be trained: how each one's files are read."""

from __future__ import annotations

from collections.abc import Callable

from bertmp.training.tasks import fine_tuning, pretraining
from bertmp.training.tasks.task import Task, TrainingData
from bertmp.training.train_options import TrainOptions

READERS: dict[str, Callable[[TrainOptions], Task]] = {
    "classification": fine_tuning.read_classification,
    "pretraining": pretraining.read_pretraining,
    "token-classification": fine_tuning.read_token_classification,
    "regression": fine_tuning.read_regression,
}

__all__ = ["READERS", "Task", "TrainingData"]
