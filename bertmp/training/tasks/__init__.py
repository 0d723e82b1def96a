"""The tasks that can be trained: how each one's files are read."""

from __future__ import annotations

from collections.abc import Callable

from bertmp.training.settings import TrainSettings
from bertmp.training.tasks.base import Task, TrainingData
from bertmp.training.tasks.classification import read_classification
from bertmp.training.tasks.pretraining import read_pretraining

READERS: dict[str, Callable[[TrainSettings], Task]] = {
    "classification": read_classification,
    "pretraining": read_pretraining,
}

__all__ = ["READERS", "Task", "TrainingData"]
