"""What is fitted on validation after the weights: one temperature and one threshold. Plain NumPy, no TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.errors import UsageError

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
MARGIN = 1e-5
LEAST_THRESHOLD = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold of `p_positive` and what it reaches on validation.

    Attributes:
        threshold: An image is positive where `p_positive >= threshold`.
        target: The sensitivity that was asked for.
        sensitivity: Share of the positive validation images called positive.
        specificity: Share of the negative ones called negative.
    """

    threshold: float
    target: float
    sensitivity: float
    specificity: float

    def record(self) -> dict[str, Any]:
        """As it stands in the bundle."""
        return {
            "threshold": self.threshold,
            "target_sensitivity": self.target,
            "sensitivity": self.sensitivity,
            "specificity": self.specificity,
            "fitted_on": "validation",
        }


def class_logits(logits: ArrayLike) -> NDArray[np.float64]:
    """One logit for each class, float64 `[N, K]`; a single one, `[N, 1]`, is that of the second of two classes."""
    given = np.asarray(logits, np.float64)
    return np.concatenate([np.zeros_like(given), given], axis=1) if given.shape[1] == 1 else given


def sum_positive(answers: NDArray[np.float32], positive: Sequence[int]) -> NDArray[np.float64]:
    """`p_positive` `[N]` as `score` compares it with the threshold: summed in double precision, kept in single."""
    summed = answers[:, list(positive)].astype(np.float64).sum(axis=1)
    return np.asarray(np.minimum(summed, 1.0).astype(np.float32), np.float64)


def probabilities(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Softmax of `logits / temperature`.

    Args:
        logits: `[N, K]`, or `[V, N, K]` of V views of each image, whose probabilities are averaged.
        temperature: What they are divided by.

    Returns:
        float64 `[N, K]`, rows sum to 1.
    """
    raised = np.exp(_log_probabilities(logits, temperature))
    return np.asarray(raised if raised.ndim == 2 else raised.mean(axis=0), np.float64)


def log_loss(logits: ArrayLike, labels: ArrayLike, temperature: float = 1.0) -> float:
    """Mean negative log likelihood of the true classes, natural logarithm; logits as in `probabilities`."""
    numbers = np.asarray(labels, np.int64)
    return float(-_mean_log(logits, temperature)[np.arange(len(numbers)), numbers].mean())


def _mean_log(logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """Logarithm of `probabilities`, `[N, K]`."""
    each = _log_probabilities(logits, temperature)
    return each if each.ndim == 2 else np.logaddexp.reduce(each, axis=0) - math.log(len(each))


def _log_probabilities(logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    scaled = np.asarray(logits, np.float64) / temperature
    return np.asarray(scaled - np.logaddexp.reduce(scaled, axis=-1, keepdims=True), np.float64)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature of least validation log loss (Guo et al., ICML 2017), between 0.05 and 20.

    The n images of a class are taken to be of it with 1 - 1 / (n + 2) only, and of any other with the rest (Platt,
    1999): a few images that are all told apart do not bear out probabilities of 0 and 1. Dividing all logits by one
    number changes no predicted class.

    Args:
        logits: As in `probabilities`.
        labels: Class numbers `[N]`.
    """
    from scipy.optimize import minimize_scalar

    numbers = np.asarray(labels, np.int64)
    classes = np.shape(logits)[-1]
    rest = 1 / (np.bincount(numbers, minlength=classes)[numbers, np.newaxis] + 2)
    wanted = np.where(np.arange(classes) == numbers[:, np.newaxis], 1 - rest, rest / (classes - 1))
    found = minimize_scalar(
        lambda log_t: -(wanted * _mean_log(logits, math.exp(log_t))).sum(axis=1).mean(),
        bounds=(math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(found.x))


def fit_threshold(p_positive: ArrayLike, is_positive: ArrayLike, target: float = 0.95) -> OperatingPoint:
    """The largest threshold whose sensitivity on validation is at least `target`.

    With n positive images and k = ceil(target · n), that is the k-th highest `p_positive` of a positive image. Ties
    need no rule of their own: images of equal `p_positive` fall on the same side, and the positive ones among them
    only add to sensitivity. The value is lowered by 1e-5 of itself, so that an image exactly at the threshold
    stays positive however the last bits of a float32 fall on another processor; that cannot lower the sensitivity. It
    is never 0, which would call everything positive; where `p_positive` itself is 0 the target is therefore missed.

    Args:
        p_positive: Calibrated probability of the positive classes, `[N]`.
        is_positive: Truth, bool `[N]`.
        target: Sensitivity wanted, above 0 and at most 1.

    Raises:
        UsageError: If the target is out of range, or no image is positive.
    """
    if not 0 < target <= 1:
        raise UsageError(f"The target sensitivity must be above 0 and at most 1; it is {target}.", "Say 0.95.")
    score, truth = np.asarray(p_positive, np.float64), np.asarray(is_positive, bool)
    if not truth.any():
        raise UsageError("No validation image is positive, so no threshold can be fitted.", "Add positive images.")
    ranked = np.sort(score[truth])[::-1]
    needed = max(1, math.ceil(target * len(ranked) - 1e-9))
    threshold = max(float(ranked[needed - 1]) * (1 - MARGIN), LEAST_THRESHOLD)
    called = score >= threshold
    negatives = int((~truth).sum())
    return OperatingPoint(
        threshold=threshold,
        target=target,
        sensitivity=float(called[truth].mean()),
        specificity=float((~called[~truth]).mean()) if negatives else math.nan,
    )
