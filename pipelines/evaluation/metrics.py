"""Figures of a set of predictions, by the names that recipes and `--metric` use.

With two classes, `roc_auc, average_precision, sensitivity, specificity, ppv, npv, f1` are the positive class's; with
more, the unweighted mean of each class against the rest. A figure that the data do not define is NaN, and so is a mean
over classes of which one is: a sensitivity of a class of which there is no image, a PPV of one that is never called,
MCC where one class only is there or called. F1 is 0 where either is so, and NaN where both are.

Everything is computed from weights: what an image that comes w times weighs is w. So figures of a sample and of its
resamples are the same code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.evaluation.ranking import Ranking

METRIC_NAMES = (
    "roc_auc",
    "average_precision",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "mcc",
    "brier",
    "log_loss",
)
OF_ALL_CLASSES = ("accuracy", "balanced_accuracy", "mcc", "brier", "log_loss")
"""Those that are of all classes together; the others are of one class against the rest, or their mean."""
LOWER_IS_BETTER = frozenset({"brier", "log_loss"})

LEAST_PROBABILITY = float(np.finfo(np.float64).eps)
"""What a probability of a true class is taken to be at least in the log loss, as scikit-learn does."""

Floats = NDArray[np.float64]


def measure(probabilities: ArrayLike, labels: ArrayLike, positive: Sequence[int]) -> dict[str, float]:
    """All figures of `METRIC_NAMES`.

    Args:
        probabilities: `[N, K]`, rows sum to 1.
        labels: Class numbers `[N]`.
        positive: Numbers of the positive classes.

    Returns:
        Figure by name; `brier` is the sum over classes of the squared differences, halved with two classes so that
        it is the usual one, and averaged over the images.
    """
    found = weighted_figures(probabilities, labels, positive, np.ones((1, len(np.asarray(labels))), np.int64))
    return {name: float(values[0]) for name, values in found.items()}


def weighted_figures(
    probabilities: ArrayLike, labels: ArrayLike, positive: Sequence[int], weights: NDArray[Any]
) -> dict[str, Floats]:
    """All figures of `measure` for each row of weights.

    Args:
        probabilities: `[N, K]`, rows sum to 1.
        labels: Class numbers `[N]`.
        positive: Numbers of the positive classes.
        weights: `[D, N]`, at least 0; whole numbers are faster.

    Returns:
        Figure by name, `[D]`; NaN where a row of weights does not define it.
    """
    p, truth = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    classes, rows = p.shape[1], np.arange(len(truth))
    cell = truth * classes + p.argmax(axis=1)
    summed = np.stack([np.bincount(cell, row, classes * classes) for row in weights]).astype(np.float64)
    matrix, total = summed.reshape(-1, classes, classes), summed.sum(axis=1)
    columns = [positive[0]] if classes == 2 else list(range(classes))
    each = against_rest(matrix)
    figures = {name: values[:, columns].mean(axis=1) for name, values in each.items()} | of_all_classes(matrix)
    ranked = [Ranking(p[:, one], truth == one, rows).areas(weights) for one in columns]
    figures["roc_auc"], figures["average_precision"] = (np.mean(both, axis=0) for both in zip(*ranked, strict=True))
    figures["brier"] = share(weights @ squared_error(p, truth), total)
    figures["log_loss"] = share(weights @ surprise(p, truth), total)
    return {name: figures[name] for name in METRIC_NAMES}


def confusion_matrix(predicted: ArrayLike, labels: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts `[K, K]`: a row for each true class, a column for each predicted one."""
    cells = np.asarray(labels, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def against_rest(matrix: Floats) -> dict[str, Floats]:
    """Sensitivity, specificity, PPV, NPV and F1 of each class against all others.

    Args:
        matrix: Confusion matrices `[D, K, K]`, a row for each true class.

    Returns:
        By name, `[D, K]`.
    """
    hit = np.diagonal(matrix, axis1=1, axis2=2)
    true, called = matrix.sum(axis=2), matrix.sum(axis=1)
    total = true.sum(axis=1, keepdims=True)
    rest = total - true - called + hit
    return {
        "sensitivity": share(hit, true),
        "specificity": share(rest, total - true),
        "ppv": share(hit, called),
        "npv": share(rest, total - called),
        "f1": share(2 * hit, true + called),
    }


def of_all_classes(matrix: Floats) -> dict[str, Floats]:
    """Accuracy, balanced accuracy (the mean of the classes' sensitivities) and MCC, `[D]` by name.

    MCC is Matthews' correlation for any number of classes (Gorodkin, Comput Biol Chem 28 (2004)).

    Args:
        matrix: Confusion matrices `[D, K, K]`, a row for each true class.
    """
    right = np.trace(matrix, axis1=1, axis2=2)
    true, called = matrix.sum(axis=2), matrix.sum(axis=1)
    total = true.sum(axis=1)
    spread = (total**2 - (called**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1))
    return {
        "accuracy": share(right, total),
        "balanced_accuracy": share(np.diagonal(matrix, axis1=1, axis2=2), true).mean(axis=1),
        "mcc": share(right * total - (true * called).sum(axis=1), np.sqrt(spread)),
    }


def share(part: Floats, whole: Floats) -> Floats:
    """`part / whole`; NaN where `whole` is not above 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    shares: Floats = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return shares


def squared_error(p: Floats, truth: NDArray[np.int64]) -> Floats:
    """What each image adds to the Brier score, `[N]`."""
    classes = p.shape[1]
    errors: Floats = ((p - np.eye(classes)[truth]) ** 2).sum(axis=1)
    return errors / 2 if classes == 2 else errors


def surprise(p: Floats, truth: NDArray[np.int64]) -> Floats:
    """What each image adds to the log loss, natural logarithm, `[N]`."""
    lost: Floats = -np.log(np.clip(p[np.arange(len(truth)), truth], LEAST_PROBABILITY, 1))
    return lost


def roc_auc(score: ArrayLike, is_positive: ArrayLike) -> float:
    """Area under the ROC curve; NaN where one kind is missing."""
    truth = np.asarray(is_positive, bool)
    area, _ = Ranking(score, truth, np.arange(len(truth))).areas(np.ones((1, len(truth)), np.int64))
    return float(area[0])


def roc_auc_interval(area: float, positives: int, negatives: int) -> tuple[float, float]:
    """95 % interval of a ROC AUC (Hanley and McNeil, Radiology 143 (1982)), within 0–1.

    The variance is taken at no better than 1 - 1 / (4 n), n the smaller count: at an area of exactly 1 the formula
    gives none, although a few images prove little.
    """
    if math.isnan(area):
        return 0.0, 1.0
    bounded = min(max(area, 1 / (4 * min(positives, negatives))), 1 - 1 / (4 * min(positives, negatives)))
    q1, q2 = bounded / (2 - bounded), 2 * bounded**2 / (1 + bounded)
    spread = (positives - 1) * (q1 - bounded**2) + (negatives - 1) * (q2 - bounded**2)
    error = math.sqrt((bounded * (1 - bounded) + spread) / (positives * negatives))
    return max(0.0, area - 1.96 * error), min(1.0, area + 1.96 * error)


def classification_report(predicted: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> str:
    """Precision, recall, F1 and support of each class and their means, as scikit-learn prints them."""
    from sklearn.metrics import classification_report as report

    numbers = list(range(len(classes)))
    return str(report(labels, predicted, labels=numbers, target_names=list(classes), zero_division=0, digits=3))
