"""Drift: whether a night's images and answers are still like those of the nights before, and of validation.

The night is compared figure by figure with the trailing nights of the same model; where these are too few, with the
model's validation set. How far chance and the usual night-to-night variation go is simulated (`drift_chance`); the
p-values of all figures are corrected together (Holm), so that of a hundred stable nights at most one is told. What is
certain must also be large enough to matter before it is called drift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pipelines.evaluation import drift_words
from pipelines.evaluation.drift_figures import (
    DRIFT,
    LEAST_IMAGES,
    LEAST_NIGHTS,
    NONE,
    WATCH,
    FigureDrift,
    Reference,
    judged,
)
from pipelines.evaluation.drift_profile import Profile

FORMAT: Final = 1
UNKNOWN: Final = "unknown"

LEAST_TRAILING_IMAGES: Final = 200
LEAST_VALIDATION_IMAGES: Final = 50
# The correlation of images of one night that is granted where trailing nights show less: effects of 0.05 standard
# deviations. A validation set shows nothing of nights; there nearly 0.1 are granted.
GRANTED, GRANTED_UNSEEN = 0.0025, 0.009


@dataclass(frozen=True)
class DriftReport:
    """What is said of a night.

    Attributes:
        verdict: `none`, `watch`, `drift` or `unknown`.
        reference: `nights` or `validation`; None where there is nothing to compare with.
        reason: Why nothing is known; "" otherwise.
        figures: Against the reference.
        offsets: Against validation where the nights are the reference: it may differ for good, because the images of
            a training set are chosen, and has no say in the verdict.
        images: Rows of the night.
        scored: Of these, with a score.
        nights: `count`, `images`, `from` and `to` of the trailing nights; None where there are none.
        validation: `images` and `groups`; None where there is none.
    """

    verdict: str
    reference: str | None
    reason: str = ""
    figures: tuple[FigureDrift, ...] = ()
    offsets: tuple[FigureDrift, ...] = ()
    images: int = 0
    scored: int = 0
    nights: Mapping[str, Any] | None = None
    validation: Mapping[str, Any] | None = None

    @property
    def sentence(self) -> str:
        """The verdict in plain words."""
        return drift_words.of_report(self)

    def as_json(self) -> dict[str, Any]:
        """The report as drift.json has it; the caller adds which runs and which model."""
        against = drift_words.against(self.reference, self.nights)
        return {
            "format": FORMAT,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "reference": self.reference,
            "images": self.images,
            "scored": self.scored,
            "nights": None if self.nights is None else dict(self.nights),
            "validation": None if self.validation is None else dict(self.validation),
            "figures": [figure.as_json(against) for figure in self.figures],
            "offsets": [figure.as_json(drift_words.against("validation", None)) for figure in self.offsets],
        }


def compare(night: Profile, trailing: Sequence[Profile], validation: Profile | None, seed: int = 0) -> DriftReport:
    """Compare a night with the nights before it, or with validation.

    Args:
        night: All rows that one command committed.
        trailing: The nights before it, of the same model and precision.
        validation: The model's validation set; None where it has none.
        seed: Decides the simulation: the same night gets the same answer.

    Returns:
        The verdict and what it rests on.
    """
    usable = [own for own in trailing if own.images >= LEAST_IMAGES]
    report = DriftReport(
        UNKNOWN, None, images=night.images, scored=night.scored, nights=_nights(usable), validation=_set(validation)
    )
    if night.images < LEAST_IMAGES:
        return too_few_images(night.images)
    nights = Reference(usable, GRANTED)
    of_validation = None
    if validation is not None and validation.images >= LEAST_VALIDATION_IMAGES:
        of_validation = Reference([validation], GRANTED_UNSEEN, validation.clustering)
    if len(usable) >= LEAST_NIGHTS and sum(own.images for own in usable) >= LEAST_TRAILING_IMAGES:
        offsets = () if of_validation is None else judged(night, of_validation, seed)
        figures = judged(night, nights, seed)
        return replace(report, verdict=_worst(figures), reference="nights", figures=figures, offsets=offsets)
    if of_validation is not None:
        figures = judged(night, of_validation, seed)
        if figures:
            return replace(report, verdict=_worst(figures), reference="validation", figures=figures)
    reason = drift_words.no_reference(len(usable), LEAST_NIGHTS, LEAST_TRAILING_IMAGES, validation is not None)
    return replace(report, reason=reason)


def too_few_images(images: int) -> DriftReport:
    """What is said of a night with fewer images than are compared."""
    return DriftReport(UNKNOWN, None, drift_words.too_small(images, LEAST_IMAGES), images=images)


def _worst(figures: Sequence[FigureDrift]) -> str:
    found = {figure.verdict for figure in figures}
    return DRIFT if DRIFT in found else WATCH if WATCH in found else NONE


def _nights(trailing: Sequence[Profile]) -> dict[str, Any] | None:
    if not trailing:
        return None
    days = sorted(own.day.isoformat() for own in trailing if own.day is not None)
    return {
        "count": len(trailing),
        "images": sum(own.images for own in trailing),
        "from": days[0] if days else None,
        "to": days[-1] if days else None,
    }


def _set(validation: Profile | None) -> dict[str, Any] | None:
    return None if validation is None else {"images": validation.images, "groups": validation.groups}
