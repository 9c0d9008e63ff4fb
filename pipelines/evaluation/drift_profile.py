"""A night in counts: what drift is measured on, whatever the number of its images."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.predictions.night_counts import (
    INTENSITY_STEPS,
    LEAST_SCORE,
    LOG_ODDS_END,
    LOG_ODDS_STEPS,
    OCTAVE_STEPS,
    STEPS,
)

Counted = NDArray[np.int64]
Floats = NDArray[np.float64]

ORDERED: Final = ("score", "intensity", "size")
SHARES: Final = ("decision", "suffix", "failures")
FIGURES: Final = ("score", "decision", "intensity", "size", "suffix", "failures")


@dataclass(frozen=True)
class Profile:
    """The counts of one night, or of a validation set.

    Attributes:
        images: Rows, failed ones too.
        ordered: For each of `ORDERED` that is known: images in each step of its grid, `[STEPS[figure]]`.
        means: The mean of each of them, in its own unit (probability; 0-1; pixels).
        shares: For each of `SHARES` that is known: images by category.
        clustering: How much more than single images the images of one patient vary together, by ordered figure: the
            variance of the mean over that of independent images; 1 where nothing is said.
        day: The night's day; None for a validation set.
        groups: Patients or series of a validation set; None for a night.
    """

    images: int
    ordered: Mapping[str, Counted]
    means: Mapping[str, float]
    shares: Mapping[str, Mapping[str, int]]
    clustering: Mapping[str, float] = field(default_factory=dict)
    day: datetime.date | None = None
    groups: int | None = None

    def count(self, figure: str) -> int:
        """Images that the figure is known of."""
        if figure in ORDERED:
            return int(self.ordered[figure].sum()) if figure in self.ordered else 0
        return sum(self.shares.get(figure, {}).values())

    @property
    def scored(self) -> int:
        """Images with a score."""
        return self.count("score")


def steps_of(figure: str, values: Floats) -> NDArray[np.int64]:
    """The step of the grid that each value lies in.

    Args:
        figure: One of `ORDERED`.
        values: `[N]`, finite: probabilities, mean intensities from 0 to 1, or sides in pixels (the square root of
            width by height).

    Returns:
        `[N]`, from 0.
    """
    if figure == "score":
        inside = np.clip(values, LEAST_SCORE, 1 - LEAST_SCORE)
        place = (np.log(inside / (1 - inside)) + LOG_ODDS_END) * (LOG_ODDS_STEPS / (2 * LOG_ODDS_END))
    elif figure == "intensity":
        place = values * INTENSITY_STEPS
    else:
        place = np.log2(np.maximum(values, 1.0)) * OCTAVE_STEPS
    steps: NDArray[np.int64] = np.clip(np.floor(place), 0, STEPS[figure] - 1).astype(np.int64)
    return steps


def middles(figure: str) -> Floats:
    """The value in the middle of each step, in the figure's own unit, `[STEPS[figure]]`."""
    step = np.arange(STEPS[figure]) + 0.5
    if figure == "score":
        middle: Floats = 1 / (1 + np.exp(LOG_ODDS_END - step * (2 * LOG_ODDS_END / LOG_ODDS_STEPS)))
    elif figure == "intensity":
        middle = step / INTENSITY_STEPS
    else:
        middle = 2 ** (step / OCTAVE_STEPS)
    return middle


def profile_of(values: Mapping[str, Floats], shares: Mapping[str, Sequence[str]], groups: Sequence[Any]) -> Profile:
    """Count a set of images that are known one by one.

    Args:
        values: Of ordered figures, `[N]` each; NaN is left out.
        shares: Of the others, one category for each image.
        groups: Patient or series of each image, `[N]`.

    Returns:
        The profile, with its clustering.
    """
    kept = {figure: np.isfinite(own) for figure, own in values.items()}
    members = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    return Profile(
        images=len(members),
        ordered={
            figure: np.bincount(steps_of(figure, own[kept[figure]]), minlength=STEPS[figure])
            for figure, own in values.items()
        },
        means={figure: float(own[kept[figure]].mean()) for figure, own in values.items() if kept[figure].any()},
        shares={figure: _counted(own) for figure, own in shares.items()},
        clustering={figure: clustering_of(own[kept[figure]], members[kept[figure]]) for figure, own in values.items()},
        groups=int(members.max()) + 1 if len(members) else 0,
    )


def clustering_of(values: Floats, members: NDArray[np.intp]) -> float:
    """The variance of a mean whose groups are drawn, over that of one whose images are: the design effect.

    Args:
        values: `[N]`.
        members: The number of each image's group, `[N]`.

    Returns:
        At least 1.
    """
    if not len(values):
        return 1.0
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2)[place]
    centred = ranks - ranks.mean()
    alone = float(centred @ centred)
    together = np.bincount(members, centred)
    return max(1.0, float(together @ together) / alone) if alone > 0 else 1.0


def profiles_of(counts: pa.Table) -> dict[str, Profile]:
    """The profile of each run.

    Args:
        counts: Of `COUNTS_SCHEMA`, as `count_nights` gives them.

    Returns:
        By run, oldest first.
    """
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in sorted(counts.to_pylist(), key=lambda row: str(row["run_id"])):
        runs.setdefault(row["run_id"], {}).setdefault(row["figure"], []).append(row)
    return {run: _profile_of_run(figures) for run, figures in runs.items()}


def _profile_of_run(figures: Mapping[str, Sequence[Mapping[str, Any]]]) -> Profile:
    ordered, means = {}, {}
    for figure in ORDERED:
        rows = figures.get(figure, ())
        known = sum(row["images"] for row in rows)
        if known:
            ordered[figure] = np.zeros(STEPS[figure], np.int64)
            ordered[figure][[row["step"] for row in rows]] = [row["images"] for row in rows]
            means[figure] = sum(row["total"] for row in rows) / known
    shares = {
        figure: {str(row["category"]): row["images"] for row in figures[figure]}
        for figure in SHARES
        if figure in figures
    }
    return Profile(
        images=sum(row["images"] for row in figures["failures"]),
        ordered=ordered,
        means=means,
        shares=shares,
        day=max(row["day"] for row in figures["failures"]),
    )


def added(profiles: Sequence[Profile]) -> Profile:
    """Several sets of images as one.

    Args:
        profiles: At least one.
    """
    ordered = {
        figure: np.sum([own.ordered[figure] for own in profiles if figure in own.ordered], axis=0)
        for figure in ORDERED
        if any(figure in own.ordered for own in profiles)
    }
    shares: dict[str, dict[str, int]] = {}
    for own in profiles:
        for figure, counts in own.shares.items():
            total = shares.setdefault(figure, {})
            for name, count in counts.items():
                total[name] = total.get(name, 0) + count
    means = {figure: _mean(profiles, figure) for figure in ordered}
    days = [own.day for own in profiles if own.day is not None]
    return Profile(
        images=sum(own.images for own in profiles),
        ordered=ordered,
        means={figure: mean for figure, mean in means.items() if not math.isnan(mean)},
        shares=shares,
        day=max(days, default=None),
    )


def _mean(profiles: Sequence[Profile], figure: str) -> float:
    known = [(own.count(figure), own.means[figure]) for own in profiles if figure in own.means]
    total = sum(count for count, _ in known)
    return sum(count * mean for count, mean in known) / total if total else math.nan


def _counted(names: Sequence[str]) -> dict[str, int]:
    found, counts = np.unique(np.asarray(names, dtype=str), return_counts=True)
    return {str(name): int(count) for name, count in zip(found, counts, strict=True)}
