"""How far a stable night may lie from what is usual: the night-to-night variation, and chance by simulation.

A night is drawn twice. First what the night is like: shares around the usual ones by a Dirichlet distribution, because
no two nights are alike and the images of one patient are. Then its images from these shares. How wide the first draw
is, is learned from the trailing nights; it is drawn too, because few nights tell it badly. So a night of five images
is judged by the steps in which five images can lie, and one of 50,000 by how much nights differ. What is usual is
drawn as well: it is known from a limited number of images and nights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counted = NDArray[np.int64]

GROUPS: Final = 10
"""Groups of the population stability index."""
MOST_STEPS: Final = 30
# More draws are made only where those before leave it open whether a night is stable: up to how many, and the p above
# which no more are needed.
STAGES: Final = ((400, 0.1), (1_600, 0.02), (5_000, 1.0))
_LEAST_WEIGHT: Final = 1e-9
_MOST_TOGETHER: Final = 0.98


@dataclass(frozen=True)
class Spread:
    """How much more nights differ than independent images make them.

    Attributes:
        factor: The variance over that of independent images, as seen at the nights' own sizes: what images that come
            in series add.
        together: The correlation of two images of one night: what the night itself adds.
        nights: From how many it was learned; 1 where it is assumed.
    """

    factor: float
    together: float
    nights: int

    def variance(self, images: int) -> float:
        """Of a mean over so many images, in units of the variance of one.

        Nights of one size do not tell series from night effects: the larger of the two readings is taken, so that a
        night that is much smaller or larger than the trailing ones is judged with caution.
        """
        return min(1.0, max(max(self.factor, 1.0) / images, 1 / images + self.together))


@dataclass(frozen=True)
class Compared:
    """Two sets of images by one figure.

    Attributes:
        location: Shift of the mean rank in standard deviations of ranks, signed; of shares: 0.
        psi: Population stability index.
        ks: Largest difference of the cumulative shares.
    """

    location: float
    psi: float
    ks: float


@dataclass(frozen=True)
class Chance:
    """What stable nights show.

    Attributes:
        p: The share of them that differ at least as much as this one, by location or shape.
        low: Of the figure's own value (mean, or share of a category): 0.5 % of stable nights lie below.
        high: 0.5 % lie above.
    """

    p: float
    low: Floats
    high: Floats


def merged(rows: Counted, middle: Floats, most: int = MOST_STEPS) -> tuple[Counted, Floats]:
    """Join neighbouring steps to at most so many that hold about as many images each.

    Args:
        rows: Counts, `[R, S]`.
        middle: The value of each step, `[S]`.
        most: How many.

    Returns:
        Counts `[R, B]`, and the mean value within each step, `[B]`.
    """
    total = rows.sum(axis=0)
    before = np.cumsum(total) - total
    # The step's middle image decides, so that a step with many images has a place of its own.
    place = ((before + total / 2) * most / max(int(total.sum()), 1)).astype(np.int64)
    used = np.flatnonzero(total)
    target = np.unique(place[used], return_inverse=True)[1]
    count = int(target.max()) + 1 if len(used) else 0
    joined = np.stack([np.bincount(target, row[used], minlength=count) for row in rows])
    weight = np.bincount(target, total[used], minlength=count)
    values = np.bincount(target, total[used] * middle[used], minlength=count) / weight
    return np.rint(joined).astype(np.int64), values


def learned_spread(units: Counted, ranks: Floats) -> Spread:
    """Night-to-night variation, from nights each compared with the others.

    Args:
        units: Counts of each night, `[K, B]`; K at least 2, no night empty.
        ranks: What is averaged over a night's images: one or several functions of the step, `[B, J]`; their mean
            variation counts, each weighed by its variance in images.
    """
    images = units.sum(axis=1)
    others = images.sum() - images
    total = units.sum(axis=0)
    share = total / total.sum()
    variance = share @ ranks**2 - (share @ ranks) ** 2
    apart = (units @ ranks) / images[:, None] - ((total - units) @ ranks) / others[:, None]
    scale = float(variance.sum())
    if scale <= 0:
        return Spread(1.0, 0.0, len(units))
    squared = (apart**2).sum(axis=1) / scale
    alone = 1 / images + 1 / others
    # Small nights tell little about what nights add to chance.
    weight = 1 / (1 / images + 0.01) ** 2
    together = float((weight * (squared - alone)).sum() / (weight * (1 + images / others)).sum())
    return Spread(float((squared / alone).mean()), max(0.0, together), len(units))


class Comparison:
    """A night and what is usual, by one figure; see the module.

    Args:
        night: Images of the night by step or category, `[B]`.
        units: The same of the nights, or of the one set, that it is compared with, `[K, B]`.
        values: What each step means, `[B, V]`: of an ordered figure its value, of shares one column a category.
        ordered: Whether steps have an order.
    """

    def __init__(self, night: Counted, units: Counted, values: Floats, ordered: bool) -> None:
        self._night, self._units, self.values, self.ordered = night, units, values, ordered
        self.images = int(night.sum())
        sizes = units.sum(axis=1)
        self.usual = units.sum(axis=0) / sizes.sum()
        self._weights = sizes / sizes.sum()
        self._sizes = sizes
        self.ranks = self._rank_scores()
        self.group_shares = _psi_groups(self.usual, ordered)

    def _rank_scores(self) -> Floats:
        """Mid-ranks of the usual images from 0 to 1 in units of their deviation, `[B, 1]`; of shares the categories."""
        if not self.ordered:
            return np.eye(len(self.usual))
        both = self._units.sum(axis=0) + self._night
        share = both / both.sum()
        middle = np.cumsum(share) - share / 2
        deviation = float(np.sqrt(max(share @ middle**2 - (share @ middle) ** 2, 0.0)))
        scores: Floats = (middle[:, None] - 0.5) / deviation if deviation > 0 else np.zeros((len(share), 1))
        return scores

    @property
    def observed(self) -> Compared:
        """The night itself."""
        location, psi, ks = self._measures(self._night[None] / self.images, self.usual[None])
        return Compared(float(location[0]), float(psi[0]), float(ks[0]))

    def chance(self, of_location: Spread, of_shape: Spread, least: float, seed: int) -> Chance:
        """What stable nights of this size show.

        Args:
            of_location: Night-to-night variation of the mean rank (of shares: not used).
            of_shape: Of the shares of steps or categories.
            least: Correlation of the images of one night that is always granted.
            seed: Decides the draws.
        """
        p_shape, low, high = self._simulated(of_shape, least, seed, shape=True)
        if not self.ordered:
            return Chance(p_shape, low, high)
        p_location, low, high = self._simulated(of_location, least, seed + 1, shape=False)
        return Chance(min(1.0, 2 * min(p_shape, p_location)), low, high)

    def _simulated(self, spread: Spread, least: float, seed: int, shape: bool) -> tuple[float, Floats, Floats]:
        generator = np.random.default_rng(seed)
        there = self.observed
        seen = np.array([there.psi, there.ks]) if shape else np.array([abs(there.location)])
        if not self.ordered:
            seen = seen[:1]
        drawn, values = np.empty((0, len(seen))), np.empty((0, self.values.shape[1]))
        p = 1.0
        for draws, enough in STAGES:
            more, more_values = self._draw(spread, least, draws - len(drawn), generator, shape)
            drawn, values = np.concatenate([drawn, more]), np.concatenate([values, more_values])
            p = _smallest_p(seen, drawn)
            if p > enough:
                break
        low, high = np.quantile(values, [0.005, 0.995], axis=0)
        return p, low, high

    def _draw(
        self, spread: Spread, least: float, draws: int, generator: np.random.Generator, shape: bool
    ) -> tuple[Floats, Floats]:
        """Statistics `[D, T]` and values `[D, V]` of simulated nights."""
        images = self.images
        variance = np.full(draws, spread.variance(images))
        if spread.nights > 1:
            free = spread.nights - 1
            variance *= free / generator.chisquare(free, draws)
        variance = np.clip(variance, 1 / images + least, 1.0)
        # A single set has no nights: how it differs from all of them is granted to the night already.
        granted = least if len(self._sizes) > 1 else 0.0
        of_usual = float(
            sum(w**2 * (spread.variance(int(n)) + granted) for w, n in zip(self._weights, self._sizes, strict=True))
        )
        share = self._pooled(1 / (1 / images + least), 1 / of_usual)
        night = _drawn(share, images, variance, generator)
        usual = _drawn(share, int(self._sizes.sum()), np.full(draws, of_usual), generator)
        location, psi, ks = self._measures(night, usual)
        found = np.stack([psi, ks] if shape else [np.abs(location)], axis=1)
        return found[:, :1] if not self.ordered else found, night @ self.values

    def _pooled(self, of_night: float, of_usual: float) -> Floats:
        """Shares of both together, each weighed by what it tells: without difference they are drawn from the same."""
        both = of_night * self._night / self.images + of_usual * self.usual
        shares: Floats = both / both.sum()
        return shares

    def _measures(self, night: Floats, usual: Floats) -> tuple[Floats, Floats, Floats]:
        """Location, PSI and KS of shares `[D, B]` each."""
        apart = night - usual
        location = (apart @ self.ranks)[:, 0] if self.ordered else np.zeros(len(apart))
        ks: Floats = np.abs(np.cumsum(apart, axis=1)).max(axis=1)
        # Half an image in each group: an empty one says little of a small night.
        half = 0.5 / self.images
        first, second = night @ self.group_shares + half, usual @ self.group_shares + half
        psi: Floats = ((first - second) * np.log(first / second)).sum(axis=1) / (1 + half * first.shape[1])
        return location, psi, ks


def _psi_groups(usual: Floats, ordered: bool) -> Floats:
    """Which group each step belongs to, `[B, G]` of 0 and 1: tenths of the usual images; categories stay alone."""
    if not ordered:
        return np.eye(len(usual))
    place = np.minimum(((np.cumsum(usual) - usual / 2) * GROUPS).astype(np.int64), GROUPS - 1)
    target = np.unique(place, return_inverse=True)[1]
    groups: Floats = np.eye(int(target.max()) + 1)[target]
    return groups


def _drawn(share: Floats, images: int, variance: Floats, generator: np.random.Generator) -> Floats:
    """Shares of so many images, `[D, B]`, whose means vary as `[D]` says (in units of the variance of one image)."""
    together = np.clip((images * variance - 1) / max(images - 1, 1), 1e-12, _MOST_TOGETHER)
    alpha = share[None] * (1 / together - 1)[:, None]
    drawn = generator.standard_gamma(np.maximum(alpha, _LEAST_WEIGHT))
    total = drawn.sum(axis=1, keepdims=True)
    empty = total[:, 0] <= 0
    drawn[empty], total[empty] = share, 1.0
    shares: Floats = generator.multinomial(images, drawn / total) / images
    return shares


def _smallest_p(seen: Floats, drawn: Floats) -> float:
    """The p of the most telling of several statistics, as exact as the draws are.

    Args:
        seen: `[T]`.
        drawn: `[D, T]`; all draws and what was seen are alike where nothing has changed.
    """
    every = np.concatenate([seen[None], drawn])
    rank = np.empty_like(every)
    for column in range(every.shape[1]):
        ordered = np.sort(every[:, column])
        # How many are at least as large, a hair's breadth of rounding included.
        rank[:, column] = len(every) - np.searchsorted(ordered, every[:, column] - 1e-12, side="left")
    smallest = rank.min(axis=1)
    return float((smallest <= smallest[0]).mean())
