"""What a search consists of: points of the grid, the trainings that answer them, and the answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.training.history import Row
from pipelines.training.recipe_rules import Value
from pipelines.training.recipes import Recipe

DONE, STOPPED, FAILED = "done", "stopped", "failed"
"""What became of a point: read off; ended early by the scheduler; of no answer (its reason stands beside it)."""


@dataclass(frozen=True)
class Point:
    """One point of the grid.

    Attributes:
        number: Its place in the grid, from 0; it orders what is shown and decides nothing.
        settings: The keys that the grid names, with this point's values, in the order of the grid.
        recipe: The whole recipe, with these settings.
    """

    number: int
    settings: Mapping[str, Value]
    recipe: Recipe

    @property
    def key(self) -> str:
        """A hash of the whole recipe: the same point in another grid has the same one."""
        said = json.dumps(self.recipe.values(), sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Training:
    """One training that answers one or several points, each read off at its number of epochs.

    Attributes:
        key: A hash of what decides its weights, without the number of epochs where nothing else depends on it.
        recipe: As the first of its points, with the most epochs of all of them.
        points: In the order of the grid.
    """

    key: str
    recipe: Recipe
    points: tuple[Point, ...]

    @property
    def marks(self) -> tuple[int, ...]:
        """Numbers of epochs at which points are read off, rising."""
        return tuple(sorted({point.recipe.epochs for point in self.points}))

    def points_at(self, mark: int) -> tuple[Point, ...]:
        """The points of a number of epochs."""
        return tuple(point for point in self.points if point.recipe.epochs == mark)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a point's training would have left, had it been run for this point alone.

    Attributes:
        point: Key of the point.
        training: Key of the training that it was read off.
        status: `done`, `stopped` or `failed`.
        error: Why it failed, one sentence; None otherwise.
        history: A row an epoch, up to the point's number of epochs or to where it ended.
        best_epoch: The epoch that is best by the recipe's metric; 0 where that was never a number.
        kept_epoch: The epoch whose weights would be kept; 0 where there is none.
        logits: What the kept weights answer to validation, float32 `[M, K]` (or `[M, 1]`); None of a failed point.
    """

    point: str
    training: str
    status: str
    error: str | None
    history: tuple[Row, ...]
    best_epoch: int
    kept_epoch: int
    logits: NDArray[np.float32] | None

    @property
    def seconds(self) -> float:
        """Of the epochs, summed."""
        return float(sum(row["seconds"] for row in self.history))


def plain_settings(settings: Mapping[str, Value]) -> dict[str, Any]:
    """Settings as JSON holds them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
