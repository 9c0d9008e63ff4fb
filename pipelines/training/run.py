"""The training job: labelled images to a bundle that can score tonight."""

from __future__ import annotations

import hashlib
import time
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
from pipelines.training import writing
from pipelines.training.arrays import fit_name, write_job
from pipelines.training.config import TrainConfig
from pipelines.training.dataset import Dataset, PartImages, make_dataset
from pipelines.training.feeding import augmentation_of
from pipelines.training.finishing import Finished, Trained, Validation, choose_calibration, finish
from pipelines.training.history import Row
from pipelines.training.inherit import Predecessor, may_be_looked_at, read_predecessor, refuse_seen
from pipelines.training.job import FitJob
from pipelines.training.judging import judge
from pipelines.training.labelled import LabelledImages, read_labelled
from pipelines.training.loop import FitResult
from pipelines.training.network import Network, build_network, prepared_pixels
from pipelines.training.owned_folder import owned_folder
from pipelines.training.published import published
from pipelines.training.recipes import recipe_names
from pipelines.training.report import EpochProgress, TrainReport
from pipelines.training.reporting import make_report
from pipelines.training.resources import checking, choose_resources
from pipelines.training.split import choose_for_train, group_images
from pipelines.training.versus import Validated, compare
from pipelines.training.writing import Made

Connect = Callable[[], AbstractContextManager[Any]]
Tell = Callable[[ScoreProgress], None]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What stands before the weights are trained.

    Attributes:
        labelled: What was found.
        positive: Numbers of the positive classes.
        start: The bundle that training starts from, if any.
        champion: The champion that the new version is compared with, if any.
        network: With its first weights.
        plain: What is kept of every image.
        data: The split.
        work: Folder of caches.
    """

    labelled: LabelledImages
    positive: tuple[int, ...]
    start: Bundle | None
    champion: Bundle | None
    network: Network
    plain: Features
    data: Dataset
    work: str


def train(config: TrainConfig, connect: Connect, tell: Tell) -> TrainReport:
    """Train a model and write its bundle.

    Nothing is written into MODELS before the model is finished and checked, but caches and checkpoints below `work`.
    The same command after a crash goes on from the last checkpoint.

    Args:
        config: What to train, on what, where to.
        connect: Starts or joins Ray for a `with` block, and yields its size; not called where all is there already.
        tell: Called with progress; phases `listing`, `preparing`, `scoring`, `moving`, `training`, `compiling` and
            `validating`.

    Returns:
        Figures and where the bundle lies.

    Raises:
        UsageError, ModelRefused, TryLater: Each with its cure.
    """
    began = time.monotonic()
    connect = checking(connect, config.workers, dict(config.resources), config.work)
    ready = _prepare(config, connect, tell)
    with owned_folder(paths.join(ready.work, fit_name(config, ready.network, ready.data))) as folder:
        fit, logits = _fit(config, ready, folder, connect, tell)
        finished = _finish(config, ready, logits, tell)
        made = _judged(config, ready, fit, finished)
        bundle = writing.write(config, made)
    crowned = registry.champion(config.models, config.name)
    seconds = time.monotonic() - began
    return make_report(config, ready.labelled, made, bundle, crowned.version if crowned else None, seconds)


def _prepare(config: TrainConfig, connect: Connect, tell: Tell) -> Prepared:
    """Find the images, build the network, keep what training needs of each image, split."""
    tell(ScoreProgress("listing"))
    check_weights(config.weights)
    start = registry.resolve(config.start) if config.start else None
    crowned = registry.champion(config.models, config.name)
    champion = registry.resolve(paths.join(paths.canonical(config.models), config.name)) if crowned else None
    predecessor = None if config.new_split else read_predecessor(config.models, config.name, start)
    labelled = read_labelled(config.labelled)
    config.recipe.check_classes(len(labelled.classes))
    positive = choose_positive(labelled.classes, config.positive)
    tell(ScoreProgress("preparing"))
    chosen = _calibration_rows(config, labelled, predecessor) if start is None else np.array([], np.int64)
    network = _network(config, labelled, chosen, start)
    work = paths.join(config.work, _fingerprint(network))
    plain = compute_features(labelled.table, network.cache, config.recipe.input_size, work, connect, tell)
    data = make_dataset(labelled, plain.facts, config.recipe, config.seed, chosen.tolist(), predecessor)
    if start is not None:
        refuse_seen(data.split, start)
    numbers = tuple(labelled.classes.index(name) for name in positive)
    return Prepared(labelled, numbers, start, champion, network, plain, data, work)


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


def _network(config: TrainConfig, labelled: LabelledImages, chosen: NDArray[np.int64], start: Bundle | None) -> Network:
    pixels = None
    if len(chosen):
        uris = labelled.table["image_uri"].take(pa.array(chosen)).to_pylist()
        pixels = prepared_pixels(uris, config.recipe.input_size)
    same = start is not None and start.classes == labelled.classes
    return build_network(config.recipe, len(labelled.classes), config.weights, config.seed, pixels, start, same)


def _fingerprint(network: Network) -> str:
    """What features depend on beside the images: backbone and weights; preprocessing has its own id."""
    size = network.spec.input_size
    said = f"{network.spec}|{network.weights_sha256}|{Preprocessing(size).id}|{network.cache.size}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _fit(
    config: TrainConfig, ready: Prepared, folder: str, connect: Connect, tell: Tell
) -> tuple[FitResult, NDArray[np.float32]]:
    """Train the weights into the network.

    Returns:
        The history, and what the trained head answers to the kept validation inputs.
    """
    with connect() as cluster:
        resources = choose_resources(config.workers, dict(config.resources), cluster)
        moved = _moved(config, ready, connect, tell)
        job = write_job(folder, config, ready.network, ready.data, ready.positive, ready.plain, moved)
        fit = _train_weights(job, resources, config.recipe.epochs, tell)
    trainee = ready.network.trainee()
    trainee.assign(fit.variables)
    return fit, ready.network.logits(ready.plain.read(ready.data.part("val").rows)[:, 0])


def _moved(config: TrainConfig, ready: Prepared, connect: Connect, tell: Tell) -> Features | None:
    """Moved copies of the training images, where the recipe keeps some."""
    recipe = config.recipe
    if not recipe.augments or not recipe.variants:
        return None
    images = ready.labelled.table.take(pa.array(ready.data.part("train").rows))
    variants = Variants(augmentation_of(recipe), recipe.variants, config.seed)
    size = recipe.input_size
    return compute_features(images, ready.network.cache, size, ready.work, connect, tell, variants)


def _train_weights(job: FitJob, resources: Any, epochs: int, tell: Tell) -> FitResult:
    from pipelines.training.distributed import train_on_ray  # only now: Ray reads its environment at import

    def on_epoch(row: Row) -> None:
        tell(EpochProgress("training", int(row["epoch"]), epochs, row=row))

    tell(ScoreProgress("training", 0, epochs))
    return train_on_ray(job, resources, on_epoch)


def _finish(config: TrainConfig, ready: Prepared, logits: NDArray[np.float32], tell: Tell) -> Finished:
    """Compile the trained network and fit what is fitted on validation."""
    tell(ScoreProgress("compiling"))
    recipe, network = config.recipe, ready.network
    train_part, validation = ready.data.part("train"), ready.data.part("val")
    contents = train_part.images["content_sha256"].to_pylist()
    uris = train_part.images["image_uri"].to_pylist()
    return finish(
        Trained(network.backbone, network.head, recipe.input_size, recipe.pooling, recipe.flip_at_prediction),
        Validation(validation.images, validation.labels, logits, patients_of(ready.labelled, validation)),
        choose_calibration(uris, train_part.labels.tolist(), contents),
        ready.positive,
        (config.target_sensitivity, config.target_specificity),
        lambda done, total: tell(ScoreProgress("validating", done, total)),
    )


def patients_of(labelled: LabelledImages, part: PartImages) -> tuple[str | None, ...] | None:
    """Patient of each image of a part; None where nothing says whose any image is."""
    people = labelled.table["person"].take(pa.array(part.rows)).to_pylist()
    return tuple(people) if any(person is not None for person in people) else None


def _judged(config: TrainConfig, ready: Prepared, fit: FitResult, finished: Finished) -> Made:
    """Measure the finished model on validation, and against the champion."""
    data, validation = ready.data, ready.data.part("val")
    judged = judge(
        data.classes,
        [data.classes[number] for number in ready.positive],
        finished.probabilities,
        validation.labels,
        validation.groups,
        finished.point,
        config.seed,
        None if fit.metric_defined else config.recipe.metric,
        finished.patients.get("patient_max"),
    )
    new = Validated(
        classes=data.classes,
        positive=ready.positive,
        contents=validation.images["content_sha256"].to_pylist(),
        labels=validation.labels,
        groups=validation.groups,
        probabilities=finished.probabilities,
    )
    paper = published(config.recipe.name) if config.recipe.name in recipe_names() else None
    source = paper.source if paper else None
    versus = compare(new, ready.champion, config.seed)
    return Made(ready.network, data, fit, finished, judged, versus, ready.start, source)
