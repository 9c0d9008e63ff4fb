"""The best points of a search as bundles: the trained state that was kept, compiled, calibrated and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipelines.errors import TryLater
from pipelines.models.bundle import Bundle
from pipelines.storage import paths
from pipelines.training import writing
from pipelines.training.config import TrainConfig
from pipelines.training.loop import FitResult
from pipelines.training.network import with_head
from pipelines.training.preparation import Connect, Prepared, Tell, keep
from pipelines.training.refit import refit
from pipelines.training.run import complete
from pipelines.training.writing import Made
from pipelines.tuning.answers import load_answer, load_variables
from pipelines.tuning.config import TuneConfig
from pipelines.tuning.passes import Ground
from pipelines.tuning.plan import base_key
from pipelines.tuning.points import Point

BEST = "best"
"""The folder, below the search's, of the bundles of each backbone's best point: a MODELS folder of its own."""

BYTES_A_PARAMETER = 4
"""As 32-bit numbers."""


@dataclass(frozen=True)
class Registered:
    """A point that was written as a bundle.

    Attributes:
        point: Its key.
        bundle: The bundle's folder.
        name: As `NAME@VERSION`.
        model_id: The bundle's.
        parameters: Of the whole network.
    """

    point: str
    bundle: str
    name: str
    model_id: str
    parameters: int


def make(
    config: TuneConfig,
    ground: Ground,
    folder: str,
    point: Point,
    search: Mapping[str, Any],
    connect: Connect,
    tell: Tell,
) -> tuple[TrainConfig, Prepared, Made]:
    """From the kept weights of a point to all that a bundle holds.

    Args:
        config: The search.
        ground: What it stands on.
        folder: The search's.
        point: Which.
        search: What the bundle's provenance tells of the search; `points` and `metric` among it.
        connect: Starts or joins Ray; not called where the features are still there.
        tell: Called with progress.

    Raises:
        UsageError, ModelRefused, TryLater: Each with its cure.
    """
    answer, variables = load_answer(folder, point.key, logits=False), load_variables(folder, point.key)
    if answer is None or variables is None:
        raise TryLater(f"The weights of the point {point.key} are not there any more.", "Run the same command again.")
    own = config.train_with(point.recipe)
    own = replace(own, who={**own.who, "search": {**search, "point": point.key}})
    same = base_key(point.recipe) == ground.base
    if same:
        kept = replace(ground.first, network=with_head(ground.first.network, point.recipe, own.seed))
    else:
        kept = keep(own, ground.found, point.recipe, connect, tell)
    ready = Prepared(ground.found, kept, ground.data)
    fit = FitResult(answer.history, answer.kept_epoch, answer.best_epoch > 0, variables)
    made = complete(own, ready, fit, tell)
    return own, ready, replace(made, judged=replace(made.judged, warnings=(*made.judged.warnings, *_chosen(search))))


def _chosen(search: Mapping[str, Any]) -> list[str]:
    if search["points"] < 2:
        return []
    return [
        f"This model is the best of {search['points']:,} by {search['metric']} on validation, so its figures there "
        "flatter it; the test part tells what it can do."
    ]


def register_backbone(config: TrainConfig, made: Made, folder: str, point: Point) -> Registered:
    """Write the best point of a backbone below the search's folder."""
    own = replace(config, models=paths.join(folder, BEST), name=point.recipe.backbone)
    return _registered(writing.write(own, made), made, point)


def register(
    config: TrainConfig, ready: Prepared, made: Made, point: Point, again: bool, connect: Connect, tell: Tell
) -> Registered:
    """Write the best point of the search as a version of the model's name.

    Args:
        config: As `make` answers it.
        ready: Likewise.
        made: Likewise.
        point: Which.
        again: Whether it is trained again on training and validation together.
        connect: Starts or joins Ray.
        tell: Called with progress.
    """
    final = made
    if again:
        final = refit(config, ready, made, connect, tell)
        about = {"refit": {"parts": ["train", "val"], "epochs": made.fit.best_epoch}}
        config = replace(config, who={**config.who, "search": {**config.who["search"], **about}})
    return _registered(writing.write(config, final), final, point)


def _registered(bundle: Bundle, made: Made, point: Point) -> Registered:
    parameters = made.network.backbone.count_params() + made.network.head.count_params()
    return Registered(point.key, bundle.uri, f"{bundle.name}@{bundle.version}", bundle.model_id, int(parameters))
