"""The order of the points, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.calibration import class_logits, probabilities
from pipelines.evaluation.metrics import (
    LOWER_IS_BETTER,
    OF_ALL_CLASSES,
    against_rest,
    of_all_classes,
    share,
    squared_error,
    surprise,
)
from pipelines.evaluation.ranking import Ranking
from pipelines.evaluation.resampling import DRAWS, Counts, Floats, Groups, form_groups, resample
from pipelines.evaluation.tallies import GroupSums
from pipelines.training.dataset import Dataset
from pipelines.training.recipe_rules import RULES
from pipelines.tuning.answers import load_answer
from pipelines.tuning.page_content import Near, Sureness
from pipelines.tuning.page_words import metric_text, settings_text
from pipelines.tuning.points import DONE, Point

NEAREST = 50
"""So many points, next to the best one, are compared with it."""
MOST_NAMED = 6
"""So many are named in a sentence."""

_LEVEL = 0.95
_LEAST, _CELLS = 10, 250_000_000
"""Of ranked figures so many points at least, and draws times images so many at most, which takes a few seconds."""
_IMAGE_BY_IMAGE = {"brier": squared_error, "log_loss": surprise}
_AREAS = ("roc_auc", "average_precision")


def in_order(point: Point) -> tuple[Any, ...]:
    """What decides among points of the same value: their recipes, key by key in the order of the documentation.

    Numbers rise and names stand as their rules list them, so that it is the order of a grid as most people write one;
    but however it is written, and whichever points a later command adds, the same point comes first.
    """
    return (*(_place(key, value) for key, value in point.recipe.values().items()), point.key)


def standing(row: Mapping[str, Any], metric: str) -> tuple[Any, ...]:
    """Where a point stands among others: the smaller, the better.

    A point that was stopped early has a value, but not for what was asked, so it stands behind all that were not; one
    without a value, behind all others.

    Args:
        row: Of `leaderboard.leaderboard_row`: `status`, `value` and `order` are read.
        metric: What points are ranked by.
    """
    value = row["value"]
    if value is None:
        return 2, 0.0, row["order"]
    return int(row["status"] != DONE), value if metric in LOWER_IS_BETTER else -value, row["order"]


def rank(rows: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """All rows, the best first, each with its `rank` from 1, or None where it has no value.

    Args:
        rows: Of `leaderboard.leaderboard_row`, in any order.
        metric: What points are ranked by.
    """
    ranked = sorted(rows, key=lambda row: standing(row, metric))
    return [
        {**row, "rank": None if row["value"] is None else number} for number, row in enumerate(ranked, start=1)
    ]  # fmt: skip


def how_sure(
    folder: str, metric: str, best: Point, others: Sequence[Point], data: Dataset, positive: Sequence[int]
) -> Sureness | None:
    """How sure it is that the best point is the best one, on images like those of validation.

    Args:
        folder: The search's.
        metric: What points are ranked by.
        best: The best point.
        others: All others that have a value, the best first; at most the first `NEAREST` are looked at.
        data: The split.
        positive: Numbers of the positive classes.

    Returns:
        None where there is nothing to compare.

    Raises:
        TryLater: If storage does not answer.
    """
    part = data.part("val")
    looked_at = others[: _how_many(metric, len(part.labels), len(data.classes))]
    read = {point.key: load_answer(folder, point.key) for point in (best, *looked_at)}
    logits = {key: answer.logits for key, answer in read.items() if answer is not None and answer.logits is not None}
    points = [point for point in (best, *others) if point.key in logits]
    if len(points) < 2 or points[0] is not best:
        return None
    answers = [probabilities(class_logits(logits[point.key])) for point in points]
    groups = form_groups(part.groups, part.labels)
    found = compare_with_best(answers, part.labels, groups, metric, positive)
    near = [
        Near(point.key, *(float(number) for number in row))
        for point, row in zip(points[1:], found, strict=True)
    ]  # fmt: skip
    # What no draw defines is not told apart.
    level = [one for one in near if not one.low > 0]
    alike = [best, *(point for point in points[1:] if point.key in {one.point for one in level})]
    sentence = _sentence(metric, alike, near[0], len(points), len(others) + 1, groups.count)
    return Sureness(sentence, near[0], tuple(level), len(near), groups.count)


def compare_with_best(
    answers: Sequence[Floats],
    labels: NDArray[np.int64],
    groups: Groups,
    metric: str,
    positive: Sequence[int],
    draws: int = DRAWS,
    seed: int = 0,
) -> NDArray[np.float64]:
    """By how much the first of several points is better than each of the others, with intervals that hold together.

    The best was chosen as the best on these same images, among many: an interval for two points that were named
    beforehand would leave out 0 far too often. So a point is held against all others at once, in resamples of whole
    groups that all points share. With d_ij the difference of j and i, s_ij its standard error and d*_ij that of a
    resample, c_i is the 95 % quantile of max_j |d*_ij - d_ij| / s_ij, and the interval of the best against i is
    d ± c_i · s (multiple comparisons with the best: Hsu, Ann Stat 9 (1981); by resampling: Westfall and Young, 1993).
    If i is truly the best, it is told apart from the chosen one in about 5 of 100 such searches, however many points
    there are: of 15 and 30 equal ones it was in 3 and 7, and by intervals of two points each in 17 and 32. Of two
    points it is the usual interval of one difference.

    Args:
        answers: Probabilities of P points, `[N, K]` each; the first is the best.
        labels: Class numbers `[N]`.
        groups: Of the images.
        metric: By a name of `METRIC_NAMES`.
        positive: Numbers of the positive classes.
        draws: How many resamples.
        seed: Decides them.

    Returns:
        float64 `[P - 1, 3]`: difference (above 0 where the first is better), low and high; both NaN where no resample
        defines the figure.
    """
    at = measure_groups(answers, labels, groups, metric, positive)
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    whole = sign * at(np.ones((1, groups.count), np.int32))[0]
    drawn = sign * resample(groups, lambda counts: {("all",): at(counts)}, draws, seed)["all",]
    found = np.full((len(answers) - 1, 3), math.nan)
    for other in range(1, len(answers)):
        difference = float(whole[0] - whole[other])
        reach = _reach(drawn - drawn[:, [other]], whole - whole[other])
        found[other - 1] = difference, difference - reach, difference + reach
    return found


def measure_groups(
    answers: Sequence[Floats], labels: NDArray[np.int64], groups: Groups, metric: str, positive: Sequence[int]
) -> Callable[[Counts], Floats]:
    """One figure of `metrics.measure`, of several points, as a function of how often each group is taken.

    Args:
        answers: Probabilities of P points, `[N, K]` each.
        labels: Class numbers `[N]`.
        groups: Of the images.
        metric: By a name of `METRIC_NAMES`.
        positive: Numbers of the positive classes.

    Returns:
        From counts `[D, G]` to figures `[D, P]`; NaN where they do not define it.
    """
    classes = answers[0].shape[1]
    columns = _columns(classes, positive)
    if metric in _AREAS:
        rankings = [[Ranking(p[:, one], labels == one, groups.member) for one in columns] for p in answers]
        which = _AREAS.index(metric)

        def areas(counts: Counts) -> Floats:
            own = [np.mean([one.areas(counts)[which] for one in ranked], axis=0) for ranked in rankings]
            return np.stack(own, axis=1)

        return areas
    sums = GroupSums(groups)
    if metric in _IMAGE_BY_IMAGE:
        lost = [_IMAGE_BY_IMAGE[metric](p, labels) for p in answers]
        sums.add_columns("lost", np.stack([*lost, np.ones(len(labels))], axis=1))

        def means(counts: Counts) -> Floats:
            added = sums.at(counts)["lost"]
            return share(added[:, :-1], np.repeat(added[:, -1:], len(answers), axis=1))

        return means
    for number, p in enumerate(answers):
        sums.add(str(number), labels * classes + p.argmax(axis=1), classes**2)

    def of_matrices(counts: Counts) -> Floats:
        matrices = [summed.reshape(-1, classes, classes) for summed in sums.at(counts).values()]
        if metric in OF_ALL_CLASSES:
            return np.stack([of_all_classes(matrix)[metric] for matrix in matrices], axis=1)
        return np.stack([against_rest(matrix)[metric][:, columns].mean(axis=1) for matrix in matrices], axis=1)

    return of_matrices


def _columns(classes: int, positive: Sequence[int]) -> list[int]:
    """The classes that a figure against the rest is the mean of."""
    return [positive[0]] if classes == 2 else list(range(classes))


def _how_many(metric: str, images: int, classes: int) -> int:
    """Points that are compared with the best: fewer where ranking many images again and again would take minutes."""
    if metric not in _AREAS:
        return NEAREST
    cells = DRAWS * images * (1 if classes == 2 else classes)
    return max(_LEAST, min(NEAREST, _CELLS // cells))


def _reach(drawn: Floats, whole: Floats) -> float:
    """Half the width of the interval of the first against one point: c · s, as `compare_with_best` has it.

    Args:
        drawn: Differences of all points and this one in each draw, `[D, P]`.
        whole: The same in the whole sample, `[P]`.
    """
    defined = drawn[~np.isnan(drawn).any(axis=1)]
    if not len(defined):
        return math.nan
    errors = defined.std(axis=0)
    # Of two that answer alike in every draw nothing varies; no other column is held back by them.
    away = np.divide(np.abs(defined - whole), errors, out=np.zeros_like(defined), where=errors > 0)
    return float(np.quantile(away.max(axis=1), _LEVEL) * errors[0])


def _sentence(metric: str, alike: Sequence[Point], second: Near, compared: int, of: int, groups: int) -> str:
    """How sure the ranking is, in words."""
    figure, ends = metric_text(metric), f"(95 % interval {second.low:+.4f} to {second.high:+.4f})"
    lead = f"the best is better than the second by {second.difference:.4f} in {figure} {ends}"
    if second.difference == 0:
        lead = f"the best and the second have the same {figure} {ends}"
    basis = f"Intervals hold for all comparisons together, over {groups:,} groups of images"
    seen = f"{basis}; of {of:,} points the best {compared:,} were compared." if of > compared else f"{basis}."
    if len(alike) == 1:
        others = "the other point" if compared == 2 else f"the other {compared - 1:,} points"
        return f"The best point is told apart from {others}: {lead}. {seen}"
    named = "; ".join(_named(point) for point in alike[:MOST_NAMED])
    more = f"; and {len(alike) - MOST_NAMED:,} more" if len(alike) > MOST_NAMED else ""
    return f"These {len(alike):,} points are not told apart: {named}{more}. On validation {lead}. {seen}"


def _named(point: Point) -> str:
    return settings_text(point.settings, list(point.settings))


def _place(key: str, value: Any) -> Any:
    names = RULES[key].names
    return names.index(value) if names else value
