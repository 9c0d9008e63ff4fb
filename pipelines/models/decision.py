"""From a probability to a decision: the one rule that scoring, questions and reports share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.errors import UsageError

DECISIONS = ("negative", "refer", "positive")
ABOVE_ALL = 1.00001
"""A `refer_high` that no probability reaches: nothing is called positive."""


def sum_positive(
    probabilities: Sequence[float] | NDArray[Any], classes: Sequence[str], positive_classes: Sequence[str]
) -> float:
    """`p_positive`: the sum over the positive classes, 0-1.

    Args:
        probabilities: [K], in the order of `classes`.
        classes: Names.
        positive_classes: Some of them.
    """
    total = sum(float(probabilities[classes.index(name)]) for name in positive_classes)
    return min(total, 1.0)


def limits(fitted: Mapping[str, Any]) -> tuple[float, float]:
    """Where `negative` ends and where `positive` begins; equal where no refer band was fitted.

    Args:
        fitted: One unit of a bundle's thresholds: `threshold`, and `refer_low` and `refer_high` or neither.
    """
    low, high = fitted.get("refer_low"), fitted.get("refer_high")
    if low is None or high is None:
        return float(fitted["threshold"]), float(fitted["threshold"])
    return float(low), float(high)


def check_fitted(unit: str, fitted: Mapping[str, Any]) -> None:
    """Refuse a unit of a bundle's thresholds that no decision could be taken by.

    Args:
        unit: Its name, for messages.
        fitted: What stands there: `threshold`, and `refer_low` and `refer_high` or neither.

    Raises:
        UsageError: If a number is missing or out of range, or the band does not hold the threshold.
    """
    threshold, low, high = (fitted.get(name) for name in ("threshold", "refer_low", "refer_high"))
    if not _is_number(threshold) or not 0 <= threshold <= 1:
        raise UsageError(f"The threshold {threshold!r} of {unit!r} is not a number between 0 and 1.")
    if low is None and high is None:
        return
    if not (_is_number(low) and _is_number(high) and 0 <= low <= threshold <= high <= ABOVE_ALL):
        raise UsageError(
            f"The refer band {low!r} to {high!r} of {unit!r} is no range around the threshold {threshold}."
        )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def decide(p_positive: ArrayLike, fitted: Mapping[str, Any]) -> NDArray[np.str_]:
    """`negative` below the band, `positive` from its upper end on, `refer` within; without a band nobody is referred.

    Args:
        p_positive: Probabilities of the positive classes, `[N]`.
        fitted: One unit of a bundle's thresholds.

    Returns:
        Words of `DECISIONS`, `[N]`.
    """
    score = np.asarray(p_positive, np.float64)
    low, high = limits(fitted)
    return np.where(score >= high, "positive", np.where(score >= low, "refer", "negative"))
