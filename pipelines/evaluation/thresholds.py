"""Where a probability becomes a decision: what is fitted on validation, and frozen in the bundle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.errors import UsageError
from pipelines.models.decision import ABOVE_ALL

MARGIN = 1e-5
LEAST_THRESHOLD = float(np.finfo(np.float32).tiny)
# What a share may lack of its target for the last bits of its quotient.
_ROUNDING = 1e-9

Floats = NDArray[np.float64]
Truth = NDArray[np.bool_]


@dataclass(frozen=True)
class ReferBand:
    """The range of `p_positive` in which a case is handed to a person, and what stands outside of it on validation.

    Attributes:
        low: Where `negative` ends; 0 where nothing is called negative.
        high: Where `positive` begins; `ABOVE_ALL` where nothing is called positive.
        target_specificity: The specificity that was asked for.
        cases: How many it was fitted to.
        referred: How many of them lie within.
        referred_positive: How many of those are positive.
        decided_positives: Positive ones outside.
        decided_negatives: Negative ones outside.
        sensitivity: Share of `decided_positives` called positive; NaN where there are none.
        specificity: Share of `decided_negatives` called negative; NaN where there are none.
    """

    low: float
    high: float
    target_specificity: float
    cases: int
    referred: int
    referred_positive: int
    decided_positives: int
    decided_negatives: int
    sensitivity: float
    specificity: float

    def record(self) -> dict[str, Any]:
        """As it stands in the bundle, beside the threshold."""
        return {
            "refer_low": self.low,
            "refer_high": self.high,
            "target_specificity": self.target_specificity,
            "cases": self.cases,
            "referred": self.referred,
            "referred_positive": self.referred_positive,
            "decided": {
                "positives": self.decided_positives,
                "negatives": self.decided_negatives,
                "sensitivity": self.sensitivity,
                "specificity": self.specificity,
            },
        }


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold of `p_positive`, the refer band around it, and what they reach on validation.

    Attributes:
        threshold: Without a band a case is positive where `p_positive >= threshold`.
        target: The sensitivity that was asked for.
        sensitivity: Share of the positive validation cases at or above the threshold.
        specificity: Share of the negative ones below it.
        band: Where a case is referred; None where no band was fitted.
    """

    threshold: float
    target: float
    sensitivity: float
    specificity: float
    band: ReferBand | None = None

    def record(self) -> dict[str, Any]:
        """As it stands in the bundle."""
        return {
            "threshold": self.threshold,
            "target_sensitivity": self.target,
            "sensitivity": self.sensitivity,
            "specificity": self.specificity,
            "fitted_on": "validation",
            **(self.band.record() if self.band else {}),
        }


def sum_positive(answers: NDArray[np.float32], positive: Sequence[int]) -> Floats:
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
    check_target("The target sensitivity", target)
    score, truth = np.asarray(p_positive, np.float64), np.asarray(is_positive, bool)
    if not truth.any():
        raise UsageError("No validation image is positive, so no threshold can be fitted.", "Add positive images.")
    ranked = np.sort(score[truth])[::-1]
    needed = max(1, math.ceil(target * len(ranked) - _ROUNDING))
    threshold = max(float(ranked[needed - 1]) * (1 - MARGIN), LEAST_THRESHOLD)
    called = score >= threshold
    return OperatingPoint(
        threshold=threshold,
        target=target,
        sensitivity=float(called[truth].mean()),
        specificity=float((~called[~truth]).mean()) if not truth.all() else math.nan,
    )


def fit_point(
    p_positive: ArrayLike, is_positive: ArrayLike, target_sensitivity: float = 0.95, target_specificity: float = 0.95
) -> OperatingPoint:
    """The threshold of `fit_threshold`, and around it the refer band that hands the fewest cases to a person.

    Of all bands [low, high) with low <= threshold <= high, the one with the fewest validation cases within such that
    outside of it both targets are reached: of the positive cases at least `target_sensitivity` are called positive, of
    the negative ones at least `target_specificity` negative. A target holds where no case of its kind is decided. Of
    equally good bands the lowest one is taken, which misses the fewest positive cases; where nobody needs to be
    referred both limits are the threshold.

    For each low end the sensitivity outside only falls with a higher end and the specificity only rises, so the best
    upper end is the least one that reaches the specificity, or there is none: O(n log n) in all. Both ends are cuts
    just below a case (by 1e-5 of its value, as the threshold is), so that a float32 at an end falls to the safer side
    everywhere: to `positive` at the upper end, to `refer` at the lower.

    Args:
        p_positive: Calibrated probability of the positive classes, `[N]`, 0-1.
        is_positive: Truth, bool `[N]`.
        target_sensitivity: Above 0 and at most 1.
        target_specificity: Above 0 and at most 1.

    Raises:
        UsageError: If a target is out of range, or no case is positive.
    """
    check_target("The target specificity", target_specificity)
    point = fit_threshold(p_positive, is_positive, target_sensitivity)
    score, truth = np.asarray(p_positive, np.float64), np.asarray(is_positive, bool)
    low, high = _least_band(score, truth, point.threshold, target_sensitivity, target_specificity)
    within = (score >= low) & (score < high)
    if not within.any():
        low = high = point.threshold
    called = score >= high
    positives, negatives = truth & ~within, ~truth & ~within
    band = ReferBand(
        low=low,
        high=high,
        target_specificity=target_specificity,
        cases=len(score),
        referred=int(within.sum()),
        referred_positive=int((within & truth).sum()),
        decided_positives=int(positives.sum()),
        decided_negatives=int(negatives.sum()),
        sensitivity=float(called[positives].mean()) if positives.any() else math.nan,
        specificity=float((~called[negatives]).mean()) if negatives.any() else math.nan,
    )
    return OperatingPoint(point.threshold, point.target, point.sensitivity, point.specificity, band)


def fit_alike(point: OperatingPoint, p_positive: ArrayLike, is_positive: ArrayLike) -> OperatingPoint:
    """Fit other answers to the targets of a point; without a band where it has none."""
    if point.band is None:
        return fit_threshold(p_positive, is_positive, point.target)
    return fit_point(p_positive, is_positive, point.target, point.band.target_specificity)


def check_target(name: str, target: float) -> None:
    """Refuse a target that no threshold could have.

    Args:
        name: What the message calls it.
        target: Its value.

    Raises:
        UsageError: If it is not above 0 and at most 1.
    """
    if not 0 < target <= 1:
        raise UsageError(f"{name} must be above 0 and at most 1; it is {target}.", "Say 0.95.")


def _least_band(
    score: Floats, truth: Truth, threshold: float, sensitivity: float, specificity: float
) -> tuple[float, float]:
    """The ends of the feasible band around the threshold with the fewest cases within; the lowest of equals."""
    positives, negatives, every = np.sort(score[truth]), np.sort(score[~truth]), np.sort(score)
    # A cut below the least case says nothing of what lies lower: there, nothing is negative. Above the last, likewise.
    cuts = np.unique(np.append(every[every > every[0]] * (1 - MARGIN), threshold))
    lows = np.append(0.0, cuts[cuts <= threshold])
    highs = np.append(cuts[cuts >= threshold], ABOVE_ALL)
    missed, right = np.searchsorted(positives, lows), np.searchsorted(negatives, lows)
    # Called positive: falling with the upper end.
    found = len(positives) - np.searchsorted(positives, highs)
    wrong = len(negatives) - np.searchsorted(negatives, highs)
    # Wrong calls that so many right ones allow; the first upper end with as few.
    bearable = right * (1 - specificity) / specificity + _ROUNDING * len(score)
    first = np.searchsorted(-wrong, -bearable)
    reached = found[first] * (1 - sensitivity) + _ROUNDING * len(score) >= sensitivity * missed
    within = np.searchsorted(every, highs[first]) - np.searchsorted(every, lows)
    best = int(np.argmin(np.where(reached, within, len(score) + 1)))
    return float(lows[best]), float(highs[first[best]])
