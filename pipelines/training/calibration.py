"""What is fitted on validation after the weights: one temperature and one threshold. Plain NumPy, no TensorFlow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.errors import UsageError

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
LEAST_MARGIN = 1e-6
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


def probabilities(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Softmax of `logits / temperature`; float64 `[N, K]`, rows sum to 1."""
    scaled = np.asarray(logits, np.float64) / temperature
    raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float64)


def log_loss(logits: ArrayLike, labels: ArrayLike, temperature: float = 1.0) -> float:
    """Mean negative log likelihood of the true classes, natural logarithm."""
    scaled = np.asarray(logits, np.float64) / temperature
    top = scaled.max(axis=1, keepdims=True)
    norm = top[:, 0] + np.log(np.exp(scaled - top).sum(axis=1))
    true = scaled[np.arange(len(scaled)), np.asarray(labels, np.int64)]
    return float(np.mean(norm - true))


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature of least validation log loss (Guo et al., ICML 2017), between 0.05 and 20.

    Dividing all logits by one number changes no order and no predicted class.

    Args:
        logits: `[N, K]`.
        labels: Class numbers `[N]`.
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: log_loss(logits, labels, math.exp(log_t)),
        bounds=(math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(found.x))


def fit_threshold(
    p_positive: ArrayLike, is_positive: ArrayLike, target: float = 0.95, margin: float = 0.0
) -> OperatingPoint:
    """The largest threshold whose sensitivity on validation is at least `target`.

    With n positive images and k = ceil(target · n), that is the k-th highest `p_positive` of a positive image. Ties
    need no rule of their own: images of equal `p_positive` fall on the same side, and the positive ones among them
    only add to sensitivity. The value is lowered by the margin, a share of itself, so that an image exactly at the
    threshold stays positive however the last bits of a float32 fall; that cannot lower the sensitivity. It is never 0,
    which would call everything positive; where `p_positive` itself is 0 the target is therefore missed.

    Args:
        p_positive: Calibrated probability of the positive classes, `[N]`.
        is_positive: Truth, bool `[N]`.
        target: Sensitivity wanted, above 0 and at most 1.
        margin: How far another computation of `p_positive` may lie from this one, relative to it; at least 1e-6 is
            taken.

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
    threshold = max(float(ranked[needed - 1]) * (1 - max(margin, LEAST_MARGIN)), LEAST_THRESHOLD)
    called = score >= threshold
    negatives = int((~truth).sum())
    return OperatingPoint(
        threshold=threshold,
        target=target,
        sensitivity=float(called[truth].mean()),
        specificity=float((~called[~truth]).mean()) if negatives else math.nan,
    )
