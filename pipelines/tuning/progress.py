"""What a search tells: where it stands while it runs, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.scoring.report import ScoreProgress
from pipelines.tuning.plan import Plan


@dataclass(frozen=True)
class TrialNews:
    """Where a training of the search stands.

    Attributes:
        training: Its key.
        status: `running`, `done`, `stopped` (by the scheduler) or `failed`.
        epoch: Epochs done.
        epochs: At most so many.
        value: The search's metric on validation after the last epoch; NaN before the first.
        error: Why it failed, one sentence; None otherwise.
    """

    training: str
    status: str
    epoch: int
    epochs: int
    value: float
    error: str | None = None


@dataclass(frozen=True)
class Running:
    """A training that is under way, for a person.

    Attributes:
        settings: What its points have in common, key to value as text.
        epoch: Epochs done.
        epochs: At most so many.
        value: The search's metric after the last epoch; NaN before the first.
    """

    settings: Mapping[str, str]
    epoch: int
    epochs: int
    value: float


@dataclass(frozen=True)
class SearchProgress(ScoreProgress):
    """Where a search stands; `done` and `total` count points, `failed` those of no answer.

    Attributes:
        metric: What the points are ranked by.
        running: Trainings under way.
        best: Settings of the best point so far, key to value as text; {} before there is one.
        best_value: Its figure; NaN before there is one.
    """

    metric: str = ""
    running: tuple[Running, ...] = ()
    best: Mapping[str, str] = field(default_factory=dict)
    best_value: float = float("nan")


@dataclass(frozen=True)
class PlanReport:
    """What `--dry-run` tells; nothing was written.

    Attributes:
        search: Id of the search that would go on; None where a new one would begin.
        images: Labelled images found.
        plan: The whole plan.
        remaining: The plan of what is still to do.
        seconds: Estimate of that.
    """

    search: str | None
    images: int
    plan: Plan
    remaining: Plan
    seconds: float


@dataclass(frozen=True)
class TuneReport:
    """The answer of `tune`.

    Attributes:
        search: Id.
        folder: Of the search.
        metric: What the points are ranked by, on validation.
        best: `point`, `settings`, `value`, `epochs`, `kept_epoch` and `figures` of the best point.
        trials: Points of the grid.
        trainings: That answer them.
        run: Trainings that this command ran.
        finished: Points with an answer.
        stopped: Points that the scheduler ended early.
        failed: Points of no answer.
        seconds: The whole command.
        leaderboard: Place of leaderboard.parquet.
        page: Place of search.html.
        sureness: How sure the ranking is, one sentence; "" where nothing could be compared.
        model: The version that holds the best point, `NAME@VERSION`; None where none was written.
        path: Its folder.
        champion: Version that MODELS/NAME means now.
        backbones: Backbone to the folder of its best point's bundle.
        warnings: What a person should know.
    """

    search: str
    folder: str
    metric: str
    best: Mapping[str, Any]
    trials: int
    trainings: int
    run: int
    finished: int
    stopped: int
    failed: int
    seconds: float
    leaderboard: str
    page: str
    sureness: str
    model: str | None
    path: str | None
    champion: str | None
    backbones: Mapping[str, str]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The one JSON value that `--json` prints."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
