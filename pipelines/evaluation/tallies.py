"""What of a sample is measured: sums by group made once, from which all figures of every resample follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.figures import Figure, make_figure, undefined
from pipelines.evaluation.intervals import Basis, of_draws
from pipelines.evaluation.resampling import Counts, Floats, Groups, Key, resample

Bools = NDArray[np.bool_]


class Measured(Protocol):
    """Something that figures are made of."""

    def at(self, counts: Counts) -> dict[Key, Floats]:
        """Figures `[D]` by key at counts `[D, G]` of the groups; NaN where not defined."""

    def rests_on(self, whole: Mapping[Key, float]) -> dict[Key, Basis]:
        """What the figures rest on, given those of the whole sample."""

    def why(self, key: Key) -> str:
        """Why the whole sample does not define a figure, in words."""


def make_figures(measured: Measured, groups: Groups, draws: int, seed: int) -> dict[Key, Figure]:
    """Every figure of a sample with its interval.

    Args:
        measured: What is measured.
        groups: What is drawn.
        draws: How many times.
        seed: Decides the draws.
    """
    whole = {key: float(values[0]) for key, values in measured.at(np.ones((1, groups.count), np.int32)).items()}
    drawn, bases = resample(groups, measured.at, draws, seed), measured.rests_on(whole)
    return {
        key: undefined(measured.why(key))
        if math.isnan(value)
        else make_figure(value, of_draws(key[-1], drawn[key], value, bases.get(key)))
        for key, value in whole.items()
    }


class GroupSums:
    """Columns of numbers of images, summed by group, so that a resample's sums are one matrix product."""

    def __init__(self, groups: Groups) -> None:
        self._groups, self._width = groups, 0
        self._parts: list[Floats] = []
        self._slices: dict[str, slice] = {}

    def add(self, name: str, cell: NDArray[np.int64], cells: int, values: Floats | None = None) -> None:
        """One column for each cell: how many images are in it, or the sum of their values.

        Args:
            name: To find the columns by.
            cell: Of each image, `[N]`.
            cells: How many there are.
            values: `[N]`.
        """
        summed = np.bincount(self._groups.member * cells + cell, values, self._groups.count * cells)
        self._keep(name, summed.reshape(self._groups.count, cells).astype(np.float64))

    def add_columns(self, name: str, values: Floats) -> None:
        """The columns of `values`, `[N, C]`."""
        member, count = self._groups.member, self._groups.count
        self._keep(name, np.stack([np.bincount(member, column, count) for column in values.T], axis=1))

    def _keep(self, name: str, summed: Floats) -> None:
        self._slices[name] = slice(self._width, self._width + summed.shape[1])
        self._width += summed.shape[1]
        self._parts.append(summed)

    def at(self, counts: Counts) -> dict[str, Floats]:
        """The sums `[D, cells]` of each name at counts `[D, G]`."""
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts, axis=1)]
        summed = counts.astype(np.float64) @ self._parts[0]
        return {name: summed[:, columns] for name, columns in self._slices.items()}


@dataclass(frozen=True, eq=False)
class Sample:
    """N images or patients with what they are and what a model says of them.

    Attributes:
        classes: Names, K.
        positive: Numbers of the positive classes.
        probabilities: float64 `[N, K]`.
        labels: Class numbers, int64 `[N]`.
        p_positive: Probability of the positive classes, `[N]`.
        noun: What they are: `image` or `patient`.
    """

    classes: tuple[str, ...]
    positive: tuple[int, ...]
    probabilities: Floats
    labels: NDArray[np.int64]
    p_positive: Floats
    noun: str = "image"

    @property
    def truth(self) -> Bools:
        """Which are of a positive class, `[N]`."""
        return np.isin(self.labels, self.positive)

    @property
    def called(self) -> NDArray[np.int64]:
        """Number of the most probable class, `[N]`."""
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)
