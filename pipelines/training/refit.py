"""A chosen model trained again on training and validation images together, for as many epochs as were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipelines.storage import paths
from pipelines.training.arrays import fit_name, make_job, write_inputs
from pipelines.training.config import TrainConfig
from pipelines.training.dataset import Dataset, PartImages
from pipelines.training.finishing import Trained, finish_again
from pipelines.training.history import Row
from pipelines.training.owned_folder import owned_folder
from pipelines.training.preparation import Connect, Prepared, Tell, build, move
from pipelines.training.recipes import Recipe
from pipelines.training.resources import choose_resources
from pipelines.training.run import train_weights
from pipelines.training.schedules import learning_rates
from pipelines.training.writing import Made

WARNING = (
    "After its epoch was chosen this model was trained again on the training and validation images together. All that "
    "is told of validation (figures, temperature, thresholds, refer bands) is of the model before that: only the test "
    "part, or images that it never saw, can measure this one."
)


def refit(config: TrainConfig, ready: Prepared, made: Made, connect: Connect, tell: Tell) -> Made:
    """Train a finished model again, from its first weights, on the training and validation parts.

    The learning rate takes the same course as before, the plateau's reductions among it, and training ends at the
    epoch whose weights were kept.

    Args:
        config: How it was trained.
        ready: What stood before.
        made: What was made of the training part alone.
        connect: Starts or joins Ray.
        tell: Called with progress.

    Returns:
        As `made`, with the new weights and scorer, and a warning.

    Raises:
        UsageError, ModelRefused, TryLater: Each with its cure.
    """
    both = join_parts(ready.data)
    # Fixed weights to the end: what chose the epoch is among the images that train now.
    recipe = replace(config.recipe, restore_best=False, early_stopping=0, reduce_on_plateau=0)
    again = replace(ready, data=both, kept=replace(ready.kept, network=build(config, ready.found, recipe)))
    network = again.kept.network
    with (
        connect() as cluster,
        owned_folder(paths.join(again.kept.work, f"re{fit_name(config, network, both)}")) as folder,
    ):
        moved = move(config.seed, recipe, again.found, again.kept, both, connect, tell)
        inputs = write_inputs(folder, network, both, again.kept.plain, moved)
        job = make_job(recipe, inputs, again.found.positive, config.seed, paths.join(folder, "checkpoint.npz"))
        job = replace(job, until=made.fit.best_epoch, factors=rate_factors(config.recipe, made.fit.history))
        fit = train_weights(job, choose_resources(1, {}, cluster), made.fit.best_epoch, tell)
    network.trainee().assign(fit.variables)
    trained = Trained(network.backbone, network.head, recipe.input_size, recipe.pooling, recipe.flip_at_prediction)
    judged = replace(made.judged, warnings=(*made.judged.warnings, WARNING))
    return replace(made, network=network, finished=finish_again(trained, made.finished), judged=judged)


def join_parts(data: Dataset) -> Dataset:
    """A dataset whose part `train` holds the images of `val` too; `val` stays, to be watched."""
    train, val = data.part("train"), data.part("val")
    rows = np.concatenate([train.rows, val.rows])
    order = np.argsort(rows, kind="stable")
    joined = PartImages(
        rows[order],
        np.concatenate([train.labels, val.labels])[order],
        tuple((*train.groups, *val.groups)[place] for place in order.tolist()),
        pa.concat_tables([train.images, val.images]).take(pa.array(order)),
    )
    return replace(data, parts={**data.parts, "train": joined})


def rate_factors(recipe: Recipe, history: Sequence[Row]) -> tuple[float, ...]:
    """What the plateau multiplied the learning rate of each epoch by; () for a recipe without plateau.

    Args:
        recipe: With its schedule constant, as every recipe with a plateau has it.
        history: Of the training.
    """
    if not recipe.reduce_on_plateau:
        return ()
    return tuple(float(row["learning_rate"] / learning_rates(recipe, int(row["epoch"]), 1)[-1]) for row in history)
