"""95 % intervals of figures from resamples of the groups, and by formula where those say nothing.

The middle 95 % of the resamples holds the truth of a share or of a ROC AUC too seldom in studies of usual size: near 0
and 1 it lies too near to what the study happened to find. So these take the spread from the resamples and the form from
Wilson. `tests/benchmarks/bench_intervals.py` shows how often that holds the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.evaluation.metrics import METRIC_NAMES, measure, roc_auc_interval, weighted_figures
from pipelines.evaluation.resampling import DRAWS, Counts, Floats, Groups, Key, form_groups, resample

_Z = 1.959963984540054
_ROUNDING = 1e-12

Interval = tuple[float, float]
NO_INTERVAL: Interval = (math.nan, math.nan)
SHARES = frozenset(
    {
        "roc_auc",
        "average_precision",
        "sensitivity",
        "specificity",
        "ppv",
        "npv",
        "accuracy",
        "balanced_accuracy",
        "f1",
        "referred",
    }
)
"""Figures between 0 and 1 that near the ends vary as a share does: as θ (1 - θ)."""


@dataclass(frozen=True)
class Basis:
    """What a figure rests on, beside the draws.

    Attributes:
        groups: How many groups count for it; of a figure of two kinds, those of the rarer.
        alone: What a formula says, taking each group as one image: the interval where all draws agree, for nothing is
            known then of how alike the images of a group are. NaN, NaN where there is no formula.
    """

    groups: int
    alone: Interval = NO_INTERVAL


def figure_intervals(
    probabilities: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str],
    positive: Sequence[int],
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Interval]:
    """95 % interval of every figure of `metrics.measure`, as `of_draws` makes it.

    Returns:
        Low and high by name; NaN, NaN where all resamples agree and no formula helps.
    """
    p, truth = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    formed, figures = form_groups(groups, truth), measure(p, truth, positive)

    def compute(counts: Counts) -> dict[Key, Floats]:
        found = weighted_figures(p, truth, positive, counts[:, formed.member])
        return {(name,): values for name, values in found.items()}

    drawn, called = resample(formed, compute, draws, seed), p.argmax(axis=1)
    known = {"accuracy": of_share(called == truth, np.ones(len(truth), bool), formed)}
    if p.shape[1] == 2:
        known |= of_binary(truth == positive[0], called == positive[0], formed)
        known |= of_ranking(figures["roc_auc"], truth == positive[0], formed)
    return {name: of_draws(name, drawn[(name,)], figures[name], known.get(name)) for name in METRIC_NAMES}


def of_draws(name: str, values: Floats, figure: float, basis: Basis | None = None) -> Interval:
    """The interval that resamples give.

    Of a share, Wilson's interval at the effective number of images: at as many independent ones as would give the
    variance that the draws have. That variance is taken times n / (n - 1), n the groups, and Student's t for the
    normal quantile, because few groups know little of their own variance.

    Of any other figure, the middle 95 %. Of a calibration error, as far down as those go up, and not below 0: chance
    makes every calibration error larger, that of a draw once more than the study's, so the draws alone would deny that
    any model is well calibrated.

    Args:
        name: Of the figure; those of `SHARES` are shares.
        values: What the draws gave, `[D]`; NaN is passed over.
        figure: Of the whole sample, not NaN.
        basis: What it rests on, where that is known.
    """
    defined = values[~np.isnan(values)]
    alone = basis.alone if basis else NO_INTERVAL
    if not len(defined) or np.ptp(defined) <= _ROUNDING:
        return alone
    if name == "calibration_error":
        high = middle(defined)[1]
        return max(0.0, 2 * figure - high), high
    if name not in SHARES or not 0 < figure < 1:
        return middle(defined)
    if basis and basis.groups < 2:
        return alone
    variance = float(defined.var()) * (_widening(basis.groups) if basis else 1)
    effective = figure * (1 - figure) / variance
    return wilson(figure * effective, effective)


def _widening(groups: int) -> float:
    """What the variance of the draws is taken times."""
    from scipy.special import stdtrit

    return float((stdtrit(groups - 1, 0.975) / _Z) ** 2 * groups / (groups - 1))


def middle(values: Floats) -> Interval:
    """The middle 95 % of what the draws gave, passing over NaN; NaN, NaN where nothing is left."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return NO_INTERVAL
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def wilson(successes: float, trials: float) -> Interval:
    """95 % interval of a proportion (Wilson, J Am Stat Assoc 22 (1927)); 0 to 1 without trials."""
    if trials == 0:
        return 0.0, 1.0
    part, square = successes / trials, _Z**2
    centre = (part + square / (2 * trials)) / (1 + square / trials)
    half = _Z * math.sqrt(part * (1 - part) / trials + square / (4 * trials**2)) / (1 + square / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def of_share(part: NDArray[np.bool_], whole: NDArray[np.bool_], groups: Groups) -> Basis:
    """What the share of some images that are so rests on.

    Args:
        part: Which of the N images are so.
        whole: Which are counted.
        groups: Theirs.
    """
    held = _groups_of(whole, groups)
    return Basis(held, wilson(float((part & whole).sum() / whole.sum()) * held, held)) if held else Basis(0)


def of_binary(
    truth: NDArray[np.bool_], called: NDArray[np.bool_], groups: Groups, among: NDArray[np.bool_] | None = None
) -> dict[str, Basis]:
    """What sensitivity, specificity, PPV, NPV and F1 rest on, by name.

    Args:
        truth: Which of the N images are positive.
        called: Which are called positive.
        groups: Theirs.
        among: Which are counted at all; None for all.
    """
    counted = np.ones(len(truth), bool) if among is None else among
    return {
        "sensitivity": of_share(called, truth & counted, groups),
        "specificity": of_share(~called, ~truth & counted, groups),
        "ppv": of_share(truth, called & counted, groups),
        "npv": of_share(~truth, ~called & counted, groups),
        "f1": Basis(_groups_of((truth | called) & counted, groups)),
    }


def of_ranking(area: float, truth: NDArray[np.bool_], groups: Groups) -> dict[str, Basis]:
    """What a ROC AUC (alone: Hanley and McNeil's interval) and average precision rest on, by name.

    Args:
        area: The ROC AUC.
        truth: Which of the N images are positive.
        groups: Theirs.
    """
    positive, negative = _groups_of(truth, groups), _groups_of(~truth, groups)
    alone = roc_auc_interval(area, positive, negative) if positive and negative else NO_INTERVAL
    return {"roc_auc": Basis(min(positive, negative), alone), "average_precision": Basis(positive)}


def _groups_of(rows: NDArray[np.bool_], groups: Groups) -> int:
    return len(np.unique(groups.member[rows]))
