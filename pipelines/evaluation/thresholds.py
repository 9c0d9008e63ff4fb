"""Where a probability becomes a decision: what is fitted on validation, and frozen in the bundle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.errors import UsageError

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


def sum_positive(answers: NDArray[np.float32], positive: Sequence[int]) -> NDArray[np.float64]:
    """`p_positive` `[N]` as `score` compares it with the threshold: summed in double precision, kept in single."""
    summed = answers[:, list(positive)].astype(np.float64).sum(axis=1)
    return np.asarray(np.minimum(summed, 1.0).astype(np.float32), np.float64)


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
