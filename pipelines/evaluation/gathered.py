"""Labelled answers with all that a report has to say about where they come from: what both ways in give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UsageError
from pipelines.evaluation.cases import Cases


@dataclass(frozen=True)
class Unread:
    """A labelled image without an answer, because it could not be read.

    Attributes:
        image_uri: Its canonical name.
        code: One of `errors.IMAGE_ERRORS`.
        message: Why, one sentence.
    """

    image_uri: str
    code: str
    message: str


@dataclass(frozen=True)
class ModelName:
    """Which model answered.

    Attributes:
        name: In its registry.
        version: v1, v2 …; None where only the table of predictions is known.
        model_id: Hash of its bundle.json.
        precision: `float32` or `int8`.
    """

    name: str
    version: str | None
    model_id: str
    precision: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version or self.model_id[:12]}"

    def as_json(self) -> dict[str, Any]:
        """As it stands in metrics.json."""
        return asdict(self)


@dataclass(frozen=True)
class Seen:
    """How many of the images the model has met when it was trained or validated.

    Attributes:
        known: Whether the model says which images it was made from; if not, the counts say nothing.
        exact: Evaluated images of the same bytes as a training or validation image.
        near_duplicates: Evaluated images that show the same picture as one of them, in other bytes; None where nobody
            looked, as for committed predictions.
        left_out: Images of the same bytes that were left out for it.
        same_patient: Further evaluated images of a patient of whom it knows other images from there, by the identifier;
            None where nobody looked.
    """

    known: bool
    exact: int
    near_duplicates: int | None
    left_out: int
    same_patient: int | None = None

    def as_json(self) -> dict[str, Any]:
        """As it stands in metrics.json."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Gathered:
    """What is evaluated.

    Attributes:
        cases: The images and answers.
        parts: Part of each image: `train`, `val`, `test` or `external`.
        part: What was chosen of the data: one of these, or `all`.
        chosen: Which images these are and why, one sentence.
        source: Where labels and images, or predictions, lie; without secrets.
        root: Canonical folder or prefix below which the images lie; None where they share none that was named.
        model: Who answered.
        thresholds: Its fitted thresholds by unit; {} where none is known.
        seen: How many of the images it knows from training.
        other: Another model's answers to those images that both answered; None without one.
        paired: Which rows of `cases` these are, in the same order; None without another model.
        against: Who that is.
        seen_by_other: How many of these images the other one knows from training; None where nobody knows.
        unreadable: Labelled images that could not be read.
        left_out: What else was left out, by reason.
        copies: Images that were left out because others have the same bytes and label.
        notes: What a person should know of the join or the data, a sentence each.
    """

    cases: Cases
    parts: tuple[str, ...]
    part: str
    chosen: str
    source: str
    root: str | None
    model: ModelName
    thresholds: Mapping[str, Mapping[str, Any]]
    seen: Seen
    other: Cases | None = None
    paired: NDArray[np.int64] | None = None
    against: ModelName | None = None
    seen_by_other: int | None = None
    unreadable: tuple[Unread, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    copies: int = 0
    notes: tuple[str, ...] = ()


def refuse_one_class(cases: Cases, what: str, made_from: int = 0) -> None:
    """Refuse images from which nothing can be told: none, or all of one class.

    Args:
        cases: What is about to be evaluated.
        what: These images in words, such as `the test part`.
        made_from: How many more were left out because the model was made from them.

    Raises:
        UsageError: Naming the one class.
    """
    if not len(cases) and made_from:
        raise UsageError(
            f"No image is left in {what}: the model was made from all {made_from:,} of them.",
            "Name other data, or say --include-training all the same.",
        )
    if not len(cases):
        raise UsageError(f"No image is left in {what}.", "Look at what was left out, or name other data.")
    present = sorted({cases.classes[number] for number in cases.labels.tolist()})
    if len(present) < 2:
        raise UsageError(
            f"All {len(cases)} images in {what} are of one class, {present[0]!r}: no figure can tell it from another.",
            "Add images of another class.",
        )
