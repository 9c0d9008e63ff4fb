"""From a probability to a decision: the one rule that scoring, questions and reports share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

DECISIONS = ("negative", "refer", "positive")


def limits(fitted: Mapping[str, Any]) -> tuple[float, float]:
    """Where `negative` ends and where `positive` begins; equal where no refer band was fitted.

    Args:
        fitted: One unit of a bundle's thresholds: `threshold`, and `refer_low` and `refer_high` or neither.
    """
    low, high = fitted.get("refer_low"), fitted.get("refer_high")
    if low is None or high is None:
        return float(fitted["threshold"]), float(fitted["threshold"])
    return float(low), float(high)


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
