"""What of a grid is the same work: the trainings that answer its points, and the passes over the images they need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pipelines.training.recipe_rules import NO_AUGMENTATION, Value
from pipelines.training.recipes import Recipe
from pipelines.tuning.points import Point, Training

T = TypeVar("T")

FEATURES, CUT, PIXELS = "features", "cut", "pixels"
"""What a pass keeps of an image: the frozen backbone's answer, what crosses into the trained layers, or its pixels."""

_NO_EFFECT: Mapping[str, Callable[[Recipe], bool]] = {
    # The hidden layer's; `head_spec` gives the head no such layer then. Batch normalisation stays: it follows pooling.
    "activation": lambda recipe: not recipe.dense_units,
    # `learning_rates` takes it up to epoch `head_epochs` and nothing else reads it.
    "head_learning_rate": lambda recipe: not recipe.head_epochs,
    # `Fit` asks the plateau after an epoch only where the recipe has one; until then its factor is 1. The figure of
    # `reduce_metric` is looked up all the same, and handed to nobody.
    "reduce_factor": lambda recipe: not recipe.reduce_on_plateau,
    "reduce_metric": lambda recipe: not recipe.reduce_on_plateau,
    # What lies outside a picture that is moved; `Feeder` and the moved copies move none then.
    "fill": lambda recipe: not recipe.augments,
    # Of the finished scorer, compiled after training: the epochs and the logits that rank a point are without it.
    "flip_at_prediction": lambda _recipe: True,
    # A constant rate at a step, the plateau, early stopping and the best epoch so far know only the epochs before it:
    # the training of a smaller number is the beginning of that of a larger one. A cosine falls towards the last epoch.
    "epochs": lambda recipe: recipe.schedule != "cosine",
}
"""Keys that decide nothing of a training's weights, and where. `optimizer` and its `momentum` and `weight_decay` need
none: a recipe that names one of these without its optimizer is refused. `metric` always decides which epoch is best."""

_NETWORK = ("backbone", "alpha", "input_size", "scaling", "trainable_layers", "pooling")
_MOVEMENTS = (*NO_AUGMENTATION, "fill", "variants")
_NAMED = 8


@dataclass(frozen=True)
class Pass:
    """One pass over the images, whose numbers several trainings read.

    Attributes:
        recipe: Of the first of its trainings; all agree in what the pass depends on.
        key: `pass_key` of each of them.
        trainings: Their keys, in the order of the plan.
        kind: What is kept of an image: `features`, `cut` or `pixels`.
    """

    recipe: Recipe
    key: str
    trainings: tuple[str, ...]
    kind: str

    @property
    def copies(self) -> int:
        """Moved copies that are kept of each training image, beside the images themselves; 0 for none."""
        return self.recipe.variants if self.recipe.augments else 0


@dataclass(frozen=True)
class Plan:
    """How the points of a grid are answered.

    Attributes:
        points: In the order of the grid.
        trainings: Each answers one point or several, every point is answered by one; in the order of the first point.
        passes: Each training reads one; in the order of the first training.
        separate: Sentences that say which points are trained apart although they differ in nothing but `epochs`, and
            why; empty where there are none.
    """

    points: tuple[Point, ...]
    trainings: tuple[Training, ...]
    passes: tuple[Pass, ...]
    separate: tuple[str, ...]

    @property
    def epochs(self) -> int:
        """Epochs that the trainings run at most."""
        return sum(training.recipe.epochs for training in self.trainings)

    @property
    def epochs_apart(self) -> int:
        """Epochs that a training of its own for each point would run at most."""
        return sum(point.recipe.epochs for point in self.points)


def make_plan(points: Sequence[Point]) -> Plan:
    """Find out what the points share.

    Args:
        points: No two of them the same recipe.
    """
    groups = _grouped(points, lambda point: training_key(point.recipe))
    trainings = tuple(_training(key, shared) for key, shared in groups.items())
    passes = tuple(
        Pass(shared[0].recipe, key, tuple(training.key for training in shared), _kind(shared[0].recipe))
        for key, shared in _grouped(trainings, lambda training: pass_key(training.recipe)).items()
    )
    return Plan(tuple(points), trainings, passes, _separate(trainings))


def without(plan: Plan, answered: Collection[str]) -> Plan:
    """The plan of the points that are left.

    A training that lost its largest numbers of epochs runs no further than what is left needs, under the same key.

    Args:
        plan: Of all points.
        answered: Keys of points; others than the plan's are passed over.
    """
    return make_plan([point for point in plan.points if point.key not in answered])


def training_key(recipe: Recipe) -> str:
    """What decides a training's weights: equal for recipes of which one training answers both."""
    return _hash(_deciding(recipe))


def pass_key(recipe: Recipe) -> str:
    """What the numbers that a training reads depend on, beside images, weights and seed.

    Where moved copies are kept, that is how they are moved and how many there are; pixels that are moved afresh in
    every epoch are kept as they came.
    """
    moved = _MOVEMENTS if recipe.augments and recipe.variants else ()
    return _hash({"base": base_key(recipe)} | {key: recipe.values()[key] for key in moved})


def base_key(recipe: Recipe) -> str:
    """What the numbers of images that are not moved depend on: the network, its cut, and whether pixels are kept."""
    values = recipe.values()
    return _hash({key: values[key] for key in _NETWORK} | {"pixels": _kind(recipe) == PIXELS})


def _kind(recipe: Recipe) -> str:
    """Whatever the layers, pixels are kept too where all of them are trained, which only the built network tells."""
    if recipe.augments and not recipe.variants:
        return PIXELS
    return CUT if recipe.trainable_layers else FEATURES


def _deciding(recipe: Recipe) -> dict[str, Value]:
    """The keys that decide a training's weights, and their values."""
    values = recipe.values().items()
    return {key: value for key, value in values if key not in _NO_EFFECT or not _NO_EFFECT[key](recipe)}


def _training(key: str, points: Sequence[Point]) -> Training:
    most = max(point.recipe.epochs for point in points)
    return Training(key, replace(points[0].recipe, epochs=most), tuple(points))


def _grouped(items: Sequence[T], key_of: Callable[[T], str]) -> dict[str, list[T]]:
    """Items by key, keys and items in the order in which they come."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(key_of(item), []).append(item)
    return groups


def _separate(trainings: Sequence[Training]) -> tuple[str, ...]:
    """Which trainings differ only in their number of epochs, and why they are not one."""
    alike = _grouped(trainings, lambda training: _hash(_deciding(training.recipe) | {"epochs": 0}))
    apart = [training for shared in alike.values() if len(shared) > 1 for training in shared]
    if not apart:
        return ()
    counts = sorted({training.recipe.epochs for training in apart})
    named = ", ".join(map(str, counts)) if len(counts) <= _NAMED else f"{counts[0]} to {counts[-1]}"
    points = sum(len(training.points) for training in apart)
    return (
        f"{points} points with schedule = cosine are trained apart for each number of epochs ({named}), because their "
        "learning rate falls to 0 at the last epoch, whichever that is.",
    )


def _hash(said: Mapping[str, Value]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
