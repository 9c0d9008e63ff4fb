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
from pipelines.evaluation.comparison import (
    WORDS,
    Difference,
    describe,
    mcnemar,
    only_one_right,
    paired_differences,
    verdict,
)
from pipelines.evaluation.resampling import DRAWS, form_groups
from pipelines.evaluation.tallies import Sample
from pipelines.evaluation.thresholds import sum_positive
from pipelines.models.bundle import VALIDATION_FILE, Bundle
from pipelines.predictions.schema import class_column

LEAST_IMAGES = 20
"""Common images below which no comparison is made: it could only say that nothing is known."""


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
class Versus:
    """How a new version compares with the champion.

    Attributes:
        champion: Its version; None where there was none before.
        reason: Why nothing was compared; "" where it was.
        images: Common images.
        groups: Groups that they belong to.
        figures: By name, those of `comparison.WORDS`, this one's and the other's. The ROC AUC is as in `metrics`.
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
        return None if self.figures is None else verdict(self.figures)

    def sentence(self) -> str:
        """The verdict with its numbers, for a person."""
        if self.figures is None:
            return self.reason
        where = f"{self.images:,} common validation images"
        return describe(self.figures, f"the champion {self.champion}", where).removeprefix("is ")

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
            "figures": {
                name: {
                    "new": own.this,
                    "champion": own.other,
                    "difference": own.difference,
                    "low": own.low,
                    "high": own.high,
                }
                for name, own in self.figures.items()
            },
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
    ours, others = (_sample(new, p, labels) for p in (new.probabilities[rows], answers))
    formed = form_groups(groups, labels)
    only_new, only_champion = only_one_right(ours.called, others.called, labels)
    before = theirs["label"].to_pylist()
    return Versus(
        champion=champion.version,
        images=len(rows),
        groups=formed.count,
        figures=paired_differences(ours, others, formed, tuple(WORDS), DRAWS, seed),
        only_new_right=only_new,
        only_champion_right=only_champion,
        mcnemar_p=mcnemar(only_new, only_champion),
        relabelled=sum(before[at] != new.classes[label] for at, label in zip(found, labels, strict=True)),
    )


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


def _sample(new: Validated, answers: NDArray[np.float32], labels: NDArray[np.int64]) -> Sample:
    positive = tuple(new.positive)
    return Sample(new.classes, positive, answers.astype(np.float64), labels, sum_positive(answers, positive))


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"
