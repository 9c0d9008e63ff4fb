"""The points of a search as its pages show them: settings beside what the leaderboard says of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.evaluation.report_numbers import whole
from pipelines.training.recipe_rules import Value
from pipelines.tuning.page_content import SearchContent
from pipelines.tuning.points import DONE


@dataclass(frozen=True)
class ShownPoint:
    """One point.

    Attributes:
        number: Its place in the grid.
        key: Its name in the leaderboard.
        backbone: Its recipe's.
        settings: Keys of the grid to this point's values.
        row: Its row of the leaderboard, column to value.
    """

    number: int
    key: str
    backbone: str
    settings: Mapping[str, Value]
    row: Mapping[str, Any]

    @property
    def status(self) -> str:
        """`done`, `stopped`, `failed`, or what else the leaderboard says, such as `waiting`."""
        return str(self.row["status"])

    @property
    def is_done(self) -> bool:
        """Whether it had all its epochs."""
        return self.status == DONE

    @property
    def rank(self) -> str:
        """Its place in the leaderboard, as the pages write it."""
        return whole(self.row["rank"])

    @property
    def value(self) -> float:
        """Of the search's metric at the kept epoch; NaN where it has none."""
        return _finite(self.row["value"])

    def kept(self, metric: str) -> float:
        """A figure on validation at the kept epoch; NaN where there is none."""
        which = "best" if self.row["kept_epoch"] == self.row["best_epoch"] else "last"
        return _finite(self.row[f"{which}_{metric}"])


def show_points(content: SearchContent) -> tuple[ShownPoint, ...]:
    """All points, in the order of the leaderboard."""
    points = {point.key: point for point in content.points}
    shown = []
    for row in content.leaderboard.to_pylist():
        point = points[row["point"]]
        shown.append(ShownPoint(point.number, row["point"], point.recipe.backbone, point.settings, row))
    return tuple(shown)


def varied_keys(points: Iterable[ShownPoint]) -> tuple[str, ...]:
    """The keys of which the points have more than one value, in the order of the grid."""
    values: dict[str, set[Value]] = {}
    for point in points:
        for key, value in point.settings.items():
            values.setdefault(key, set()).add(value)
    return tuple(key for key, own in values.items() if len(own) > 1)


def values_of(points: Iterable[ShownPoint], key: str) -> tuple[Value, ...]:
    """The values of a key: numbers rising, others in their order of the alphabet."""
    found = {point.settings[key] for point in points}
    if all(is_number(value) for value in found):
        return tuple(sorted(found, key=as_number))
    return tuple(sorted(found, key=str))


def backbones_of(points: Iterable[ShownPoint]) -> tuple[str, ...]:
    """The backbones, in the order of the grid."""
    return tuple(dict.fromkeys(point.backbone for point in sorted(points, key=lambda point: point.number)))


def is_number(value: Value) -> bool:
    """Whether a value has a place on a scale; true and false have none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_number(value: Value) -> float:
    """A value that `is_number` as a float."""
    assert isinstance(value, int | float)
    return float(value)


def best_of(points: Iterable[ShownPoint]) -> ShownPoint | None:
    """The best of some points, by their rank in the leaderboard; None where none has a value."""
    ranked = [point for point in points if point.row["rank"] is not None]
    return min(ranked, key=lambda point: int(point.row["rank"]), default=None)


def _finite(value: Any) -> float:
    return float(value) if value is not None and math.isfinite(value) else math.nan
