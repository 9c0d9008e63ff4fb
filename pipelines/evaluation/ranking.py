"""ROC AUC and average precision of many resamples: scores are sorted once, and each resample is a pass of sums."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.evaluation.resampling import Counts

CELLS_AT_ONCE = 1 << 17
"""Draws times images that are ranked at once: what a core's own cache holds."""

Floats = NDArray[np.float64]


class Ranking:
    """How the images of one kind stand among the others by a score; equal scores count half, and as one step.

    Args:
        score: `[N]`, any order.
        is_positive: bool `[N]`.
        member: Which column of the counts weighs each image, int `[N]`.
    """

    def __init__(self, score: ArrayLike, is_positive: ArrayLike, member: NDArray[np.intp]) -> None:
        falling, truth = -np.asarray(score, np.float64), np.asarray(is_positive, bool)
        order = np.argsort(falling, kind="stable")
        positive, negative = order[truth[order]], order[~truth[order]]
        self._positive, self._negative = member[positive], member[negative]
        # Of each positive image: negatives that score higher, negatives and positives that score at least as high.
        self._above = np.searchsorted(falling[negative], falling[positive], "left")
        self._level = np.searchsorted(falling[negative], falling[positive], "right")
        self._alike = np.searchsorted(falling[positive], falling[positive], "right")

    def areas(self, counts: Counts) -> tuple[Floats, Floats]:
        """ROC AUC (the share of pairs in the right order) and average precision (the sum of precision times gain).

        Args:
            counts: `[D, G]`, how often each is taken.

        Returns:
            Both `[D]`; NaN where a draw has none of a kind that they need.
        """
        at_once = max(1, CELLS_AT_ONCE // max(1, len(self._positive) + len(self._negative)))
        parts = [self._areas(counts[start : start + at_once]) for start in range(0, len(counts), at_once)]
        area, precision = zip(*parts, strict=True)
        return np.concatenate(area), np.concatenate(precision)

    def _areas(self, counts: Counts) -> tuple[Floats, Floats]:
        weight = counts.take(self._positive, axis=1)
        hits, others = _running(weight), _running(counts.take(self._negative, axis=1))
        level = others.take(self._level, axis=1)
        whole, rest = hits[:, -1].astype(np.float64), others[:, -1].astype(np.float64)
        before = np.einsum("ij,ij->i", weight, others.take(self._above, axis=1) + level)
        seen = hits.take(self._alike, axis=1)
        precision = seen / np.maximum(seen + level, 1e-300)
        gained = np.einsum("ij,ij->i", weight, precision)
        with np.errstate(invalid="ignore", divide="ignore"):
            pairs = whole * rest
            return np.where(pairs > 0, 1 - before / (2 * pairs), np.nan), np.where(whole > 0, gained / whole, np.nan)


def _running(weight: NDArray[Any]) -> NDArray[Any]:
    """Running sums with a leading 0, `[D, N + 1]`; whole numbers stay whole."""
    kind = np.int64 if weight.dtype.kind in "iu" else np.float64
    summed = np.zeros((len(weight), weight.shape[1] + 1), kind)
    np.cumsum(weight, axis=1, out=summed[:, 1:])
    return summed
