"""What a search goes over: keys of the recipe, the values or the range of each, and the points that these make."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines.errors import UsageError
from pipelines.training.recipe_rules import RULES, Value, from_text
from pipelines.training.recipes import Recipe
from pipelines.tuning.points import Point

NOT_SEARCHED = ("validation_share", "test_share", "exclude")
"""Keys that decide which images train and validate: points that differ in them were judged by other images."""

_LOG = "log:"
_TO = ".."


@dataclass(frozen=True)
class Choices:
    """Values that were listed.

    Attributes:
        values: At least one, no two the same, in the order in which they were said.
    """

    values: tuple[Value, ...]

    def at(self, share: float) -> Value:
        """The value that a number of [0, 1) stands for; each has an equal part of it."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


@dataclass(frozen=True)
class Range:
    """Numbers that values are drawn from.

    Attributes:
        low: The smallest.
        high: The largest, above `low`.
        log: Whether they are even in their logarithm; `low` is then above 0.
        whole: Whether they are whole numbers, `low` and `high` among them.
    """

    low: float
    high: float
    log: bool
    whole: bool

    def at(self, share: float) -> Value:
        """The value that a number of [0, 1) stands for."""
        low, high = self.low, self.high + self.whole  # a whole number n stands for all from n to before n + 1
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        inside = min(max(value, low), self.high)  # a logarithm and its power are a rounding apart
        return int(inside) if self.whole else float(inside)


Axis = Choices | Range


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        axes: Key of the recipe to what it takes, in the order in which they were said; all `Choices` unless `random`.
        random: How many points are drawn; None for every combination.
    """

    axes: Mapping[str, Axis]
    random: int | None

    @property
    def count(self) -> int:
        """Points at most; fewer where the same one is drawn twice."""
        if self.random is not None:
            return self.random
        return math.prod(len(axis.values) for axis in self.axes.values() if isinstance(axis, Choices))


def read_space(texts: Sequence[str], random: int | None) -> Space:
    """Read what `--grid` and `--random` say.

    Whether a value is one that its key may hold is checked when points are made of it.

    Args:
        texts: `key=v1,v2`, one key each; with `random` also `key=low..high` and `key=log:low..high`.
        random: How many points shall be drawn; None for every combination of the values.

    Raises:
        UsageError: If that is no grid, naming the key, what was said of it and what to say.
    """
    if random is not None and random < 1:
        raise UsageError(f"--random {random} draws no point.", "Say how many points shall be drawn, 1 or more.")
    if not texts:
        raise UsageError("The grid is empty.", "Name keys and their values: --grid learning_rate=0.001,0.01.")
    axes: dict[str, Axis] = {}
    for text in texts:
        key, equals, said = (part.strip() for part in text.partition("="))
        if not key or not equals:
            raise UsageError(
                f"--grid {text!r} is no key with values.", "Say key=value,value: --grid learning_rate=0.001,0.01."
            )
        if key in axes:
            raise UsageError(f"The grid names the key {key} twice.", f"Say all its values at once: --grid {key}=….")
        axes[key] = _read_axis(key, said, random is not None)
    return Space(axes, random)


def _read_axis(key: str, said: str, drawn: bool) -> Axis:
    parts = [part.strip() for part in said.split(",")]
    if key in NOT_SEARCHED:
        raise UsageError(
            f"The key {key} cannot be searched: it decides which images train and validate, and points that were "
            "judged by other images cannot be compared.",
            f"Set it for all points: --set {key}=….",
        )
    if key not in RULES:
        from_text(key, said)  # says which keys there are
    if not all(parts):
        raise UsageError(f"--grid {key}={said} holds an empty value.", "Separate values by one comma each.")
    ranges = [part for part in parts if part not in RULES[key].names and (part.startswith(_LOG) or _TO in part)]
    if ranges:
        _refuse_as_range(key, said, ranges[0], drawn)
        return _read_range(key, said)
    values = tuple(from_text(key, part) for part in parts)
    twice = next((value for place, value in enumerate(values) if value in values[:place]), None)
    if twice is not None:
        raise UsageError(f"The grid names {_said({key: twice})} twice.", "Leave one of them out.")
    return Choices(values)


def _refuse_as_range(key: str, said: str, part: str, drawn: bool) -> None:
    """Refuse a range where none can stand."""
    if RULES[key].kind not in (int, float):
        raise UsageError(f"{key} is no number, and {part!r} no value of it.", f"{key} is {RULES[key].text}.")
    if part != said:
        raise UsageError(f"--grid {key}={said} mixes a range with values.", "Say a range alone, or values alone.")
    if _TO not in said:
        raise UsageError(f"--grid {key}={said} is no range.", f"Say --grid {key}=log:low..high.")
    if not drawn:
        raise UsageError(
            f"--grid {key}={said} is a range, of which there is no every value.",
            f"Say --random N to draw N points, or list values: --grid {key}=v1,v2.",
        )


def _read_range(key: str, said: str) -> Range:
    log, whole = said.startswith(_LOG), RULES[key].kind is int
    low, high = (from_text(key, end.strip()) for end in said.removeprefix(_LOG).split(_TO, 1))
    assert isinstance(low, int | float) and isinstance(high, int | float)
    if not low < high:
        raise UsageError(
            f"The range --grid {key}={said} does not rise: {low:g} is not below {high:g}.",
            f"Say the smaller number first, or one value: --grid {key}={high:g}.",
        )
    if log and low <= 0:
        raise UsageError(
            f"The range --grid {key}={said} is drawn evenly in its logarithm, which {low:g} does not have.",
            f"Begin above 0, or leave {_LOG} out.",
        )
    return Range(low, high, log, whole)


def make_points(space: Space, base: Recipe, limit: int, seed: int) -> tuple[Point, ...]:
    """Every point of a grid, or those that are drawn; all of them are whole recipes that can be trained.

    Args:
        space: What is searched.
        base: What the grid does not name.
        limit: At most so many.
        seed: At least 0. Decides what is drawn: point i is a function of the seed, i, and the axes, in whichever order
            they were said. So another number of points adds or drops the last ones, and leaves the others.

    Returns:
        The combinations with the first key slowest, or the points in the order in which they were drawn, without those
        that were drawn before.

    Raises:
        UsageError: If there are more than `limit`, a value is none of its key, or keys contradict each other at a
            point; for the whole grid, whatever comes first.
    """
    if space.count > limit:
        raise UsageError(
            f"The grid has {space.count:,} points, and the limit is {limit:,}.",
            f"Name fewer values, draw some of the points with --random, or say --limit {space.count}.",
        )
    for key, axis in space.axes.items():
        for value in axis.values if isinstance(axis, Choices) else (axis.low, axis.high):
            _refuse_illegal(key, value, base)
    points: dict[str, Point] = {}
    for settings in _every(space) if space.random is None else _drawn(space, space.random, seed):
        point = Point(len(points), settings, _recipe(base, settings))
        points.setdefault(point.key, point)
    return tuple(points.values())


def _refuse_illegal(key: str, value: Value, base: Recipe) -> None:
    """Refuse a value by the rule of its key alone, before any contradiction with other keys."""
    if not RULES[key].holds(value):
        _with(base, {key: value})  # says the rule


def _every(space: Space) -> Iterator[dict[str, Value]]:
    values = [axis.values for axis in space.axes.values() if isinstance(axis, Choices)]
    for combination in itertools.product(*values):
        yield dict(zip(space.axes, combination, strict=True))


def _drawn(space: Space, count: int, seed: int) -> Iterator[dict[str, Value]]:
    for number in range(count):
        shares = np.random.default_rng([seed, number]).random(len(space.axes))
        of_key = dict(zip(sorted(space.axes), shares.tolist(), strict=True))
        yield {key: axis.at(of_key[key]) for key, axis in space.axes.items()}


def _recipe(base: Recipe, settings: Mapping[str, Value]) -> Recipe:
    try:
        return _with(base, settings)
    except UsageError as error:
        raise UsageError(
            f"The grid's point {_said(settings)} cannot be trained: {error.message}",
            f"{error.cure or ''} What does not go together belongs into searches of its own.".strip(),
        ) from None


def _with(base: Recipe, settings: Mapping[str, Value]) -> Recipe:
    changes: dict[str, Any] = dict(settings)
    return replace(base, **changes)


def _said(settings: Mapping[str, Value]) -> str:
    return ", ".join(
        f"{key} = {str(value).lower() if type(value) is bool else value}" for key, value in settings.items()
    )
