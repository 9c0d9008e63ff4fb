"""Two models on the same images: differences with intervals, paired tests, and where they disagree.

Both answer the same images, so what is hard for one is mostly hard for the other: the difference is known better than
either figure. Its interval draws whole groups, the same ones for both. McNemar's and DeLong's tests take images as
independent; where patients have many, the intervals count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UsageError
from pipelines.evaluation.cases import Cases
from pipelines.evaluation.class_measures import ClassMeasures
from pipelines.evaluation.delong import delong_difference
from pipelines.evaluation.intervals import middle
from pipelines.evaluation.metrics import LOWER_IS_BETTER, METRIC_NAMES, confusion_matrix
from pipelines.evaluation.resampling import Counts, Floats, Groups, Key, form_groups, resample
from pipelines.evaluation.study import Settings
from pipelines.evaluation.tallies import Sample

WORDS = {"roc_auc": "ROC AUC", "accuracy": "accuracy", "log_loss": "log loss"}
"""The figures that a verdict is made of, the first that is defined deciding."""
MOST_WORST = 12


@dataclass(frozen=True)
class Difference:
    """One figure of two models, and this one's minus the other's with its 95 % interval.

    Attributes:
        this: The one model's; NaN where the images do not define it.
        other: The other's.
        difference: This minus other.
        low: Lower end of the interval; NaN where no resample defines it.
        high: Upper end.
    """

    this: float
    other: float
    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.difference:+.4f}, 95 % interval {self.low:+.4f} to {self.high:+.4f}"


def compare_cases(this: Cases, other: Cases, settings: Settings, against: Mapping[str, Any]) -> dict[str, Any]:
    """Compare two models' answers to the same images, as it stands in metrics.json.

    Args:
        this: The model that is evaluated; its groups are drawn.
        other: The other one: the same images in the same order, classes in the same order.
        settings: Draws and seed.
        against: What is told of the other one: `name`, `version` and so on.

    Returns:
        `against, n, groups, figures, mcnemar, delong, disagree, predicted` (a row for each class that this one
        predicts, a column for each of the other's), `worst` (the images of another predicted class whose true class
        the two give the most different probabilities) and `sentence`. ROC AUC and DeLong's are of two classes the
        positive one's; of more, `figures` has the mean over classes and `delong` the positive ones against the rest.

    Raises:
        UsageError: If classes, positive classes, images or labels differ, or there is no image.
    """
    _refuse_unpaired(this, other)
    groups = form_groups(this.groups, this.labels)
    figures = paired_differences(_sample(this), _sample(other), groups, METRIC_NAMES, settings.draws, settings.seed)
    counts = only_one_right(this.predicted, other.predicted, this.labels)
    p, disagree = mcnemar(*counts), int((this.predicted != other.predicted).sum())
    where = "1 image" if len(this) == 1 else f"{len(this):,} images"
    return {
        "against": dict(against),
        "n": len(this),
        "groups": groups.count,
        "figures": {name: {key: _null(value) for key, value in vars(own).items()} for name, own in figures.items()},
        "mcnemar": {"only_this": counts[0], "only_other": counts[1], "p": p},
        "delong": _delong(this, other),
        "disagree": disagree,
        "predicted": confusion_matrix(other.predicted, this.predicted, len(this.classes)).tolist(),
        "worst": _worst(this, other),
        "sentence": f"This model {describe(figures, name_of(against), where)}; {_told_counts(disagree, counts, p)}.",
    }


def mcnemar(one: int, other: int) -> float:
    """McNemar's exact test, two-sided: how likely counts at least as unequal are if both were equally likely.

    Args:
        one: Images that only the one gets right.
        other: Images that only the other gets right.
    """
    from scipy.stats import binomtest

    return float(binomtest(one, one + other, 0.5).pvalue) if one + other else 1.0


def only_one_right(this: NDArray[np.int64], other: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[int, int]:
    """How many images only this one's predicted class is right for, and only the other's.

    Args:
        this: Predicted class numbers `[N]`.
        other: The other's.
        labels: The true ones.
    """
    right, theirs = this == labels, other == labels
    return int((right & ~theirs).sum()), int((theirs & ~right).sum())


def paired_differences(
    this: Sample, other: Sample, groups: Groups, names: Sequence[str], draws: int, seed: int
) -> dict[str, Difference]:
    """Figures of both and the interval of their difference: the middle 95 % of resamples that both share.

    Args:
        this: The one model's answers to N images.
        other: The other's to the same.
        groups: Of the images.
        names: Which of `METRIC_NAMES`.
        draws: How many resamples.
        seed: Decides them.
    """
    ours, theirs = ClassMeasures(this, groups), ClassMeasures(other, groups)

    def compute(counts: Counts) -> dict[Key, Floats]:
        own, its = ours.at(counts), theirs.at(counts)
        return {(name,): own["overall", name] - its["overall", name] for name in names}

    whole = np.ones((1, groups.count), np.int32)
    mine, its = ours.at(whole), theirs.at(whole)
    drawn = resample(groups, compute, draws, seed)
    found = {}
    for name in names:
        one, another = float(mine["overall", name][0]), float(its["overall", name][0])
        found[name] = Difference(one, another, one - another, *middle(drawn[name,]))
    return found


def side(name: str, figure: Difference) -> str | None:
    """`better` or `worse` where the interval leaves out 0."""
    if figure.low > 0:
        return "worse" if name in LOWER_IS_BETTER else "better"
    if figure.high < 0:
        return "better" if name in LOWER_IS_BETTER else "worse"
    return None


def verdict(figures: Mapping[str, Difference]) -> str:
    """`better`, `worse` or `undecided`, by the interval of the difference in ROC AUC, or in accuracy without one."""
    name = _deciding(figures)
    return side(name, figures[name]) or "undecided"


def describe(figures: Mapping[str, Difference], whom: str, where: str) -> str:
    """The verdict with its numbers.

    Args:
        figures: Those of `WORDS` at least.
        whom: The other model, such as `the champion v1`.
        where: The images, such as `200 common validation images`.
    """
    deciding = _deciding(figures)
    own = figures[deciding]
    said = {"better": "is better than", "worse": "is worse than"}.get(verdict(figures), "cannot be told apart from")
    others = [
        f"; its {word} is {side(name, figures[name])} ({figures[name]})"
        for name, word in WORDS.items()
        if name != deciding and side(name, figures[name])
    ]
    return (
        f"{said} {whom} on {where}: {WORDS[deciding]} {own.this:.4f} against {own.other:.4f}, difference {own}"
        f"{''.join(others)}"
    )


def name_of(against: Mapping[str, Any]) -> str:
    """The other model for a sentence: `moles@v2`, with the start of its id where it has no version."""
    version = against.get("version") or str(against.get("model_id") or "")[:12]
    return f"{against.get('name') or 'the other model'}{'@' if version else ''}{version}"


def _deciding(figures: Mapping[str, Difference]) -> str:
    return next((name for name in WORDS if not math.isnan(figures[name].difference)), "accuracy")


def _refuse_unpaired(this: Cases, other: Cases) -> None:
    """Refuse what cannot be compared image by image."""
    if this.classes != other.classes:
        raise UsageError(
            f"The one model knows the classes {', '.join(this.classes)}, and the other {', '.join(other.classes)}.",
            "Compare models of the same classes.",
        )
    if set(this.positive) != set(other.positive):
        named = [" and ".join(one.classes[number] for number in one.positive) for one in (this, other)]
        raise UsageError(
            f"Positive is {named[0]} for the one model, and {named[1]} for the other.",
            "Compare models of the same positive classes.",
        )
    if this.contents != other.contents or this.uris != other.uris:
        raise UsageError(
            f"The two models answered different images: {len(this):,} and {len(other):,}, not the same in order.",
            "Compare their answers to the same images.",
        )
    if not np.array_equal(this.labels, other.labels):
        count = int((this.labels != other.labels).sum())
        raise UsageError(f"{count:,} images have another label for the other model.", "Give both the same labels.")
    if not len(this):
        raise UsageError("There is no image that both models answered.", "Compare their answers to the same images.")


def _sample(cases: Cases) -> Sample:
    return Sample(
        cases.classes, cases.positive, cases.probabilities.astype(np.float64), cases.labels, cases.p_positive
    )  # fmt: skip


def _delong(this: Cases, other: Cases) -> dict[str, Any]:
    found = delong_difference(this.p_positive, other.p_positive, this.truth)
    if not math.isnan(found.p):
        return dict(vars(found))
    positives = int(this.truth.sum())
    if min(positives, len(this) - positives) < 2:
        return {"reason": f"it takes two images of each kind; {positives} of {len(this)} are positive"}
    return {
        "reason": "both models rank the images alike" if found.difference == 0 else "the difference has no variance"
    }


def _worst(this: Cases, other: Cases) -> list[dict[str, Any]]:
    """Images that the two predict another class for, by how far apart their probabilities of the true class are."""
    rows = np.arange(len(this))
    own, its = (cases.probabilities[rows, cases.labels].astype(np.float64) for cases in (this, other))
    differing = np.flatnonzero(this.predicted != other.predicted)
    order = differing[np.argsort(-np.abs(own - its)[differing], kind="stable")][:MOST_WORST]
    return [
        {
            "row": row,
            "label": this.classes[this.labels[row]],
            "this": this.classes[this.predicted[row]],
            "other": this.classes[other.predicted[row]],
            "this_probability": float(own[row]),
            "other_probability": float(its[row]),
        }
        for row in order.tolist()
    ]


def _told_counts(disagree: int, counts: tuple[int, int], p: float) -> str:
    images = "1 image" if disagree == 1 else f"{disagree:,} images"
    return (
        f"the two predict another class for {images}, where only this model is right {counts[0]:,} times and only the "
        f"other {counts[1]:,} times (McNemar's exact test, images as independent: p = {p:.2g})"
    )


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
