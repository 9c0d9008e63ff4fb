"""Curves: ROC, precision and recall, reliability, and net benefit. Plain NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.evaluation.intervals import wilson

BINS = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """One point of a reliability diagram.

    Attributes:
        n: Images.
        mean_predicted: Their mean probability.
        observed: Share of them that are positive.
        low: Wilson's 95 % interval of that share.
        high: Its upper end.
    """

    n: int
    mean_predicted: float
    observed: float
    low: float
    high: float


def roc_curve(score: ArrayLike, truth: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """The ROC curve: a point for each distinct score, called positive from it on, and (0, 0) at infinity before.

    Args:
        score: `[N]`.
        truth: Which are positive, bool `[N]`.

    Returns:
        False positive rate, sensitivity and threshold, falling; empty where one kind is missing.
    """
    hits, others, threshold = _called(score, truth)
    if not len(hits) or not hits[-1] or not others[-1]:
        return np.empty(0), np.empty(0), np.empty(0)
    return _after(0, others / others[-1]), _after(0, hits / hits[-1]), _after(np.inf, threshold)


def precision_recall_curve(score: ArrayLike, truth: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Recall and precision: a point for each distinct score, and (0, 1) at infinity before, where nothing is called.

    Args:
        score: `[N]`.
        truth: Which are positive, bool `[N]`.

    Returns:
        Recall, precision and threshold, falling; empty where none is positive.
    """
    hits, others, threshold = _called(score, truth)
    if not len(hits) or not hits[-1]:
        return np.empty(0), np.empty(0), np.empty(0)
    return _after(0, hits / hits[-1]), _after(1, hits / (hits + others)), _after(np.inf, threshold)


def _after(first: float, rest: Floats) -> Floats:
    return np.concatenate([np.array([first]), rest])


def _called(score: ArrayLike, truth: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Positives and negatives that score at least a threshold, and the thresholds: the distinct scores, falling."""
    given, positive = np.asarray(score, np.float64), np.asarray(truth, bool)
    order = np.argsort(-given, kind="stable")
    ranked, kind = given[order], positive[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.empty(0, np.intp)
    return np.cumsum(kind)[last].astype(np.float64), np.cumsum(~kind)[last].astype(np.float64), ranked[last]


def equal_mass_bins(score: ArrayLike, bins: int = BINS) -> NDArray[np.int64]:
    """The bin of each score: about as many in each, equal scores in one; so there may be fewer bins than asked for.

    Args:
        score: `[N]`.
        bins: How many at most.

    Returns:
        int64 `[N]`, from 0, rising with the score; none is empty.
    """
    _, place, counts = np.unique(np.asarray(score, np.float64), return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(counts) - counts / 2
    return np.unique(np.floor(middle_rank * bins / counts.sum()), return_inverse=True)[1][place]


def reliability_bins(p: ArrayLike, truth: ArrayLike, bins: int = BINS) -> list[Bin]:
    """How often it is so where the model says it is likely so: in bins of equal mass.

    Args:
        p: Probability of the positive classes, `[N]`.
        truth: Which are positive, bool `[N]`.
        bins: How many at most; equal probabilities share one.
    """
    said, positive = np.asarray(p, np.float64), np.asarray(truth, bool)
    if not len(said):
        return []
    place = equal_mass_bins(said, bins)
    counts, hits, sums = np.bincount(place), np.bincount(place, positive), np.bincount(place, said)
    return [
        Bin(int(n), float(total / n), float(hit / n), *wilson(int(hit), int(n)))
        for n, hit, total in zip(counts, hits, sums, strict=True)
    ]


def decision_curve(p: ArrayLike, truth: ArrayLike, thresholds: ArrayLike) -> tuple[Floats, Floats]:
    """Net benefit of the model and of treating everybody (Vickers and Elkin, Med Decis Making 26 (2006)).

    At threshold t that is the share of true positives less the share of false ones times t / (1 - t): what a false
    alarm weighs to one who would treat at a chance of t. Treating nobody has none.

    Args:
        p: Probability of the positive classes, `[N]`, N at least 1.
        truth: Which are positive, bool `[N]`.
        thresholds: `[T]`, at least 0 and below 1; an image is treated where `p >= threshold`.

    Returns:
        Of the model and of treating all, `[T]` each.
    """
    said, positive, at = np.asarray(p, np.float64), np.asarray(truth, bool), np.asarray(thresholds, np.float64)
    odds, n = at / (1 - at), len(said)
    hits, others = (np.sort(said[kind]) for kind in (positive, ~positive))
    true, false = (len(kind) - np.searchsorted(kind, at, "left") for kind in (hits, others))
    return true / n - false / n * odds, len(hits) / n - len(others) / n * odds
