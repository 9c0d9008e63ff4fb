"""Probabilities from logits, and the one temperature that is fitted on validation. Plain NumPy, no TensorFlow."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0


def class_logits(logits: ArrayLike) -> NDArray[np.float64]:
    """One logit for each class, float64 `[N, K]`; a single one, `[N, 1]`, is that of the second of two classes."""
    given = np.asarray(logits, np.float64)
    return np.concatenate([np.zeros_like(given), given], axis=1) if given.shape[1] == 1 else given


def probabilities(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Softmax of `logits / temperature`.

    Args:
        logits: `[N, K]`, or `[V, N, K]` of V views of each image, whose probabilities are averaged.
        temperature: What they are divided by.

    Returns:
        float64 `[N, K]`, rows sum to 1.
    """
    raised = np.exp(_log_probabilities(logits, temperature))
    return np.asarray(raised if raised.ndim == 2 else raised.mean(axis=0), np.float64)


def log_loss(logits: ArrayLike, labels: ArrayLike, temperature: float = 1.0) -> float:
    """Mean negative log likelihood of the true classes, natural logarithm; logits as in `probabilities`."""
    numbers = np.asarray(labels, np.int64)
    return float(-_mean_log(logits, temperature)[np.arange(len(numbers)), numbers].mean())


def _mean_log(logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """Logarithm of `probabilities`, `[N, K]`."""
    each = _log_probabilities(logits, temperature)
    return each if each.ndim == 2 else np.logaddexp.reduce(each, axis=0) - math.log(len(each))


def _log_probabilities(logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    scaled = np.asarray(logits, np.float64) / temperature
    return np.asarray(scaled - np.logaddexp.reduce(scaled, axis=-1, keepdims=True), np.float64)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature of least validation log loss (Guo et al., ICML 2017), between 0.05 and 20.

    The n images of a class are taken to be of it with 1 - 1 / (n + 2) only, and of any other with the rest (Platt,
    1999): a few images that are all told apart do not bear out probabilities of 0 and 1. Dividing all logits by one
    number changes no predicted class.

    Args:
        logits: As in `probabilities`.
        labels: Class numbers `[N]`.
    """
    from scipy.optimize import minimize_scalar

    numbers = np.asarray(labels, np.int64)
    classes = np.shape(logits)[-1]
    rest = 1 / (np.bincount(numbers, minlength=classes)[numbers, np.newaxis] + 2)
    wanted = np.where(np.arange(classes) == numbers[:, np.newaxis], 1 - rest, rest / (classes - 1))
    found = minimize_scalar(
        lambda log_t: -(wanted * _mean_log(logits, math.exp(log_t))).sum(axis=1).mean(),
        bounds=(math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(found.x))
