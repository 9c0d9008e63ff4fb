"""A new version against the champion, image by image on what both of them validate.

Both have chosen their epoch, temperature and threshold on these images, so neither figure is one for strangers; but
the advantage is the same for both, and the difference is what is asked for.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.errors import ModelRefused
from pipelines.evaluation.intervals import DRAWS, draw_weights, middle, weighted_figures
from pipelines.evaluation.metrics import LOWER_IS_BETTER, measure
from pipelines.models.bundle import VALIDATION_FILE, Bundle
from pipelines.predictions.schema import class_column

COMPARED = {"roc_auc": "ROC AUC", "accuracy": "accuracy", "log_loss": "log loss"}
LEAST_IMAGES = 20
"""Common images below which no comparison is made: it could only say that nothing is known."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Validated:
    """A version's answers to its validation part.

    Attributes:
        classes: Names, in the order of the columns.
        positive: Numbers of the positive classes.
        contents: content_sha256 of each of N images; one that comes twice counts once.
        labels: Class number of each.
        groups: Group of each.
        probabilities: Calibrated, `[N, K]`.
    """

    classes: tuple[str, ...]
    positive: Sequence[int]
    contents: Sequence[str]
    labels: NDArray[np.int64]
    groups: Sequence[str]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class Difference:
    """One figure of both, and the difference new minus champion with its 95 % interval."""

    new: float
    champion: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Versus:
    """How a new version compares with the champion.

    Attributes:
        champion: Its version; None where there was none before.
        reason: Why nothing was compared; "" where it was.
        images: Common images.
        groups: Groups that they belong to.
        figures: By name, those of `COMPARED`. The ROC AUC is as in `metrics`.
        only_new_right: Images whose class only the new version predicts.
        only_champion_right: Images whose class only the champion predicts.
        mcnemar_p: McNemar's exact test of these two counts; images are taken as independent.
        relabelled: Common images that had another label when the champion was trained; today's counts.
    """

    champion: str | None
    reason: str = ""
    images: int = 0
    groups: int = 0
    figures: Mapping[str, Difference] | None = None
    only_new_right: int = 0
    only_champion_right: int = 0
    mcnemar_p: float = 1.0
    relabelled: int = 0

    @property
    def verdict(self) -> str | None:
        """`better`, `worse` or `undecided`, by the interval of the difference in ROC AUC; None without comparison."""
        if self.figures is None:
            return None
        return _side("roc_auc", self.figures["roc_auc"]) or "undecided"

    def sentence(self) -> str:
        """The verdict with its numbers, for a person."""
        if self.figures is None:
            return self.reason
        area = self.figures["roc_auc"]
        said = {"better": "better than", "worse": "worse than"}.get(str(self.verdict), "cannot be told apart from")
        others = [
            f"its {COMPARED[name]} is {_side(name, self.figures[name])} ({_told(self.figures[name])})"
            for name in ("accuracy", "log_loss")
            if _side(name, self.figures[name])
        ]
        return (
            f"{said} the champion {self.champion} on {self.images:,} common validation images: ROC AUC "
            f"{area.new:.4f} against {area.champion:.4f}, difference {_told(area)}"
            f"{''.join('; ' + text for text in others)}"
        )

    def record(self) -> dict[str, Any] | None:
        """Plain values for bundle and report; None where there was no champion before."""
        if self.champion is None:
            return None
        if self.figures is None:
            return {"champion": self.champion, "verdict": None, "reason": self.reason, "images": self.images}
        return {
            "champion": self.champion,
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "images": self.images,
            "groups": self.groups,
            "figures": {name: vars(figure).copy() for name, figure in self.figures.items()},
            "only_new_right": self.only_new_right,
            "only_champion_right": self.only_champion_right,
            "mcnemar_p": self.mcnemar_p,
            "relabelled": self.relabelled,
        }


def compare(new: Validated, champion: Bundle | None, seed: int = 0) -> Versus:
    """Compare a new version with the champion, paired by content; it never fails, but says why it could not.

    Args:
        new: The new version on its validation part.
        champion: The name's champion before; None where there is none.
        seed: Decides the resamples.
    """
    if champion is None:
        return Versus(None, "there was no version of this name before")
    theirs = _read(champion, new.classes)
    if isinstance(theirs, str):
        return Versus(champion.version, f"not compared with the champion {champion.version}: {theirs}")
    rows, found = _common(new.contents, theirs["content_sha256"].to_pylist())
    labels, groups = new.labels[rows], [new.groups[row] for row in rows]
    lacking = [name for number, name in enumerate(new.classes) if number not in labels]
    if len(rows) < LEAST_IMAGES or lacking:
        few = f"{_images(len(rows))} validate both, and {LEAST_IMAGES} must"
        why = few if len(rows) < LEAST_IMAGES else f"none of the common validation images is {lacking[0]}"
        return Versus(champion.version, f"not compared with the champion {champion.version}: {why}", len(rows))
    answers = np.stack([theirs[class_column(name)].to_numpy()[found] for name in new.classes], axis=1)
    right = [p.argmax(axis=1) == labels for p in (new.probabilities[rows], answers)]
    only_new, only_champion = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    before = theirs["label"].to_pylist()
    return Versus(
        champion=champion.version,
        images=len(rows),
        groups=len(set(groups)),
        figures=_differences(new.probabilities[rows], answers, labels, groups, new.positive, seed),
        only_new_right=only_new,
        only_champion_right=only_champion,
        mcnemar_p=mcnemar(only_new, only_champion),
        relabelled=sum(before[at] != new.classes[label] for at, label in zip(found, labels, strict=True)),
    )


def mcnemar(one: int, other: int) -> float:
    """McNemar's exact test, two-sided: how likely counts at least as unequal are if both were equally likely.

    Args:
        one: Images that only the one gets right.
        other: Images that only the other gets right.
    """
    from scipy.stats import binomtest

    return float(binomtest(one, one + other, 0.5).pvalue) if one + other else 1.0


def _read(champion: Bundle, classes: Sequence[str]) -> pa.Table | str:
    """The champion's validation table, or why nothing can be compared with it."""
    if set(champion.classes) != set(classes):
        return f"its classes are {', '.join(champion.classes)}"
    if VALIDATION_FILE not in champion.files:
        return "it has no table of its validation"
    columns = ["content_sha256", "label", *(class_column(name) for name in classes)]
    try:
        return pq.read_table(io.BytesIO(champion.read(VALIDATION_FILE)), columns=columns)
    except (ModelRefused, pa.ArrowException, KeyError):
        return "the table of its validation cannot be read"


def _common(ours: Sequence[str], theirs: Sequence[str]) -> tuple[list[int], list[int]]:
    """Rows of ours and of theirs with the same content, each content once."""
    place = {content: row for row, content in reversed(list(enumerate(theirs)))}
    first = {content: row for row, content in reversed(list(enumerate(ours))) if content in place}
    rows = sorted(first.values())
    return rows, [place[ours[row]] for row in rows]


def _differences(
    new: NDArray[np.float32],
    champion: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: Sequence[str],
    positive: Sequence[int],
    seed: int,
) -> dict[str, Difference]:
    """Figures of both and the interval of their difference: the same resample of groups for both."""
    drawn: dict[str, list[Floats]] = {name: [] for name in COMPARED}
    for weights in draw_weights(groups, DRAWS, seed):
        ours, theirs = (weighted_figures(p, labels, positive, weights) for p in (new, champion))
        for name, differences in drawn.items():
            differences.append(ours[name] - theirs[name])
    mine, its = measure(new, labels, positive), measure(champion, labels, positive)
    return {
        name: Difference(mine[name], its[name], mine[name] - its[name], *middle(np.concatenate(differences)))
        for name, differences in drawn.items()
    }


def _side(name: str, figure: Difference) -> str | None:
    """`better` or `worse` where the interval leaves out 0."""
    if figure.low > 0:
        return "worse" if name in LOWER_IS_BETTER else "better"
    if figure.high < 0:
        return "better" if name in LOWER_IS_BETTER else "worse"
    return None


def _told(figure: Difference) -> str:
    return f"{figure.difference:+.4f}, 95 % interval {figure.low:+.4f} to {figure.high:+.4f}"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"
