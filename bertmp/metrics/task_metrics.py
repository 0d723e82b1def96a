"""The metrics of each task.

Training adds up sums over batches and processes and computes the figures once; parity has all answers of a
stage at hand. Both use the functions that end in `_figures`, so that a name means the same number in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bertmp.core.io import JsonSerializable
from bertmp.metrics.spans import has_entity_tags, span_counts

Figures = dict[str, float]
"""Metrics by the names that the evaluation lines have, without their `eval_`."""

Counts = NDArray[np.int64]


def f1_figures(right: float, given: float, true: float) -> Figures:
    """Precision, recall and their harmonic mean; 0 where nothing was given or there was nothing to find."""
    return {
        "precision": right / given if given else 0.0,
        "recall": right / true if true else 0.0,
        "f1": 2 * right / (given + true) if given + true else 0.0,
    }


@dataclass(frozen=True)
class ClassificationMetrics(JsonSerializable):
    """Single-label classification.

    Attributes:
        accuracy: the share of right answers.
        macro_f1: the mean of `class_f1` over the classes that occur in the answers or the truth.
        matthews: Matthews' correlation for any number of classes, R_K (Gorodkin 2004); 0 if all answers or
            all true classes are the same.
        class_f1: F1 of each class, 0 for one that does not occur.
        confusion: the number of rows by true class and then by answer.
    """

    accuracy: float
    macro_f1: float
    matthews: float
    class_f1: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]


def confusion_matrix(answers: ArrayLike, truth: ArrayLike, classes: int) -> Counts:
    """How often each class was answered where each was true.

    Args:
        answers: INT `[rows]`, from 0 to `classes - 1`.
        truth: likewise.
        classes: how many there are.

    Returns:
        INT64 `[true, answered]`, each of the size `classes`.
    """
    cells = np.asarray(truth, np.int64) * classes + np.asarray(answers, np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def classification(answers: ArrayLike, truth: ArrayLike, classes: int) -> ClassificationMetrics:
    """The metrics of answered classes, INT `[rows]`, against the true ones; at least one row."""
    confusion = confusion_matrix(answers, truth, classes)
    counts = (np.diagonal(confusion), confusion.sum(0), confusion.sum(1))
    accuracy = float(counts[0].sum() / confusion.sum())
    table = tuple(tuple(row) for row in confusion.tolist())
    return ClassificationMetrics(accuracy, *_macro_and_matthews(*counts), tuple(_f1(*counts).tolist()), table)


def class_sums(answers: ArrayLike, truth: ArrayLike) -> Figures:
    """Sums for `class_figures`: how often each class was right, answered and true, without zeros.

    Args:
        answers: INT `[rows]`, the classes' numbers.
        truth: likewise.
    """
    counts = zip(("right", "given", "true"), _class_counts(answers, truth), strict=True)
    return {
        f"{name} {number}": float(count)
        for name, by_class in counts
        for number, count in enumerate(by_class.tolist())
        if count
    }


def class_figures(sums: Mapping[str, float]) -> Figures:
    """`macro_f1` and `matthews` from the sums of `class_sums`; empty where there are none."""
    keys = {tuple(name.split(" ")): value for name, value in sums.items() if " " in name}
    classes = sorted({number for _, number in keys}, key=int)
    if not classes:
        return {}
    columns = [[keys.get((name, number), 0.0) for number in classes] for name in ("right", "given", "true")]
    return dict(zip(("macro_f1", "matthews"), _macro_and_matthews(*np.array(columns)), strict=True))


def macro_f1(answers: ArrayLike, truth: ArrayLike) -> float:
    """`ClassificationMetrics.macro_f1` alone, of INT `[rows]` twice."""
    return _macro_and_matthews(*_class_counts(answers, truth))[0]


def matthews(answers: ArrayLike, truth: ArrayLike) -> float:
    """`ClassificationMetrics.matthews` alone, of INT `[rows]` twice."""
    return _macro_and_matthews(*_class_counts(answers, truth))[1]


def _class_counts(answers: ArrayLike, truth: ArrayLike) -> tuple[Counts, Counts, Counts]:
    """How often each class, up to the highest that occurs, was right, answered and true."""
    given, true = np.asarray(answers, np.int64), np.asarray(truth, np.int64)
    classes = int(max(given.max(initial=-1), true.max(initial=-1))) + 1
    right, answered, wanted = (
        np.bincount(of, minlength=classes) for of in (true[given == true], given, true)
    )
    return right, answered, wanted


def _f1(right: NDArray, given: NDArray, true: NDArray) -> NDArray[np.float64]:
    """F1 of each class; 0 for a class that does not occur."""
    return 2.0 * right / np.maximum(given + true, 1)


def _macro_and_matthews(right: NDArray, given: NDArray, true: NDArray) -> tuple[float, float]:
    """Both figures from how often each class, `[classes]`, was right, answered and true."""
    macro = float(_f1(right, given, true)[given + true > 0].mean())
    # As Python's numbers, which do not overflow: there may be billions of tokens.
    rows, hits = sum(true.tolist()), sum(right.tolist())
    chance = sum(a * b for a, b in zip(given.tolist(), true.tolist(), strict=True))
    spreads = [rows * rows - sum(count * count for count in counts.tolist()) for counts in (given, true)]
    if min(spreads) <= 0:
        return macro, 0.0
    found = (hits * rows - chance) / (math.sqrt(spreads[0]) * math.sqrt(spreads[1]))
    return macro, max(-1.0, min(1.0, found))  # the roots are rounded: 1 could be 1 + 2e-16


@dataclass(frozen=True)
class MultiLabelMetrics(JsonSerializable):
    """Multi-label classification.

    Attributes:
        accuracy: the share of rows whose labels are all right (subset accuracy).
        precision, recall, f1: over all single labels (micro-averaged).
        macro_f1: the mean of `label_f1` over the labels that occur in the answers or the truth.
        label_f1: F1 of each label, 0 for one that does not occur.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    macro_f1: float
    label_f1: tuple[float, ...]


def multi_label(answers: ArrayLike, truth: ArrayLike) -> MultiLabelMetrics:
    """The metrics of BOOL `[rows, labels]` against the same; at least one row."""
    given, true = np.asarray(answers, bool), np.asarray(truth, bool)
    counts = ((given & true).sum(0), given.sum(0), true.sum(0))
    exact = float((given == true).all(1).mean())
    by_label, occur = _f1(*counts), counts[1] + counts[2] > 0
    macro = float(by_label[occur].mean()) if occur.any() else 0.0
    micro = f1_figures(*(float(count.sum()) for count in counts))
    return MultiLabelMetrics(exact, **micro, macro_f1=macro, label_f1=tuple(by_label.tolist()))


def multi_label_figures(sums: Mapping[str, float]) -> Figures:
    """Loss, exact-match accuracy, and micro-averaged precision, recall and F1 over all labels."""
    means = {name: sums[name] / sums["examples"] for name in ("loss", "accuracy")}
    return {**means, **f1_figures(sums["right"], sums["given"], sums["true"])}


@dataclass(frozen=True)
class RegressionMetrics(JsonSerializable):
    """Regression.

    Attributes:
        mse: the mean squared error.
        pearson: Pearson's correlation, 0 if the answers or the true values are constant.
        spearman: Spearman's, which is Pearson's of the ranks; equal values have the mean of their ranks.
    """

    mse: float
    pearson: float
    spearman: float


def regression(answers: ArrayLike, truth: ArrayLike) -> RegressionMetrics:
    """The metrics of numbers, `[rows]`, against the true ones; at least one row."""
    given, true = np.asarray(answers, np.float64), np.asarray(truth, np.float64)
    figures = regression_figures(_regression_sums(given, true))
    return RegressionMetrics(figures["mse"], figures["pearson"], spearman(given, true))


def pearson(answers: ArrayLike, truth: ArrayLike) -> float:
    """`RegressionMetrics.pearson` alone, of numbers `[rows]` twice."""
    sums = _regression_sums(np.asarray(answers, np.float64), np.asarray(truth, np.float64))
    return regression_figures(sums)["pearson"]


def spearman(answers: ArrayLike, truth: ArrayLike) -> float:
    """`RegressionMetrics.spearman` alone, of numbers `[rows]` twice."""
    return pearson(_ranks(np.asarray(answers)), _ranks(np.asarray(truth)))


def _ranks(values: NDArray) -> NDArray[np.float64]:
    """Ranks from 1 on, `[rows]`; equal values share their mean."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2.0)[group]


def _regression_sums(answers: NDArray[np.float64], truth: NDArray[np.float64]) -> Figures:
    """Sums for `regression_figures`, of values that are moved to near 0: no figure changes, but rounding."""
    centre = truth.mean()
    given, true = answers - centre, truth - centre
    return {
        "examples": float(len(true)),
        "squared_error": float(np.square(given - true).sum()),
        "answers": float(given.sum()),
        "truth": float(true.sum()),
        "answers_squared": float(np.square(given).sum()),
        "truth_squared": float(np.square(true).sum()),
        "product": float((given * true).sum()),
    }


def regression_figures(sums: Mapping[str, float]) -> Figures:
    """Mean squared error and Pearson's correlation, which is 0 if predictions or targets are constant."""
    n = sums["examples"]
    mse = sums["squared_error"] / n
    covariance = sums["product"] - sums["answers"] * sums["truth"] / n
    spread = sums["answers_squared"] - sums["answers"] ** 2 / n
    spread *= sums["truth_squared"] - sums["truth"] ** 2 / n
    correlation = covariance / math.sqrt(spread) if spread > 0 else 0.0
    return {"loss": mse, "mse": mse, "pearson": max(-1.0, min(1.0, correlation))}


@dataclass(frozen=True)
class TokenClassificationMetrics(JsonSerializable):
    """Token classification.

    Attributes:
        accuracy: the share of words whose label is right.
        precision, recall, f1: of complete entities; None where the labels are not tags of entities.
    """

    accuracy: float
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


def token_classification(
    answers: Sequence[Sequence[int]], truth: Sequence[Sequence[int]], labels: Sequence[str]
) -> TokenClassificationMetrics:
    """The metrics of tagged sentences.

    Args:
        answers: the number of the label of each word, sentence by sentence, without unlabelled tokens.
        truth: the true ones, at least one.
        labels: the labels' names.
    """
    pairs = [pair for rows in zip(answers, truth, strict=True) for pair in zip(*rows, strict=True)]
    accuracy = sum(given == true for given, true in pairs) / len(pairs)
    if not has_entity_tags(labels):
        return TokenClassificationMetrics(accuracy)
    named = ([[labels[number] for number in row] for row in rows] for rows in (answers, truth))
    right, given, true = span_counts(*named).sum(0).tolist()
    return TokenClassificationMetrics(accuracy, **f1_figures(right, given, true))


def token_figures(sums: Mapping[str, float]) -> Figures:
    """Loss and accuracy per word; with entity labels also precision, recall and F1 of the entities."""
    figures = {name: sums[name] / max(sums["words"], 1.0) for name in ("loss", "accuracy")}
    if "true" in sums:
        figures.update(f1_figures(sums["right"], sums["given"], sums["true"]))
    return figures
