"""What a fit reads, written to files: the inputs of training and validation, their labels, the first weights."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.images.augment import image_key
from pipelines.models.backbones import weights_to_bytes
from pipelines.scoring.features import Features
from pipelines.storage import files, paths
from pipelines.training.config import TrainConfig
from pipelines.training.dataset import Dataset, PartImages
from pipelines.training.job import Arrays, FitJob
from pipelines.training.network import Network
from pipelines.training.recipes import Recipe


def balanced_weights(labels: NDArray[np.int64], classes: int) -> tuple[float, ...]:
    """Weights that make every class count the same in all: N / (K · N_class)."""
    counts = np.bincount(labels, minlength=classes)
    return tuple(float(len(labels) / (classes * count)) if count else 0.0 for count in counts)


def fit_name(config: TrainConfig, network: Network, data: Dataset) -> str:
    """The name of a fit's folder: a hash of everything that decides its weights, wherever the data lie."""
    made_with = [version(name) for name in ("numpy", "tensorflow", "keras")]
    said = [config.recipe.values(), config.seed, network.spec, network.weights_sha256, made_with]
    digest = hashlib.sha256(repr(said).encode())
    for array in network.trainee().arrays():
        digest.update(array.tobytes())
    digest.update(data.trained_images())
    return f"fit-{digest.hexdigest()[:16]}"


@dataclass(frozen=True)
class Inputs:
    """What fits of one network on one split read; plain data that can be sent anywhere.

    Attributes:
        arrays: Places of the images as they enter the trained part, and of their labels.
        pixels: Whether that are pixels, and the whole backbone runs at each step.
        backbone_weights: Place of the backbone's weights; None where no part of it runs in a worker.
        balanced: The weight of each class that makes all count the same.
    """

    arrays: Arrays
    pixels: bool
    backbone_weights: str | None
    balanced: tuple[float, ...]


def write_inputs(folder: str, network: Network, data: Dataset, plain: Features, moved: Features | None) -> Inputs:
    """Write what the workers of fits read.

    Args:
        folder: Where to, local or in a bucket.
        network: With its first weights.
        data: The split.
        plain: What is kept of every image.
        moved: Moved copies of the training images; None to train on the images themselves.

    Raises:
        TryLater: If the disk is full or storage does not answer.
    """
    train, validation = data.part("train"), data.part("val")

    def place(name: str) -> str:
        return paths.join(folder, name)

    arrays = Arrays(*map(place, ("train.npy", "labels.npy", "keys.npy", "validation.npy", "validation_labels.npy")))
    if moved is None:
        plain.save(train.rows, arrays.inputs)
    else:
        moved.save(np.arange(len(train.rows)), arrays.inputs)
    plain.save(validation.rows, arrays.validation_inputs)
    _save(arrays.labels, train.labels)
    _save(arrays.validation_labels, validation.labels)
    _save(arrays.keys, _keys(train))
    pixels = network.cache.model is None
    weights = place("backbone.weights.h5") if pixels or network.cut.layers else None
    if weights:
        files.write_atomic(weights, weights_to_bytes(network.backbone))
    return Inputs(arrays, pixels, weights, balanced_weights(train.labels, len(data.classes)))


def make_job(
    recipe: Recipe, inputs: Inputs, positive: Sequence[int], seed: int, checkpoint: str, start: str | None = None
) -> FitJob:
    """Describe a fit.

    Args:
        recipe: How to train.
        inputs: On what.
        positive: Numbers of the positive classes.
        seed: See `FitJob`.
        checkpoint: Likewise.
        start: Likewise.
    """
    classes = len(inputs.balanced)
    return FitJob(
        recipe=recipe,
        classes=classes,
        positive=tuple(positive),
        class_weights=inputs.balanced if recipe.class_balance == "weights" else (1.0,) * classes,
        seed=seed,
        pixels=inputs.pixels,
        arrays=inputs.arrays,
        checkpoint=checkpoint,
        backbone_weights=inputs.backbone_weights,
        start=start,
    )


def _keys(part: PartImages) -> NDArray[np.int64]:
    contents = part.images["content_sha256"].to_pylist()
    return np.array([image_key(content) >> 1 for content in contents], np.int64)


def _save(place: str, array: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    files.write_atomic(place, buffer.getvalue())
