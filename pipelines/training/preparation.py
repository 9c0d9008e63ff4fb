"""What stands before weights are trained: the images, the network, what is kept of each image, the split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.images.preprocess import Preprocessing
from pipelines.models import registry
from pipelines.models.backbones import check_weights
from pipelines.models.bundle import Bundle
from pipelines.models.positive import choose_positive
from pipelines.models.seeding import MAX_IMAGES
from pipelines.scoring.features import Features, Variants, compute_features
from pipelines.scoring.report import ScoreProgress
from pipelines.scoring.scorer import LARGEST_FILE
from pipelines.storage import paths
from pipelines.storage.reading import ImageReader
from pipelines.training.config import TrainConfig
from pipelines.training.dataset import Dataset, make_dataset
from pipelines.training.feeding import augmentation_of
from pipelines.training.inherit import Predecessor, may_be_looked_at, read_predecessor, refuse_seen
from pipelines.training.labelled import LabelledImages, read_labelled
from pipelines.training.network import Network, build_network, prepared_pixels
from pipelines.training.recipes import Recipe
from pipelines.training.split import choose_for_train, group_images

Connect = Callable[[], AbstractContextManager[Any]]
Tell = Callable[[ScoreProgress], None]


@dataclass(frozen=True, eq=False)
class Found:
    """What is known before anything is computed of an image.

    Attributes:
        labelled: The images.
        positive: Numbers of the positive classes.
        start: The bundle that training starts from, if any.
        champion: The champion that a new version is compared with, if any.
        predecessor: The version whose split is kept, if any.
        chosen: Rows of the images that `--weights none` looks at before the split is made, int64.
    """

    labelled: LabelledImages
    positive: tuple[int, ...]
    start: Bundle | None
    champion: Bundle | None
    predecessor: Predecessor | None
    chosen: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Kept:
    """A network before training, and what is kept of every image for it.

    Attributes:
        network: With its first weights.
        plain: What is kept of every image.
        work: Folder of its caches.
    """

    network: Network
    plain: Features
    work: str


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that stands before the weights are trained.

    Attributes:
        found: The images and the models of the name.
        kept: The network, and what is kept of the images.
        data: The split.
    """

    found: Found
    kept: Kept
    data: Dataset


def prepare(config: TrainConfig, connect: Connect, tell: Tell) -> Prepared:
    """Find the images, build the network, keep what training needs of each image, split.

    Args:
        config: What to train, on what, where to.
        connect: Starts or joins Ray; not called where all is there already.
        tell: Called with progress; phases `listing`, `preparing` and `scoring`.

    Raises:
        UsageError, ModelRefused, TryLater: Each with its cure.
    """
    found = find(config, tell)
    kept = keep(config, found, config.recipe, connect, tell)
    return Prepared(found, kept, split(config, found, kept))


def find(config: TrainConfig, tell: Tell) -> Found:
    """List the images, and read which models there are of the name.

    Raises:
        UsageError, ModelRefused, TryLater: Each with its cure.
    """
    tell(ScoreProgress("listing"))
    check_weights(config.weights)
    start = registry.resolve(config.start) if config.start else None
    crowned = registry.champion(config.models, config.name)
    champion = registry.resolve(paths.join(paths.canonical(config.models), config.name)) if crowned else None
    predecessor = None if config.new_split else read_predecessor(config.models, config.name, start, config.newest)
    labelled = read_labelled(config.labelled)
    config.recipe.check_classes(len(labelled.classes))
    positive = choose_positive(labelled.classes, config.positive)
    chosen = _calibration_rows(config, labelled, predecessor) if start is None else np.array([], np.int64)
    numbers = tuple(labelled.classes.index(name) for name in positive)
    return Found(labelled, numbers, start, champion, predecessor, chosen)


def build(config: TrainConfig, found: Found, recipe: Recipe) -> Network:
    """The network of a recipe with its first weights.

    Args:
        config: Says the weights and the seed.
        found: The images.
        recipe: That of `config`, or another one of the same search.
    """
    pixels = None
    if len(found.chosen):
        uris = found.labelled.table["image_uri"].take(pa.array(found.chosen)).to_pylist()
        pixels = prepared_pixels(uris, recipe.input_size)
    same = found.start is not None and found.start.classes == found.labelled.classes
    classes = len(found.labelled.classes)
    return build_network(recipe, classes, config.weights, config.seed, pixels, found.start, same)


def keep(config: TrainConfig, found: Found, recipe: Recipe, connect: Connect, tell: Tell) -> Kept:
    """Build the network of a recipe, and compute what training needs of each image.

    Args:
        config: Says the weights, the seed and where caches lie.
        found: The images.
        recipe: That of `config`, or another one of the same search.
        connect: As for `prepare`.
        tell: Likewise.
    """
    tell(ScoreProgress("preparing"))
    network = build(config, found, recipe)
    work = paths.join(config.work, _fingerprint(network))
    plain = compute_features(found.labelled.table, network.cache, recipe.input_size, work, connect, tell)
    return Kept(network, plain, work)


def split(config: TrainConfig, found: Found, kept: Kept) -> Dataset:
    """Split the readable images.

    Raises:
        UsageError: If they leak, contradict the predecessor's split, or cannot be split.
    """
    data = make_dataset(
        found.labelled, kept.plain.facts, config.recipe, config.seed, found.chosen.tolist(), found.predecessor
    )
    if found.start is not None:
        refuse_seen(data.split, found.start)
    return data


def move(
    seed: int, recipe: Recipe, found: Found, kept: Kept, data: Dataset, connect: Connect, tell: Tell
) -> Features | None:
    """Moved copies of the training images, where the recipe keeps some."""
    if not recipe.augments or not recipe.variants:
        return None
    images = found.labelled.table.take(pa.array(data.part("train").rows))
    variants = Variants(augmentation_of(recipe), recipe.variants, seed)
    return compute_features(images, kept.network.cache, recipe.input_size, kept.work, connect, tell, variants)


def _calibration_rows(
    config: TrainConfig, labelled: LabelledImages, predecessor: Predecessor | None
) -> NDArray[np.int64]:
    """Images that `--weights none` looks at before the split is made; they train, or will be put into `train`."""
    if config.weights != "none":
        return np.array([], np.int64)
    people = labelled.table["person"].to_pylist()
    uris = labelled.table["image_uri"].to_pylist()
    allowed = [part in (None, "train") for part in labelled.table["part"].to_pylist()]
    if predecessor is not None:
        seen = may_be_looked_at(predecessor, uris, people, ImageReader(LARGEST_FILE))
        allowed = [may and own for may, own in zip(allowed, seen, strict=True)]
    groups = group_images(_below_shared_folders(uris), people)
    return choose_for_train(labelled.label_numbers(), groups, images=MAX_IMAGES, seed=config.seed, allowed=allowed)


def _below_shared_folders(uris: list[str]) -> list[str]:
    """Paths without the folders that all share, so that a copy of the data elsewhere gives the same model."""
    first, last = min(uris).split("/"), max(uris).split("/")
    shared = next((index for index, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), 0)
    return ["/".join(uri.split("/")[shared:]) for uri in uris]


def _fingerprint(network: Network) -> str:
    """What features depend on beside the images: backbone and weights; preprocessing has its own id."""
    size = network.spec.input_size
    said = f"{network.spec}|{network.weights_sha256}|{Preprocessing(size).id}|{network.cache.size}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]
