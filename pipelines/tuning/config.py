"""What a search is told, validated before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipelines.errors import UsageError
from pipelines.evaluation.metrics import METRIC_NAMES
from pipelines.training.config import TrainConfig
from pipelines.training.recipes import Recipe
from pipelines.tuning.points import Point

SCHEDULERS = ("none", "asha")


@dataclass(frozen=True)
class TuneConfig:
    """One `tune` command.

    Attributes:
        train: Data, model's name, base recipe, weights, positive classes, targets, seed and cache, as for `train`.
        points: What is searched.
        weights_of: Weights of some backbones, as for `train`; the others take those of `train`.
        grid: Key to what of it is searched, in words, for the record: `0.001, 0.005`, or `1e-05 to 0.01 (log)`.
        random: How many points were drawn; None for every combination.
        metric: What points are ranked by on validation; "" for the base recipe's.
        scheduler: `none`, or `asha` to end poor trainings early.
        room: What each trial gets, `cpu` and `gpu`, parts of one too; what is left out is chosen.
        concurrency: At most so many trials at a time; None: as many as the cluster can come to hold.
        search: Id of the search; None: the newest of the same data, recipe, weights and seed, or a new one.
        refit: Whether the best point is trained again on the training and validation parts together.
        promote: Whether the best point's version becomes the champion.
    """

    train: TrainConfig
    points: tuple[Point, ...]
    weights_of: Mapping[str, str] = field(default_factory=dict)
    grid: Mapping[str, str] = field(default_factory=dict)
    random: int | None = None
    metric: str = ""
    scheduler: str = "none"
    room: Mapping[str, float] = field(default_factory=dict)
    concurrency: int | None = None
    search: str | None = None
    refit: bool = False
    promote: bool = False

    def __post_init__(self) -> None:
        """Refuse what can only fail later.

        Raises:
            UsageError: Naming the option, the rule and the value.
        """
        if self.metric and self.metric not in METRIC_NAMES:
            raise UsageError(
                f"--metric knows no {self.metric!r}.", f"Say one of {', '.join(METRIC_NAMES)}; all are on validation."
            )
        if self.scheduler not in SCHEDULERS:
            raise UsageError(f"--scheduler knows no {self.scheduler!r}.", f"Say {' or '.join(SCHEDULERS)}.")
        unknown = set(self.weights_of) - {point.recipe.backbone for point in self.points}
        if unknown:
            raise UsageError(
                f"--weights names {min(unknown)!r}, and no point has that backbone.", "Name backbones of the grid."
            )
        if self.concurrency is not None and self.concurrency < 1:
            raise UsageError(f"--concurrency must be at least 1; it is {self.concurrency}.", "Leave it out.")

    @property
    def ranked_by(self) -> str:
        """The metric of the search."""
        return self.metric or self.train.recipe.metric

    @property
    def targets(self) -> list[float]:
        """Sensitivity and specificity that the thresholds of bundles have to reach."""
        return [self.train.target_sensitivity, self.train.target_specificity]

    @property
    def weights(self) -> dict[str, str]:
        """Backbone to its weights, for every backbone of the points."""
        backbones = dict.fromkeys(point.recipe.backbone for point in self.points)
        return {backbone: self.weights_of.get(backbone, self.train.weights) for backbone in backbones}

    def train_with(self, recipe: Recipe) -> TrainConfig:
        """What `train` would be told to train a point of the search."""
        return replace(self.train, recipe=recipe, weights=self.weights[recipe.backbone])
