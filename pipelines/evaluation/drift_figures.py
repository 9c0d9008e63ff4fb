"""The figures of a night, each against what is usual, and all p-values corrected together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from pipelines.evaluation import drift_words
from pipelines.evaluation.drift_chance import Chance, Comparison, Counted, Floats, Spread, learned_spread, merged
from pipelines.evaluation.drift_profile import FIGURES, ORDERED, Profile, added, middles
from pipelines.predictions.night_counts import IN_IMAGE, IN_STORAGE, SCORED

NONE, WATCH, DRIFT = "none", "watch", "drift"

# What is promised is 1 % of stable nights; the rest is for what is assumed of nights and only nearly so.
ALPHA: Final = 0.0075
LEAST_IMAGES: Final = 5
LEAST_NIGHTS: Final = 7
MOST_CATEGORIES: Final = 12
OTHERS: Final = "others"
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
class Reference:
    """What a night is compared with.

    Attributes:
        units: The trailing nights, or one validation set.
        granted: The correlation of images of one night that is granted where the nights show less.
        clustering: Of a validation set: see `Profile`.
    """

    units: Sequence[Profile]
    granted: float
    clustering: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Look:
    """One figure, ready to be compared: the steps or categories, and what the nights say of their variation."""

    figure: str
    comparison: Comparison
    counts: Counted
    names: tuple[str, ...]
    location: Spread
    shape: Spread


def judged(night: Profile, reference: Reference, seed: int) -> tuple[FigureDrift, ...]:
    """All figures that night and reference know of enough images, each with its verdict.

    Args:
        night: The night.
        reference: What is usual.
        seed: Decides the simulation.
    """
    looks = [look for figure in FIGURES if (look := _look(figure, night, reference)) is not None]
    if len(reference.units) > 1:
        looks = _borrowed(looks)
    found = [_compared(look, night, reference, seed + 2 * FIGURES.index(look.figure)) for look in looks]
    corrected = holm([one.p for one in found])
    told = []
    for one, p in zip(found, corrected, strict=True):
        told.append(replace(one, p=p, verdict=(DRIFT if one.large else WATCH) if p <= ALPHA else NONE))
    return tuple(told)


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


def _look(figure: str, night: Profile, reference: Reference) -> _Look | None:
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
    clustering = reference.clustering.get(figure, max(reference.clustering.values(), default=1.0))
    spreads = _spreads(comparison, counts[1:], clustering)
    return _Look(figure, comparison, counts, names, *spreads)


def _borrowed(looks: Sequence[_Look]) -> list[_Look]:
    """Take no figure for steadier than half of the others: what never failed shows no series of failures."""
    if not looks:
        return []
    factor = float(np.median([look.location.factor for look in looks]))
    together = float(np.median([look.location.together for look in looks]))

    def at_least(spread: Spread) -> Spread:
        return replace(spread, factor=max(spread.factor, factor), together=max(spread.together, together))

    return [replace(look, location=at_least(look.location), shape=at_least(look.shape)) for look in looks]


def _compared(look: _Look, night: Profile, reference: Reference, seed: int) -> FigureDrift:
    """The figure, its p not yet corrected."""
    comparison, seen = look.comparison, look.comparison.observed
    chance = comparison.chance(look.location, look.shape, least=reference.granted, seed=seed)
    if not comparison.ordered:
        shares, usual = look.counts[0] / look.counts[0].sum(), comparison.usual
        shifts = _cohens_h(shares, usual)
        # What failed is told, not how much less was scored.
        at = int((np.abs(shifts) * [name != SCORED for name in look.names]).argmax())
        return FigureDrift(
            look.figure, NONE, float(shares[at]), float(usual[at]), float(chance.low[at]), float(chance.high[at]),
            look.names[at], chance.p, float(shifts[at]), seen.psi, None,
            dict(zip(look.names, shares.tolist(), strict=True)), dict(zip(look.names, usual.tolist(), strict=True)),
        )  # fmt: skip
    expected = added(reference.units).means[look.figure]
    low, high = _in_exact_units(look, chance, expected)
    return FigureDrift(
        look.figure, NONE, night.means[look.figure], expected, low, high, None, chance.p, seen.location, seen.psi,
        seen.ks,
    )  # fmt: skip


def _in_exact_units(look: _Look, chance: Chance, expected: float) -> tuple[float, float]:
    """Where stable nights lie, moved from the middles of the steps, which they are drawn from, to exact means.

    The verdict compares night and reference in steps both; only what a person reads stands beside exact means.
    """
    moved = expected - float(look.comparison.usual @ look.comparison.values[:, 0])
    highest = math.inf if look.figure == "size" else 1.0
    low, high = (min(max(float(end[0]) + moved, 0.0), highest) for end in (chance.low, chance.high))
    return low, high


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
