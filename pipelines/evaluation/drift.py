"""Drift: whether a night's images and answers are still like those of the nights before, and of validation.

The night is compared figure by figure with the trailing nights of the same model; where these are too few, with the
model's validation set. How far chance and the usual night-to-night variation go is simulated (`drift_chance`); the
p-values of all figures are corrected together (Holm), so that of a hundred stable nights at most one is told. What is
certain must also be large enough to matter before it is called drift.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from pipelines.evaluation import drift_words
from pipelines.evaluation.drift_chance import Comparison, Counted, Floats, Spread, learned_spread, merged
from pipelines.evaluation.drift_profile import FIGURES, ORDERED, Profile, middles
from pipelines.predictions.night_counts import IN_IMAGE, IN_STORAGE, SCORED

FORMAT: Final = 1
NONE, WATCH, DRIFT, UNKNOWN = "none", "watch", "drift", "unknown"

ALPHA: Final = 0.01
LEAST_IMAGES: Final = 5
LEAST_NIGHTS, LEAST_TRAILING_IMAGES = 7, 200
LEAST_VALIDATION_IMAGES: Final = 50
MOST_CATEGORIES: Final = 12
OTHERS: Final = "others"
# The correlation of images of one night that is granted where trailing nights show less: effects of 0.05 standard
# deviations. A validation set shows nothing of nights; there nearly 0.1 are granted.
GRANTED, GRANTED_UNSEEN = 0.0025, 0.009
# What is certain but smaller than all of these is no drift: shifts in standard deviations (of shares Cohen's h), and
# what is usual for the index and for Kolmogorov and Smirnov's distance.
LARGE_SHIFT, LARGE_PSI, LARGE_KS = 0.2, 0.1, 0.1


@dataclass(frozen=True)
class FigureDrift:
    """One figure of a night against what is usual.

    Attributes:
        figure: One of `FIGURES`.
        verdict: `none`; `watch`: certain but small; `drift`: certain and large.
        value: The night's mean, or its share of the category `of`.
        expected: The usual one.
        low: Of a hundred stable nights one half lies below.
        high: Of a hundred stable nights one half lies above.
        of: The category that has changed most; None for figures with an order.
        p: How often a stable night differs so much, corrected for the number of figures.
        effect: The shift in standard deviations (of ranks), signed; of shares Cohen's h.
        psi: Population stability index.
        ks: Largest difference of the cumulative shares; None for shares.
        shares: Share of each category; None for figures with an order.
        expected_shares: The usual ones.
    """

    figure: str
    verdict: str
    value: float
    expected: float
    low: float
    high: float
    of: str | None
    p: float
    effect: float
    psi: float
    ks: float | None
    shares: Mapping[str, float] | None = None
    expected_shares: Mapping[str, float] | None = None

    @property
    def large(self) -> bool:
        """Whether the change is large enough to matter."""
        return abs(self.effect) >= LARGE_SHIFT or self.psi >= LARGE_PSI or (self.ks or 0.0) >= LARGE_KS

    def as_json(self, against: str) -> dict[str, Any]:
        """The figure as drift.json has it.

        Args:
            against: What it was compared with, in words.
        """
        return {
            "figure": self.figure,
            "verdict": self.verdict,
            "value": self.value,
            "expected": self.expected,
            "low": self.low,
            "high": self.high,
            "of": self.of,
            "p": self.p,
            "effect": self.effect,
            "psi": self.psi,
            "ks": self.ks,
            "shares": None if self.shares is None else dict(self.shares),
            "expected_shares": None if self.expected_shares is None else dict(self.expected_shares),
            "sentence": drift_words.of_figure(self, against),
        }


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


@dataclass(frozen=True)
class _Reference:
    """What a night is compared with."""

    units: Sequence[Profile]
    granted: float
    seed: int
    clustering: Mapping[str, float] = field(default_factory=dict)


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
    nights = _Reference(usable, GRANTED, seed)
    of_validation = None
    if validation is not None and validation.images >= LEAST_VALIDATION_IMAGES:
        of_validation = _Reference([validation], GRANTED_UNSEEN, seed, validation.clustering)
    if len(usable) >= LEAST_NIGHTS and sum(own.images for own in usable) >= LEAST_TRAILING_IMAGES:
        offsets = () if of_validation is None else _judged(night, of_validation)
        figures = _judged(night, nights)
        return replace(report, verdict=_worst(figures), reference="nights", figures=figures, offsets=offsets)
    if of_validation is not None:
        figures = _judged(night, of_validation)
        if figures:
            return replace(report, verdict=_worst(figures), reference="validation", figures=figures)
    return replace(report, reason=drift_words.no_reference(len(usable), LEAST_NIGHTS, validation is not None))


def too_few_images(images: int) -> DriftReport:
    """What is said of a night with fewer images than are compared."""
    return DriftReport(UNKNOWN, None, drift_words.too_small(images, LEAST_IMAGES), images=images)


def _judged(night: Profile, reference: _Reference) -> tuple[FigureDrift, ...]:
    """All figures, their p-values corrected together, each with its verdict."""
    found = [_figure(figure, night, reference) for figure in FIGURES]
    known = [one for one in found if one is not None]
    corrected = holm([one.p for one in known])
    judged = []
    for one, p in zip(known, corrected, strict=True):
        certain = p <= ALPHA
        judged.append(replace(one, p=p, verdict=(DRIFT if one.large else WATCH) if certain else NONE))
    return tuple(judged)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction: valid whatever the figures have to do with each other.

    Args:
        ps: As found.

    Returns:
        Corrected, in the same order, at most 1.
    """
    corrected = [1.0] * len(ps)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=lambda at: ps[at])):
        highest = max(highest, min(1.0, ps[index] * (len(ps) - place)))
        corrected[index] = highest
    return corrected


def _figure(figure: str, night: Profile, reference: _Reference) -> FigureDrift | None:
    """One figure, p not yet corrected; None where the night or the reference does not know it of enough images."""
    units = [own for own in reference.units if own.count(figure)]
    single = len(reference.units) == 1
    if night.count(figure) < LEAST_IMAGES or not units or (not single and len(units) < LEAST_NIGHTS):
        return None
    ordered = figure in ORDERED
    names: tuple[str, ...] = ()
    if ordered:
        counts, middle = merged(np.stack([own.ordered[figure] for own in (night, *units)]), middles(figure))
        values = middle[:, None]
    else:
        names, counts = _table(figure, (night, *units))
        values = np.eye(len(names))
    comparison = Comparison(counts[0], counts[1:], values, ordered)
    spreads = _spreads(comparison, counts[1:], reference.clustering.get(figure, 1.0))
    seed = reference.seed + 2 * FIGURES.index(figure)
    chance = comparison.chance(*spreads, least=reference.granted, seed=seed)
    seen = comparison.observed
    night_shares, usual = counts[0] / counts[0].sum(), comparison.usual
    if not ordered:
        shifts = _cohens_h(night_shares, usual)
        # What failed is told, not how much less was scored.
        at = int((np.abs(shifts) * [name != SCORED for name in names]).argmax())
        return FigureDrift(
            figure, NONE, float(night_shares[at]), float(usual[at]), float(chance.low[at]), float(chance.high[at]),
            names[at], chance.p, float(shifts[at]), seen.psi, None,
            dict(zip(names, night_shares.tolist(), strict=True)), dict(zip(names, usual.tolist(), strict=True)),
        )  # fmt: skip
    expected = sum(own.count(figure) * own.means[figure] for own in units) / sum(own.count(figure) for own in units)
    return FigureDrift(
        figure, NONE, night.means[figure], expected, float(chance.low[0]), float(chance.high[0]), None, chance.p,
        seen.location, seen.psi, seen.ks,
    )  # fmt: skip


def _spreads(comparison: Comparison, units: Counted, clustering: float) -> tuple[Spread, Spread]:
    """Night-to-night variation of location and of shape; of a single set what its groups say."""
    if len(units) == 1:
        assumed = Spread(clustering, 0.0, 1)
        return assumed, assumed
    shape = learned_spread(units, comparison.group_shares)
    if not comparison.ordered:
        return shape, shape
    location = learned_spread(units, comparison.ranks)
    # A night that shifts as a whole moves all shares at once, which variation step by step would not show.
    both = Spread(
        max(location.factor, shape.factor), max(location.together, shape.together), min(location.nights, shape.nights)
    )
    return location, both


def _table(figure: str, profiles: Sequence[Profile]) -> tuple[tuple[str, ...], Counted]:
    known = {IN_IMAGE, IN_STORAGE, SCORED} if figure == "failures" else set()
    total = sum((Counter(own.shares.get(figure, {})) for own in profiles), Counter[str]())
    names = tuple(sorted(known.union(name for name, _ in total.most_common(MOST_CATEGORIES))))
    counts = np.array([[own.shares.get(figure, {}).get(name, 0) for name in names] for own in profiles], np.int64)
    if len(total) <= MOST_CATEGORIES:
        return names, counts
    others = np.array([own.count(figure) for own in profiles]) - counts.sum(axis=1)
    return (*names, OTHERS), np.column_stack([counts, others])


def _cohens_h(first: Floats, second: Floats) -> Floats:
    """Cohen's h of shares: differences on a scale on which 0.2 is small wherever the share lies."""
    apart: Floats = 2 * np.arcsin(np.sqrt(first)) - 2 * np.arcsin(np.sqrt(second))
    return apart


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
