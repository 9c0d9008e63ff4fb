"""DeLong's variance of a ROC AUC and of the difference of two on the same images, in O(n log n) by midranks.

DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988); the midranks are Sun and Xu's, IEEE Signal Processing Letters
21 (2014). Images are taken as independent: where a patient has many, intervals and p are too optimistic, and the
bootstrap over groups is what counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Z = 1.959963984540054

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Placements:
    """How the images of each kind stand among those of the other; equal scores count half.

    Attributes:
        below: Negatives that score lower than each positive image, `[P]`, whole and half numbers.
        above: Positives that score higher than each negative image, `[M]`.
    """

    below: Floats
    above: Floats

    @property
    def area(self) -> float:
        """ROC AUC; NaN where one kind is missing."""
        pairs = len(self.below) * len(self.above)
        return float(self.below.sum() / pairs) if pairs else math.nan


@dataclass(frozen=True)
class AreaDifference:
    """Two ROC AUCs of the same images.

    Attributes:
        difference: The first minus the second; NaN where one kind is missing.
        low: Lower end of its 95 % interval, by the normal approximation; NaN where there is no variance.
        high: Upper end.
        z: Difference in standard errors; NaN where there is no variance.
        p: Two-sided probability of a difference as large if there were none; NaN where there is no variance.
    """

    difference: float
    low: float
    high: float
    z: float
    p: float


def place(score: ArrayLike, truth: ArrayLike) -> Placements:
    """Placement values from midranks.

    Args:
        score: `[N]`.
        truth: Which images are positive, bool `[N]`.
    """
    from scipy.stats import rankdata

    given, positive = np.asarray(score, np.float64), np.asarray(truth, bool)
    own, others = given[positive], given[~positive]
    of_all = rankdata(given)
    return Placements(of_all[positive] - rankdata(own), len(own) - of_all[~positive] + rankdata(others))


def delong_interval(score: ArrayLike, truth: ArrayLike) -> tuple[float, float]:
    """95 % interval of a ROC AUC.

    It is made on the scale of the logit and turned back, so it lies within 0 and 1 and covers better near them (Pepe,
    The Statistical Evaluation of Medical Tests, 2003, section 5.2).

    Args:
        score: `[N]`.
        truth: Which images are positive, bool `[N]`.

    Returns:
        Low and high; NaN, NaN where fewer than two images of a kind are there, or the variance is 0 (an area of
        exactly 0 or 1 among them).
    """
    placed = place(score, truth)
    variance, area = _variance(placed.below, placed.above), placed.area
    if not variance > 0:
        return math.nan, math.nan
    centre, half = math.log(area / (1 - area)), _Z * math.sqrt(variance) / (area * (1 - area))
    return _expit(centre - half), _expit(centre + half)


def delong_difference(score_a: ArrayLike, score_b: ArrayLike, truth: ArrayLike) -> AreaDifference:
    """The difference of two models' ROC AUCs on the same images, and whether it can be told from none.

    Args:
        score_a: The first model's, `[N]`.
        score_b: The second model's, `[N]`.
        truth: Which images are positive, bool `[N]`.
    """
    from scipy.stats import norm

    first, second = place(score_a, truth), place(score_b, truth)
    difference = first.area - second.area
    variance = _variance(first.below - second.below, first.above - second.above)
    if not variance > 0:
        return AreaDifference(difference, math.nan, math.nan, math.nan, math.nan)
    error = math.sqrt(variance)
    z = difference / error
    low, high = max(-1.0, difference - _Z * error), min(1.0, difference + _Z * error)
    return AreaDifference(difference, low, high, z, float(2 * norm.sf(abs(z))))


def _variance(below: Floats, above: Floats) -> float:
    """Of an area, or of a difference of areas, from (differences of) placements; NaN where a kind has fewer than 2."""
    positives, negatives = len(below), len(above)
    if min(positives, negatives) < 2:
        return math.nan
    return _spread(below) / negatives**2 / positives + _spread(above) / positives**2 / negatives


def _spread(values: Floats) -> float:
    """Sample variance; whole and half numbers minus one of them are exact, so equal ones give exactly 0."""
    return float(np.var(values - values[0], ddof=1))


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
