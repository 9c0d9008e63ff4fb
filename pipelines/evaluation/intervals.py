"""95 % intervals of figures: many resamples of the groups at once, in plain NumPy.

A patient's images resemble each other, so groups are drawn, not images (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 8): each draw gives every image the number of times that its group was drawn as a weight, and
all figures are computed from weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.evaluation.metrics import METRIC_NAMES, measure, roc_auc_interval

DRAWS = 2000
CELLS_AT_ONCE = 2_000_000
"""Draws times images that are worked on at once; 16 MB an array."""
_Z = 1.959963984540054
_ROUNDING = 1e-12

Interval = tuple[float, float]
Floats = NDArray[np.float64]


def draw_weights(groups: Sequence[str], draws: int, seed: int) -> Iterator[Floats]:
    """How often each image is drawn when whole groups are, with replacement, as many as there are.

    Args:
        groups: Group of each of N images.
        draws: How many resamples.
        seed: Decides them.

    Yields:
        Blocks `[D, N]` of weights; the Ds sum to `draws`.
    """
    _, member = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    count = int(member.max()) + 1
    random = np.random.default_rng([seed, count])
    at_once = max(1, CELLS_AT_ONCE // len(member))
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        drawn = random.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
        yield drawn[:, member]


def weighted_figures(
    probabilities: ArrayLike, labels: ArrayLike, positive: Sequence[int], weights: Floats
) -> dict[str, Floats]:
    """All figures of `metrics.measure` for each row of weights.

    Args:
        probabilities: `[N, K]`, rows sum to 1.
        labels: Class numbers `[N]`.
        positive: Numbers of the positive classes.
        weights: `[D, N]`, at least 0.

    Returns:
        Figure by name, `[D]`; NaN where a draw does not define it.
    """
    p, truth = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    classes = p.shape[1]
    is_true, is_called = np.eye(classes)[truth], np.eye(classes)[p.argmax(axis=1)]
    hit, true, called = weights @ (is_true * is_called), weights @ is_true, weights @ is_called
    total = weights.sum(axis=1)
    columns = [positive[0]] if classes == 2 else list(range(classes))
    each = [_against_rest(hit[:, one], true[:, one], called[:, one], total) for one in columns]
    ranked = [_ranked(p[:, one], truth == one, weights) for one in columns]
    figures = {name: np.mean([own[name] for own in each], axis=0) for name in each[0]}
    figures["roc_auc"], figures["average_precision"] = (np.mean(both, axis=0) for both in zip(*ranked, strict=True))
    squared = ((p - is_true) ** 2).sum(axis=1) / (2 if classes == 2 else 1)
    surprise = -np.log(np.clip(p[np.arange(len(truth)), truth], 1e-15, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        present = true > 0
        recall = np.where(present, hit / true, 0.0).sum(axis=1)
        figures["balanced_accuracy"] = recall / present.sum(axis=1)
    figures["accuracy"] = hit.sum(axis=1) / total
    figures["mcc"] = _matthews(hit.sum(axis=1), true, called, total)
    figures["brier"], figures["log_loss"] = weights @ squared / total, weights @ surprise / total
    return {name: figures[name] for name in METRIC_NAMES}


def figure_intervals(
    probabilities: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str],
    positive: Sequence[int],
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Interval]:
    """95 % interval of every figure of `metrics.measure`.

    It is the middle 95 % of the resamples. Where few images are wrong those say too little (where none is, nothing):
    so the interval of a proportion is at least Wilson's, and of a ROC AUC of two classes at least Hanley and McNeil's.

    Returns:
        Low and high by name; NaN, NaN where all resamples agree and no formula helps.
    """
    p, truth = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    blocks = [weighted_figures(p, truth, positive, weights) for weights in draw_weights(groups, draws, seed)]
    drawn = {name: middle(np.concatenate([block[name] for block in blocks])) for name in METRIC_NAMES}
    floors = _formulas(p, truth, positive)
    return {name: _hull(own, floors.get(name)) for name, own in drawn.items()}


def wilson(successes: int, trials: int) -> Interval:
    """95 % interval of a proportion (Wilson, J Am Stat Assoc 22 (1927)); 0 to 1 without trials."""
    if trials == 0:
        return 0.0, 1.0
    share, square = successes / trials, _Z**2
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = _Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2)) / (1 + square / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def middle(values: Floats) -> Interval:
    """The middle 95 % of what the draws gave, passing over NaN; NaN, NaN where nothing is left."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def _formulas(p: Floats, truth: NDArray[np.int64], positive: Sequence[int]) -> dict[str, Interval]:
    """Intervals by formula of those figures that have one; images are taken as independent."""
    called = p.argmax(axis=1)
    known = {"accuracy": wilson(int((called == truth).sum()), len(truth))}
    if p.shape[1] != 2:
        return known
    one, said = truth == positive[0], called == positive[0]
    proportions = {
        "sensitivity": (said & one, one),
        "specificity": (~said & ~one, ~one),
        "ppv": (said & one, said),
        "npv": (~said & ~one, ~said),
    }
    counted = {name: (int(part.sum()), int(whole.sum())) for name, (part, whole) in proportions.items()}
    known |= {name: wilson(*counts) for name, counts in counted.items() if counts[1]}
    if one.any() and not one.all():
        area = measure(p, truth, positive)["roc_auc"]
        known["roc_auc"] = roc_auc_interval(area, int(one.sum()), int((~one).sum()))
    return known


def _hull(drawn: Interval, formula: Interval | None) -> Interval:
    if not drawn[1] - drawn[0] > _ROUNDING:
        return formula or (math.nan, math.nan)
    if formula is None:
        return drawn
    return min(drawn[0], formula[0]), max(drawn[1], formula[1])


def _against_rest(hit: Floats, true: Floats, called: Floats, total: Floats) -> dict[str, Floats]:
    """Figures of one class against all others, from weighted counts `[D]`."""
    rest = total - true - called + hit
    return {
        "sensitivity": _share(hit, true),
        "specificity": _share(rest, total - true),
        "ppv": _share(hit, called),
        "npv": _share(rest, total - called),
        "f1": _share(2 * hit, true + called),
    }


def _ranked(score: Floats, truth: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """ROC AUC and average precision `[D]` of one class against the rest; equal scores count half and as one step."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    positive = np.cumsum(weights[:, order] * truth[order], axis=1)[:, last]
    negative = np.cumsum(weights[:, order] * ~truth[order], axis=1)[:, last]
    gained = np.diff(positive, axis=1, prepend=0.0)
    below = negative[:, -1:] - negative + np.diff(negative, axis=1, prepend=0.0) / 2
    area = _share((gained * below).sum(axis=1), positive[:, -1] * negative[:, -1])
    seen = positive + negative
    precision = np.divide(positive, seen, out=np.zeros_like(seen), where=seen > 0)
    return area, _share((gained * precision).sum(axis=1), positive[:, -1])


def _share(part: Floats, whole: Floats) -> Floats:
    shares: Floats = np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)
    return shares


def _matthews(right: Floats, true: Floats, called: Floats, total: Floats) -> Floats:
    """As `metrics`: 0 where only one class is there or called."""
    below = np.sqrt((total**2 - (called**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1)))
    above = right * total - (true * called).sum(axis=1)
    correlation: Floats = np.divide(above, below, out=np.zeros_like(below), where=below > 0)
    return correlation
