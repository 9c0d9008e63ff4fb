"""The training job: labelled images to a bundle that can score tonight."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.images.preprocess import Preprocessing
from pipelines.models import registry
from pipelines.models.bundle import Bundle
from pipelines.models.positive import choose_positive
from pipelines.models.seeding import MAX_IMAGES
from pipelines.scoring.features import compute_features
from pipelines.scoring.report import ScoreProgress
from pipelines.storage import paths
from pipelines.training import writing
from pipelines.training.config import TrainConfig
from pipelines.training.dataset import Dataset, make_dataset
from pipelines.training.finishing import Finished, finish
from pipelines.training.fitting import Fitted, fit
from pipelines.training.labelled import LabelledImages, read_labelled
from pipelines.training.measures import classification_report, confusion_matrix, measure, roc_auc, roc_auc_interval
from pipelines.training.network import Network, build_network, prepared_pixels
from pipelines.training.records import count_parts
from pipelines.training.report import TrainReport
from pipelines.training.split import choose_for_train, group_images
from pipelines.training.writing import Judged

Connect = Callable[[], AbstractContextManager[Any]]
Tell = Callable[[ScoreProgress], None]

FEW_VALIDATION_IMAGES = 20


def train(config: TrainConfig, connect: Connect, tell: Tell) -> TrainReport:
    """Train a model and write its bundle.

    Nothing is written into MODELS before the model is finished and checked, but a cache below `work`.

    Args:
        config: What to train, on what, where to.
        connect: Starts or joins Ray for a `with` block; not called where all features are cached.
        tell: Called with progress; phases `listing`, `preparing`, `scoring`, `training` and `compiling`.

    Returns:
        Figures and where the bundle lies.

    Raises:
        UsageError, ModelRefused, TryLater: Each with its cure.
    """
    began = time.monotonic()
    tell(ScoreProgress("listing"))
    labelled = read_labelled(config.labelled)
    positive = choose_positive(labelled.classes, config.positive)
    numbers = [labelled.classes.index(name) for name in positive]
    chosen = _calibration_rows(config, labelled)
    tell(ScoreProgress("preparing"))
    network = _network(config, labelled, chosen)
    work = paths.join(paths.canonical(config.models), config.name, "work", _fingerprint(network))
    images = compute_features(
        labelled.table, network.feature_model, network.io, network.io.size, network.io.input_size, work, connect, tell
    )
    data = make_dataset(labelled, images, config.recipe, config.seed, chosen.tolist())
    epochs = config.recipe.epochs
    fitted = fit(config, data, numbers, lambda row: tell(ScoreProgress("training", int(row["epoch"]), epochs)))
    tell(ScoreProgress("compiling"))
    finished = finish(config, network, fitted, data, numbers)
    judged = _judge(config, data, fitted, finished, positive)
    bundle = writing.write(config, network, data, fitted, finished, judged)
    return _report(config, labelled, data, fitted, finished, judged, bundle, time.monotonic() - began)


def _calibration_rows(config: TrainConfig, labelled: LabelledImages) -> NDArray[np.int64]:
    """Images that `--weights none` looks at before the split is made; they will be put into `train`."""
    if config.weights != "none":
        return np.array([], np.int64)
    people = labelled.table["person"].to_pylist()
    uris = labelled.table["image_uri"].to_pylist()
    allowed = [part in (None, "train") for part in labelled.table["part"].to_pylist()]
    groups = group_images(_below_shared_folders(uris), people)
    return choose_for_train(labelled.label_numbers(), groups, images=MAX_IMAGES, seed=config.seed, allowed=allowed)


def _below_shared_folders(uris: list[str]) -> list[str]:
    """Paths without the folders that all share, so that a copy of the data elsewhere gives the same model."""
    first, last = min(uris).split("/"), max(uris).split("/")
    shared = next((index for index, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), 0)
    return ["/".join(uri.split("/")[shared:]) for uri in uris]


def _network(config: TrainConfig, labelled: LabelledImages, chosen: NDArray[np.int64]) -> Network:
    pixels = None
    if len(chosen):
        uris = labelled.table["image_uri"].take(pa.array(chosen)).to_pylist()
        pixels = prepared_pixels(uris, config.recipe.input_size)
    return build_network(config.recipe, config.weights, config.seed, pixels)


def _fingerprint(network: Network) -> str:
    """What features depend on beside the images: backbone and weights; preprocessing has its own id."""
    said = f"{network.spec}|{network.weights_sha256}|{Preprocessing(network.io.input_size).id}|{network.io.size}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _judge(config: TrainConfig, data: Dataset, fitted: Fitted, finished: Finished, positive: tuple[str, ...]) -> Judged:
    """Figures on validation, and what they do not bear out."""
    truth = data.part("val").labels
    numbers = [data.classes.index(name) for name in positive]
    is_positive = np.isin(truth, numbers)
    area = roc_auc(finished.probabilities[:, numbers].sum(axis=1), is_positive)
    low, high = roc_auc_interval(area, int(is_positive.sum()), int((~is_positive).sum()))
    warnings = []
    if math.isnan(area) or low <= 0.5 <= high:
        warnings.append(
            f"On validation this model cannot be told from a coin: ROC AUC {area:.3f}, 95 % interval {low:.3f} to "
            f"{high:.3f}."
        )
    if len(truth) < FEW_VALIDATION_IMAGES:
        warnings.append(
            f"Only {len(truth)} images validate ({int(is_positive.sum())} of them positive): temperature and threshold "
            "are guesses, and every figure is uncertain."
        )
    if not fitted.trained.metric_defined:
        warnings.append(
            f"{config.recipe.metric} on validation was no number after any epoch, so no epoch could be chosen: the "
            "last one's weights were kept."
        )
    if finished.point.sensitivity < finished.point.target:
        warnings.append(
            f"No threshold above 0 reaches a sensitivity of {finished.point.target:g} on validation; this one reaches "
            f"{finished.point.sensitivity:.3f}."
        )
    return Judged(positive, measure(finished.probabilities, truth, numbers), (low, high), tuple(warnings))


def _report(
    config: TrainConfig,
    labelled: LabelledImages,
    data: Dataset,
    fitted: Fitted,
    finished: Finished,
    judged: Judged,
    bundle: Bundle,
    seconds: float,
) -> TrainReport:
    truth, called = data.part("val").labels, finished.probabilities.argmax(axis=1)
    champion = registry.champion(config.models, config.name)
    matrix = confusion_matrix(called, truth, len(data.classes))
    return TrainReport(
        model=bundle.name,
        version=bundle.version,
        path=bundle.uri,
        model_id=bundle.model_id,
        champion=champion.version if champion else bundle.version,
        classes=data.classes,
        positive_classes=judged.positive,
        parts=count_parts(data.label_names(), data.parts, data.classes),
        groups=len(set(data.groups)),
        without_patient=labelled.table["person"].null_count,
        epochs=len(fitted.trained.history),
        best_epoch=fitted.trained.best_epoch,
        validation=judged.figures,
        roc_auc_interval=judged.interval,
        confusion_matrix=tuple(tuple(int(count) for count in row) for row in matrix),
        classification_report=classification_report(called, truth, data.classes),
        temperature=fitted.temperature,
        threshold=finished.point.threshold,
        target_sensitivity=finished.point.target,
        sensitivity=finished.point.sensitivity,
        specificity=finished.point.specificity,
        unreadable=data.unreadable,
        left_out=labelled.left_out,
        warnings=(*_of_the_data(labelled), *judged.warnings),
        seconds=seconds,
    )


def _of_the_data(labelled: LabelledImages) -> list[str]:
    """What a person should know about how the data were read."""
    told = [f"{folder} could not be listed." for folder in labelled.unlistable]
    if labelled.repeated:
        more = ", …" if labelled.repeated > len(labelled.repeated_rows) else ""
        told.append(
            f"{labelled.repeated} rows of the manifest said the same again and were dropped: rows "
            f"{', '.join(map(str, labelled.repeated_rows))}{more}."
        )
    return told
