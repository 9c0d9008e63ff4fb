"""Figures of a set of predictions, by the names that recipes and `--metric` use.

With two classes, `roc_auc, average_precision, sensitivity, specificity, ppv, npv, f1` are the positive class's; with
more, the unweighted mean of each class against the rest. A figure that the data do not define is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
LOWER_IS_BETTER = frozenset({"brier", "log_loss"})


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
    p, truth = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    matrix = confusion_matrix(p.argmax(axis=1), truth, p.shape[1])
    columns = [positive[0]] if p.shape[1] == 2 else list(range(p.shape[1]))
    each = [_against_rest(p[:, column], truth == column, matrix, column) for column in columns]
    figures = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    chosen = matrix.diagonal() / np.where(matrix.sum(axis=1) > 0, matrix.sum(axis=1), np.nan)
    squared = ((p - np.eye(p.shape[1])[truth]) ** 2).sum(axis=1)
    figures["accuracy"] = float(matrix.trace() / matrix.sum())
    figures["balanced_accuracy"] = float(np.nanmean(chosen))
    figures["mcc"] = _matthews(matrix)
    figures["brier"] = float(squared.mean() / (2 if p.shape[1] == 2 else 1))
    figures["log_loss"] = float(-np.log(np.clip(p[np.arange(len(truth)), truth], 1e-15, 1)).mean())
    return {name: figures[name] for name in METRIC_NAMES}


def confusion_matrix(predicted: ArrayLike, labels: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts `[K, K]`: a row for each true class, a column for each predicted one."""
    cells = np.asarray(labels, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def roc_auc(score: ArrayLike, is_positive: ArrayLike) -> float:
    """Area under the ROC curve; NaN where one kind is missing."""
    from sklearn.metrics import roc_auc_score

    truth = np.asarray(is_positive, bool)
    if truth.all() or not truth.any():
        return math.nan
    return float(roc_auc_score(truth, np.asarray(score, np.float64)))


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


def _against_rest(
    score: NDArray[np.float64], truth: NDArray[np.bool_], matrix: NDArray[np.int64], column: int
) -> dict[str, float]:
    """Figures of one class against all others."""
    from sklearn.metrics import average_precision_score

    hit = int(matrix[column, column])
    missed, false = int(matrix[column].sum()) - hit, int(matrix[:, column].sum()) - hit
    rest = int(matrix.sum()) - hit - missed - false
    return {
        "roc_auc": roc_auc(score, truth),
        "average_precision": float(average_precision_score(truth, score)) if truth.any() else math.nan,
        "sensitivity": _share(hit, hit + missed),
        "specificity": _share(rest, rest + false),
        "ppv": _share(hit, hit + false),
        "npv": _share(rest, rest + missed),
        "f1": _share(2 * hit, 2 * hit + false + missed),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _matthews(matrix: NDArray[np.int64]) -> float:
    """Matthews' correlation for any number of classes (Gorodkin, Comput Biol Chem 28 (2004))."""
    true, predicted = matrix.sum(axis=1).astype(float), matrix.sum(axis=0).astype(float)
    total = float(matrix.sum())
    below = math.sqrt((total**2 - (predicted**2).sum()) * (total**2 - (true**2).sum()))
    return float((matrix.trace() * total - true @ predicted) / below) if below > 0 else 0.0
