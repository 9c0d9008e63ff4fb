"""What the trials of a search read: one pass over the images for each network, whatever the number of trials."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.errors import TryLater
from pipelines.storage import paths
from pipelines.training.arrays import Inputs, write_inputs
from pipelines.training.dataset import Dataset
from pipelines.training.preparation import Connect, Found, Kept, Tell, keep, move, split
from pipelines.training.recipes import Recipe
from pipelines.tuning.config import TuneConfig
from pipelines.tuning.plan import Pass, base_key


@dataclass(frozen=True)
class PassDone:
    """A feature pass that was made.

    Attributes:
        inputs: What its trials read.
        seconds: That it took; little where the features of an earlier command were found again.
    """

    inputs: Inputs
    seconds: float


@dataclass(frozen=True, eq=False)
class Ground:
    """What a search stands on.

    Attributes:
        found: The images and the models of the name.
        first: What is kept of the images for the first network of the plan.
        base: `base_key` of that network.
        seconds: That its features took.
        data: The split that all points share.
    """

    found: Found
    first: Kept
    base: str
    seconds: float
    data: Dataset


def stand_on(config: TuneConfig, found: Found, first: Recipe, connect: Connect, tell: Tell) -> Ground:
    """Compute what is kept for the first network of a search, and split the images by it.

    Near-duplicates are told by small pictures of the images at the network's input size; another network could see
    another pair as alike, and points of two splits could not be compared.

    Args:
        config: The search.
        found: The images.
        first: Recipe of the first point.
        connect: Starts or joins Ray; not called where the features are still there.
        tell: Called with progress.
    """
    began = time.monotonic()
    kept = keep(config.train_with(first), found, first, connect, tell)
    seconds = time.monotonic() - began
    return Ground(found, kept, base_key(first), seconds, split(config.train, found, kept))


def run_passes(
    config: TuneConfig, ground: Ground, passes: Sequence[Pass], folder: str, connect: Connect, tell: Tell
) -> dict[str, PassDone]:
    """Compute what the trials read, one network after the other.

    Args:
        config: The search.
        ground: What it stands on.
        passes: Which.
        folder: Where the arrays are written.
        connect: Starts or joins Ray.
        tell: Called with progress.

    Returns:
        By the key of the pass.

    Raises:
        UsageError, ModelRefused, TryLater: Each with its cure.
    """
    members: dict[str, list[Pass]] = {}
    for one in passes:
        members.setdefault(base_key(one.recipe), []).append(one)
    done = {}
    for base, own in members.items():
        began, recipe = time.monotonic(), own[0].recipe
        if base == ground.base:
            kept, before = ground.first, ground.seconds
        else:
            kept, before = keep(config.train_with(recipe), ground.found, recipe, connect, tell), 0.0
        _refuse_other_images(ground.first, kept)
        for one in own:
            moved = move(config.train.seed, one.recipe, ground.found, kept, ground.data, connect, tell)
            inputs = write_inputs(paths.join(folder, one.key), kept.network, ground.data, kept.plain, moved)
            done[one.key] = PassDone(inputs, before + time.monotonic() - began)
            began, before = time.monotonic(), 0.0
    return done


def _refuse_other_images(first: Kept, other: Kept) -> None:
    if not first.plain.facts["status"].equals(other.plain.facts["status"]):
        raise TryLater(
            "Some images could be read for one network of the search and not for another.",
            "Run the same command again.",
        )


def seconds_by_backbone(passes: Sequence[Pass], done: Mapping[str, PassDone]) -> dict[str, float]:
    """Seconds of the passes of each backbone, summed."""
    total: dict[str, float] = {}
    for one in passes:
        total[one.recipe.backbone] = total.get(one.recipe.backbone, 0.0) + done[one.key].seconds
    return total
