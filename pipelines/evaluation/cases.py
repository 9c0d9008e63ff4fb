"""Labelled answers of one model: what every figure, every picture of the report and every comparison is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.thresholds import sum_positive

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Cases:
    """N labelled images and what a model answers to them, in an order that means nothing.

    Attributes:
        classes: Names, in the model's order, K.
        positive: Numbers of the positive classes.
        uris: Canonical name of each image; it may hold a patient's name and is not for logs.
        contents: content_sha256 of each.
        labels: Class number of each, int64 `[N]`.
        probabilities: Calibrated, float32 `[N, K]`.
        groups: What is drawn when an interval is made: images of one patient, copies and near-duplicates share one.
        patients: Patient of each image, null where unknown; None where the data know of none.
        mean_intensity: Mean grey of each picture, 0-1; NaN where unknown.
        columns: Further columns by name, a text or None for each image: what subgroups are made of.
    """

    classes: tuple[str, ...]
    positive: tuple[int, ...]
    uris: tuple[str, ...]
    contents: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    groups: tuple[str, ...]
    patients: tuple[str | None, ...] | None
    mean_intensity: Floats
    columns: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.uris)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Number of the most probable class of each image, `[N]`; the first of equals."""
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)

    @property
    def p_positive(self) -> Floats:
        """Probability of the positive classes, `[N]`, as `score` writes it."""
        return sum_positive(self.probabilities, self.positive)

    @property
    def truth(self) -> NDArray[np.bool_]:
        """Whether each image's class is a positive one, `[N]`."""
        return np.isin(self.labels, self.positive)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Cases:
        """Some of the images, in the order of `rows`."""
        own = np.asarray(rows, np.int64)
        numbers = own.tolist()
        return replace(
            self,
            uris=tuple(self.uris[row] for row in numbers),
            contents=tuple(self.contents[row] for row in numbers),
            labels=self.labels[own],
            probabilities=self.probabilities[own],
            groups=tuple(self.groups[row] for row in numbers),
            patients=None if self.patients is None else tuple(self.patients[row] for row in numbers),
            mean_intensity=self.mean_intensity[own],
            columns={name: tuple(values[row] for row in numbers) for name, values in self.columns.items()},
        )
