"""The tasks that can be trained: how each one's files are read."""

from __future__ import annotations

from collections.abc import Callable

from bertmp.training.tasks.fine_tuning import (
    read_classification,
    read_regression,
    read_token_classification,
)
from bertmp.training.tasks.pretraining import read_pretraining
from bertmp.training.tasks.task import Task, TrainingData
from bertmp.training.train_options import TrainOptions

READERS: dict[str, Callable[[TrainOptions], Task]] = {
    "classification": read_classification,
    "pretraining": read_pretraining,
    "token-classification": read_token_classification,
    "regression": read_regression,
}

__all__ = ["READERS", "Task", "TrainingData"]
