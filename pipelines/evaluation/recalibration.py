"""Calibration slope and intercept: the logistic recalibration of probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST = 1e-7
"""How near to 0 and 1 a probability is taken to be at most, so that it has a logit: about what a float32 resolves."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Recalibration:
    """logit P(positive) = intercept + slope · logit(p), fitted by maximum likelihood (Cox, Biometrika 45 (1958)).

    Slope 1 and intercept 0 is calibrated; a slope below 1 means probabilities that are too near to 0 and 1.

    Attributes:
        intercept: NaN where there is none.
        slope: NaN where there is none.
        reason: Why there is none; "" where there is.
    """

    intercept: float
    slope: float
    reason: str = ""


def logits(p: ArrayLike) -> Floats:
    """log(p / (1 - p)), p held within `LEAST` and 1 - `LEAST`."""
    held = np.clip(np.asarray(p, np.float64), LEAST, 1 - LEAST)
    return np.asarray(np.log(held) - np.log1p(-held), np.float64)


def fit_recalibration(p: ArrayLike, truth: ArrayLike) -> Recalibration:
    """Newton's method, with steps halved where the likelihood would fall.

    Args:
        p: Probabilities, `[N]`.
        truth: Which are positive, bool `[N]`.
    """
    x, y = logits(p), np.asarray(truth, bool)
    reason = _unfit(x, y)
    if reason:
        return Recalibration(math.nan, math.nan, reason)
    # About the middle and by the spread, so that the two unknowns hardly depend on each other.
    centre, spread = float(x.mean()), float(x.std())
    z = (x - centre) / spread
    beta = np.zeros(2)
    for _ in range(100):
        step, likelihood = _newton_step(z, y, beta), _likelihood(z, y, beta)
        while _likelihood(z, y, beta + step) < likelihood and np.abs(step).max() > 1e-12:
            step = step / 2
        beta = beta + step
        if np.abs(step).max() < 1e-12:
            break
    return Recalibration(float(beta[0] - beta[1] * centre / spread), float(beta[1] / spread))


def _unfit(x: Floats, y: NDArray[np.bool_]) -> str:
    if not y.any() or y.all():
        return "it takes both kinds, and there is only one"
    if np.ptp(x) == 0:
        return "all probabilities are equal"
    if x[y].min() >= x[~y].max() or x[y].max() <= x[~y].min():
        return "the two kinds are told apart without an overlap"
    return ""


def _likelihood(x: Floats, y: NDArray[np.bool_], beta: Floats) -> float:
    linear = beta[0] + beta[1] * x
    return float(np.where(y, linear, 0).sum() - np.logaddexp(0, linear).sum())


def _newton_step(x: Floats, y: NDArray[np.bool_], beta: Floats) -> Floats:
    first, by_x, same, mixed, square = newton_columns(x, y, float(beta[0]), float(beta[1])).sum(axis=0)
    step: Floats = np.linalg.solve(np.array([[same, mixed], [mixed, square]]), np.array([first, by_x]))
    return step


def newton_columns(x: ArrayLike, truth: ArrayLike, intercept: float, slope: float) -> Floats:
    """What each image adds to the gradient (2) and to the curvature (3: 1, x, x²) of the likelihood, `[N, 5]`."""
    given = np.asarray(x, np.float64)
    said = 1 / (1 + np.exp(-np.clip(intercept + slope * given, -700, 700)))
    off, weight = np.asarray(truth, bool) - said, said * (1 - said)
    return np.stack([off, off * given, weight, weight * given, weight * given**2], axis=1)


def one_step(summed: Floats, fitted: Recalibration) -> tuple[Floats, Floats]:
    """Intercept and slope of resamples by one step of Newton's method from the fit to all images.

    A whole fit to each resample would take as long as everything else together; the step is off by what is of order
    1 / n, and stays finite where a resample happens to be separable.

    Args:
        summed: `newton_columns` at the fit, summed over each resample, `[D, 5]`.
        fitted: To all images.

    Returns:
        Intercept and slope, `[D]`; NaN where a resample has no spread.
    """
    first, by_x, same, mixed, square = summed.T
    below = same * square - mixed**2
    with np.errstate(invalid="ignore", divide="ignore"):
        usable = below > 1e-12 * np.maximum(same * square, 1e-300)
        intercept = np.where(usable, fitted.intercept + (square * first - mixed * by_x) / below, np.nan)
        slope = np.where(usable, fitted.slope + (same * by_x - mixed * first) / below, np.nan)
    return intercept, slope
