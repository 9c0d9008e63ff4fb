"""What a training is told, validated before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.errors import UsageError
from pipelines.evaluation.thresholds import check_target
from pipelines.models.record import check_name
from pipelines.storage import paths
from pipelines.training.labelled import DataConfig
from pipelines.training.recipes import Recipe


@dataclass(frozen=True)
class TrainConfig:
    """One `train` command.

    Attributes:
        data: The labelled images; the recipe's `exclude` is added to its own.
        models: The MODELS folder, local or in a bucket.
        name: The model's name.
        recipe: How it is trained.
        weights: The backbone's weights: `imagenet`, `none`, or a file.
        positive: Positive classes; empty for the rule of `models.positive`.
        target_sensitivity: What the threshold has to reach on validation, above 0 and at most 1.
        target_specificity: What has to be reached, with the sensitivity, outside of the refer band; likewise.
        seed: Decides split, initialisation, order, augmentation and dropout.
        workers: Data-parallel workers; each batch is shared among them.
        resources: Of each worker, `cpu` and `gpu`; what is left out is its share of what the cluster has.
        cache: Where caches and checkpoints lie, safe to delete; None: below MODELS/NAME/work.
        start: REF of a bundle whose weights training starts from; None: `weights`.
        new_split: Whether a new split is made although an earlier version of the name has one.
        newest: Number of the newest version whose split is kept; None: of the newest that there is.
        who: User, host, command line and versions, for the bundle's provenance.
    """

    data: DataConfig
    models: str
    name: str
    recipe: Recipe
    weights: str = "imagenet"
    positive: tuple[str, ...] = ()
    target_sensitivity: float = 0.95
    target_specificity: float = 0.95
    seed: int = 0
    workers: int = 1
    resources: Mapping[str, int] = field(default_factory=dict)
    cache: str | None = None
    start: str | None = None
    new_split: bool = False
    newest: int | None = None
    who: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what can only fail later.

        Raises:
            UsageError: Naming the option, the rule and the value.
        """
        check_name(self.name)
        check_target("--target-sensitivity", self.target_sensitivity)
        check_target("--target-specificity", self.target_specificity)
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed must be from 0 to {2**31 - 1}; it is {self.seed}.", "Say 0.")
        if self.workers < 1:
            raise UsageError(f"--workers must be at least 1; it is {self.workers}.", "Say 1.")
        if not self.weights:
            raise UsageError("--weights is empty.", "Say imagenet, none, or the path of a .weights.h5 file.")

    @property
    def work(self) -> str:
        """The folder of caches and checkpoints."""
        if self.cache:
            return paths.canonical(self.cache)
        return paths.join(paths.canonical(self.models), self.name, "work")

    @property
    def labelled(self) -> DataConfig:
        """The data with everything that is to be left out."""
        return replace(self.data, exclude=(*self.data.exclude, *self.recipe.exclude))


@dataclass(frozen=True)
class CalibrateConfig:
    """One `models calibrate` command.

    Attributes:
        ref: The model.
        data: Labelled images that it has not seen.
        target_sensitivity: What the thresholds have to reach, above 0 and at most 1.
        target_specificity: What has to be reached, with the sensitivity, outside of the refer bands; likewise.
        who: User, host, command line and versions, for the bundle's provenance.
    """

    ref: str
    data: DataConfig
    target_sensitivity: float = 0.95
    target_specificity: float = 0.95
    who: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what can only fail later.

        Raises:
            UsageError: Naming the option, the rule and the value.
        """
        check_target("--target-sensitivity", self.target_sensitivity)
        check_target("--target-specificity", self.target_specificity)
