"""The learning rate of a step, and what validation does to it and to the end of training. Plain Python and NumPy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.metrics import LOWER_IS_BETTER
from pipelines.training.recipes import Recipe

PLATEAU_LEAST_GAIN = 1e-4
"""A smaller gain is none for the plateau, as in Keras' ReduceLROnPlateau, which the published recipes used."""


def learning_rates(recipe: Recipe, epoch: int, steps: int) -> NDArray[np.float32]:
    """The rate of each step of an epoch, before the plateau's factor.

    The first `head_epochs` of the epochs have the constant `head_learning_rate`. From there on the rate rises
    linearly over `warmup_epochs` and is then constant, or falls along a half cosine to 0 at the end of training
    (Loshchilov and Hutter, ICLR 2017): rate · (1 + cos(pi · t / T)) / 2 at step t of T after the warm-up.

    Args:
        recipe: How.
        epoch: From 1, through both phases.
        steps: Of an epoch.

    Returns:
        float32 `[steps]`.
    """
    if epoch <= recipe.head_epochs:
        return np.full(steps, recipe.head_learning_rate, np.float32)
    step = (epoch - recipe.head_epochs - 1) * steps + np.arange(steps)
    warm, whole = recipe.warmup_epochs * steps, (recipe.epochs - recipe.head_epochs) * steps
    rising = np.minimum((step + 1) / warm, 1.0) if warm else np.ones(steps)
    falling = np.ones(steps)
    if recipe.schedule == "cosine" and whole > warm:
        falling = (1 + np.cos(math.pi * np.maximum(step - warm, 0) / (whole - warm))) / 2
    return np.asarray(recipe.learning_rate * rising * falling, np.float32)


def is_better(metric: str, value: float, than: float) -> bool:
    """Whether a figure is better than another; one that is no number never is, and all others are better than it."""
    if math.isnan(value) or math.isnan(than):
        return math.isnan(than) and not math.isnan(value)
    return value < than if metric in LOWER_IS_BETTER else value > than


@dataclass(frozen=True)
class Plateau:
    """How long a figure has not improved, and what the rate is multiplied by because of it.

    Attributes:
        best: The best value so far; NaN before the first.
        waited: Epochs since.
        factor: Of the learning rate, 1 at first.
    """

    best: float = math.nan
    waited: int = 0
    factor: float = 1.0

    def after(self, value: float, recipe: Recipe) -> Plateau:
        """After an epoch: as Keras' ReduceLROnPlateau with its defaults."""
        gain = -PLATEAU_LEAST_GAIN if recipe.reduce_metric in LOWER_IS_BETTER else PLATEAU_LEAST_GAIN
        if is_better(recipe.reduce_metric, value, self.best + gain):
            return replace(self, best=value, waited=0)
        if self.waited + 1 < recipe.reduce_on_plateau:
            return replace(self, waited=self.waited + 1)
        return replace(self, waited=0, factor=self.factor * recipe.reduce_factor)


def is_over(recipe: Recipe, epoch: int, best_epoch: int) -> bool:
    """Whether training ends after this epoch: the last one, or `early_stopping` epochs without a better one.

    The first phase never ends early, and its epochs do not count as waiting.
    """
    if epoch >= recipe.epochs:
        return True
    waited = epoch - max(best_epoch, recipe.head_epochs)
    return bool(recipe.early_stopping) and best_epoch > 0 and waited >= recipe.early_stopping
