"""Figures of groups of images by a column of the data, and which of them differ from the rest by more than chance.

Many groups, columns and figures are looked at, so some will look bad by chance. A difference counts only where it
stays significant after Holm's correction (Scand J Stat 6 (1979)) over all looks of the report: every figure of every
compared group of every column. The p of a look is that of the difference between a group and all other images in
standard errors, by Student's t. The standard error is the linearised one over groups of images (the infinitesimal
jackknife, which is the limit of the bootstrap over groups; Efron, The Jackknife, the Bootstrap and Other Resampling
Plans, 1982; for the ROC AUC Obuchowski, Biometrics 53 (1997)): unlike resamples it can tell a p of 0.0001 from one of
0.001, as Holm needs. It is never below what formulas say of independent images (Agresti and Caffo, Am Stat 54 (2000);
Hanley and McNeil, Radiology 143 (1982)), which are not 0 where no image is wrong.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UsageError
from pipelines.evaluation.cases import Cases
from pipelines.evaluation.delong import place
from pipelines.evaluation.figures import Wording
from pipelines.evaluation.intervals import Basis, of_binary, of_ranking, of_share
from pipelines.evaluation.metrics import roc_auc_interval, share
from pipelines.evaluation.ranking import Ranking
from pipelines.evaluation.resampling import Counts, Floats, Groups, Key, form_groups
from pipelines.evaluation.study import Settings
from pipelines.evaluation.tallies import Bools, GroupSums, make_figures

FIGURES = ("roc_auc", "sensitivity", "specificity", "accuracy")
MISSING = "(none)"
LEAST_IMAGES, LEAST_OF_A_KIND, LEAST_GROUPS = 20, 10, 10
MOST_NUMBERS, MOST_TEXTS = 12, 30
SIGNIFICANT = 0.05
_HANLEY_Z = 1.96


@dataclass(frozen=True, eq=False)
class Answers:
    """What is known of each of N images.

    Attributes:
        score: `p_positive`.
        truth: Whether its class is a positive one.
        called: Whether it is called positive: at the frozen threshold, or by the most probable class without one.
        right: Whether the most probable class is its class.
        member: Number of its group.
    """

    score: Floats
    truth: Bools
    called: Bools
    right: Bools
    member: NDArray[np.intp]


@dataclass(frozen=True)
class Subgroup:
    """One group of a column.

    Attributes:
        name: Its value, or range of values.
        within: Which images are in it, bool `[N]`.
        small: Whether it has too few images, positives, negatives or patients to be compared.
    """

    name: str
    within: Bools
    small: bool


def measure_subgroups(
    cases: Cases, columns: Sequence[str], fitted: Mapping[str, Any] | None, settings: Settings
) -> list[dict[str, Any]]:
    """Figures of each group of each column, as they stand in metrics.json.

    A group is small below 20 images, 10 positives, 10 negatives or 10 groups of images (patients); it is compared with
    the rest only where neither is small. The worst group is, of those that are not small, the one of the lowest
    sensitivity, and of equals the one of the lowest accuracy; none where there are fewer than two.

    Args:
        cases: The images.
        columns: Which of `cases.columns`; a name that comes twice counts once.
        fitted: The threshold of single images; without one `sensitivity` and `specificity` are at the most probable
            class, as `accuracy` always is.
        settings: Draws and seed of the intervals.

    Raises:
        UsageError: If a column is not there, or is a text of more than 30 values.
    """
    names = list(dict.fromkeys(columns))
    answers = _answers(cases, fitted)
    split = {name: _subgroups(_column(cases, name), name, answers) for name in names}
    looked: list[tuple[str, int, str]] = []
    found: list[float] = []
    for name, groups in split.items():
        for at, own in enumerate(groups):
            for figure, p in _compare(answers, own).items():
                looked.append((name, at, figure))
                found.append(p)
    corrected = dict(zip(looked, holm(found), strict=True))
    return [_told(cases, answers, name, groups, corrected, settings) for name, groups in split.items()]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: each p times the number of looks that are left, rising, at most 1.

    Args:
        p: Of each look.

    Returns:
        Corrected, in the same order; at most 0.05 where a look is significant among all of them at 5 %.
    """
    order = sorted(range(len(p)), key=lambda at: p[at])
    corrected, highest = [0.0] * len(p), 0.0
    for done, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - done) * p[at]))
        corrected[at] = highest
    return corrected


def split_column(values: Sequence[str | None], name: str) -> list[tuple[str, Bools]]:
    """Groups by a column's values: which images are in each, disjoint, all images together.

    Values that are all numbers and of which there are more than 12 become quarters of the images. Names are equal only
    where every letter is. An empty text is missing, and so is `nan` among numbers; missing values are the last group.

    Args:
        values: A text or None for each image.
        name: Of the column, for the message.

    Raises:
        UsageError: If there are more than 30 texts.
    """
    numbers = _numbers(values)
    missing = np.array([value is None or not value.strip() for value in values], bool)
    if numbers is not None:
        missing |= np.isnan(numbers)
    texts = [None if lacks else value for value, lacks in zip(values, missing.tolist(), strict=True)]
    present = {text for text in texts if text is not None}
    if numbers is not None and len(set(numbers[~missing].tolist())) > MOST_NUMBERS:
        parts = _quarters(numbers, missing, texts)
    else:
        if len(present) > MOST_TEXTS:
            raise UsageError(
                f"The column {name!r} has {len(present):,} values; no more than {MOST_TEXTS} can be groups.",
                "Name a column of fewer values, such as the site instead of the patient.",
            )
        kept = np.array(texts, dtype=object)
        ordered = sorted(present, key=(lambda text: (float(text), text)) if numbers is not None else None)
        parts = [(text, np.asarray(kept == text, bool)) for text in ordered]
    if missing.any():
        absent = MISSING
        while absent in present:
            absent = f"({absent})"
        parts.append((absent, missing))
    return parts


def difference_in_errors(answers: Answers, one: Bools, other: Bools) -> dict[str, tuple[float, float, int]]:
    """The difference of each figure between two disjoint sets of images.

    Args:
        answers: Of N images.
        one: Which are in the first, `[N]`; both sets hold images of both kinds.
        other: Which are in the second.

    Returns:
        By figure: first minus second, its standard error, and degrees of freedom: the fewer groups of images that a
        side's figure rests on, less one.
    """
    found = {}
    for name in FIGURES:
        here, there = _Linear.of(answers, one, name), _Linear.of(answers, other, name)
        by_group = np.bincount(answers.member, here.influence - there.influence)
        groups = len(np.unique(answers.member[here.rests_on | there.rests_on]))
        error = math.sqrt(groups / max(1, groups - 1) * float(by_group @ by_group))
        least = math.hypot(here.least_error, there.least_error)
        sides = (len(np.unique(answers.member[side.rests_on])) for side in (here, there))
        found[name] = here.value - there.value, max(error, least), max(1, min(sides) - 1)
    return found


@dataclass(frozen=True, eq=False)
class _Linear:
    """A figure of some images, and how much each image moves it.

    Attributes:
        value: The figure.
        influence: `[N]`; 0 for images outside.
        rests_on: Images that the figure is made of.
        least_error: Standard error by formula, images as independent.
    """

    value: float
    influence: Floats
    rests_on: Bools
    least_error: float

    @classmethod
    def of(cls, answers: Answers, within: Bools, name: str) -> _Linear:
        """Of the images `within`, by name of the figure."""
        truth = answers.truth
        if name == "roc_auc":
            return cls._of_area(answers, within)
        part, rests_on = {
            "accuracy": (answers.right, within),
            "sensitivity": (answers.called, within & truth),
            "specificity": (~answers.called, within & ~truth),
        }[name]
        trials, successes = int(rests_on.sum()), int((part & rests_on).sum())
        value, influence = successes / trials, np.zeros(len(truth))
        influence[rests_on] = (part[rests_on] - value) / trials
        shrunk = (successes + 1) / (trials + 2)
        return cls(value, influence, rests_on, math.sqrt(shrunk * (1 - shrunk) / (trials + 2)))

    @classmethod
    def _of_area(cls, answers: Answers, within: Bools) -> _Linear:
        positive, negative = within & answers.truth, within & ~answers.truth
        placed = place(answers.score[within], answers.truth[within])
        positives, negatives, area = int(positive.sum()), int(negative.sum()), placed.area
        influence = np.zeros(len(within))
        influence[positive] = (placed.below / negatives - area) / positives
        influence[negative] = (placed.above / positives - area) / negatives
        low, high = roc_auc_interval(area, positives, negatives)
        return cls(area, influence, within, max(area - low, high - area) / _HANLEY_Z)


class _Measures:
    """The figures of one group; see `tallies.Measured`."""

    def __init__(self, cases: Cases, answers: Answers, within: Bools, groups: Groups) -> None:
        self._classes, self._groups = [cases.classes[number] for number in cases.positive], groups
        self._score, self._truth = answers.score[within], answers.truth[within]
        self._called, self._right = answers.called[within], answers.right[within]
        self._ranking = Ranking(self._score, self._truth, groups.member)
        self._sums = GroupSums(groups)
        self._sums.add("cells", (self._truth * 4 + self._called * 2 + self._right).astype(np.int64), 8)

    def at(self, counts: Counts) -> dict[Key, Floats]:
        # Axes: draw, positive, called, right.
        cells = self._sums.at(counts)["cells"].reshape(-1, 2, 2, 2)
        decided = cells.sum(axis=3)
        return {
            ("roc_auc",): self._ranking.areas(counts)[0],
            ("sensitivity",): share(decided[:, 1, 1], decided[:, 1].sum(axis=1)),
            ("specificity",): share(decided[:, 0, 0], decided[:, 0].sum(axis=1)),
            ("accuracy",): share(cells[..., 1].sum(axis=(1, 2)), cells.sum(axis=(1, 2, 3))),
        }

    def rests_on(self, whole: Mapping[Key, float]) -> dict[Key, Basis]:
        found = of_binary(self._truth, self._called, self._groups)
        found |= of_ranking(whole["roc_auc",], self._truth, self._groups)
        found["accuracy"] = of_share(self._right, np.ones(len(self._right), bool), self._groups)
        return {(name,): found[name] for name in FIGURES}

    def why(self, key: Key) -> str:
        positives = int(self._truth.sum())
        return Wording(self._classes, where=" in this group").why(key[0], positives, len(self._truth) - positives)


def _told(
    cases: Cases,
    answers: Answers,
    column: str,
    groups: Sequence[Subgroup],
    corrected: Mapping[tuple[str, int, str], float],
    settings: Settings,
) -> dict[str, Any]:
    """One column as it stands in metrics.json."""
    rows = []
    for at, own in enumerate(groups):
        p = {name: corrected[column, at, name] for name in FIGURES if (column, at, name) in corrected}
        formed = form_groups([cases.groups[row] for row in np.flatnonzero(own.within)], answers.truth[own.within])
        measured = _Measures(cases, answers, own.within, formed)
        figures = make_figures(measured, formed, settings.draws, settings.seed)
        rows.append(
            {
                "name": own.name,
                "n": int(own.within.sum()),
                "positives": int((own.within & answers.truth).sum()),
                "groups": formed.count,
                "small": own.small,
                "figures": {name: figures[name,].as_json() for name in FIGURES},
                "p": min(p.values(), default=None),
                "starred": min(p.values(), default=1.0) < SIGNIFICANT,
                "differs_in": [name for name in FIGURES if p.get(name, 1.0) < SIGNIFICANT],
            }
        )
    return {"column": column, "looks": len(corrected), "worst": _worst(rows), "groups": rows}


def _worst(rows: Sequence[Mapping[str, Any]]) -> str | None:
    large = [row for row in rows if not row["small"]]
    if len(large) < 2:
        return None
    lowest = min(large, key=lambda row: [row["figures"][name]["value"] for name in ("sensitivity", "accuracy")])
    return str(lowest["name"])


def _answers(cases: Cases, fitted: Mapping[str, Any] | None) -> Answers:
    score, predicted = cases.p_positive, cases.predicted
    called = np.isin(predicted, cases.positive) if fitted is None else score >= float(fitted["threshold"])
    _, member = np.unique(np.asarray(cases.groups, dtype=np.str_), return_inverse=True)
    return Answers(score, cases.truth, called, predicted == cases.labels, member)


def _column(cases: Cases, name: str) -> Sequence[str | None]:
    if name not in cases.columns:
        known = ", ".join(cases.columns)
        raise UsageError(
            f"The labelled images have no column {name!r}.",
            f"They have {known}." if known else "They have none beside image and label; a manifest can carry more.",
        )
    return cases.columns[name]


def _subgroups(values: Sequence[str | None], name: str, answers: Answers) -> list[Subgroup]:
    return [Subgroup(text, within, _is_small(answers, within)) for text, within in split_column(values, name)]


def _is_small(answers: Answers, within: Bools) -> bool:
    positives, images = int((within & answers.truth).sum()), int(within.sum())
    few = images < LEAST_IMAGES or min(positives, images - positives) < LEAST_OF_A_KIND
    return few or len(np.unique(answers.member[within])) < LEAST_GROUPS


def _compare(answers: Answers, own: Subgroup) -> dict[str, float]:
    """Two-sided p of each figure's difference from the rest; {} where one side is small."""
    from scipy.stats import t

    if own.small or _is_small(answers, ~own.within):
        return {}
    differences = difference_in_errors(answers, own.within, ~own.within)
    return {name: float(2 * t.sf(abs(gap) / error, freedom)) for name, (gap, error, freedom) in differences.items()}


def _numbers(values: Sequence[str | None]) -> Floats | None:
    """The values as numbers, NaN where missing; None where one of them is none, or all are missing."""
    found = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        if value is None or not value.strip():
            continue
        try:
            found[row] = float(value)
        except ValueError:
            return None
    return None if np.isnan(found).all() or np.isinf(found).any() else found


def _quarters(numbers: Floats, missing: Bools, texts: Sequence[str | None]) -> list[tuple[str, Bools]]:
    """Ranges that hold a quarter of the images each, as near as equal values allow; ends are values of the data."""
    known = numbers[~missing]
    ends = np.unique(np.quantile(known, [0.25, 0.5, 0.75], method="inverted_cdf"))
    ends = ends[ends < known.max()]
    written = {number: text for number, text in zip(numbers.tolist(), texts, strict=True) if text is not None}
    words = [str(written[end]).strip() for end in ends.tolist()]
    names = [f"up to {words[0]}"] if words else [f"up to {written[float(known.max())]}"]
    names += [f"over {low} to {high}" for low, high in itertools.pairwise(words)]
    names += [f"over {words[-1]}"] if words else []
    step = np.searchsorted(ends, numbers, side="left")
    return [(name, (step == at) & ~missing) for at, name in enumerate(names)]
