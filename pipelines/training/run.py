"""The training job: labelled images to a bundle that can score tonight."""

from __future__ import annotations

import time

import pyarrow as pa

from pipelines.models import registry
from pipelines.scoring.report import ScoreProgress
from pipelines.storage import paths
from pipelines.training import writing
from pipelines.training.arrays import fit_name, make_job, write_inputs
from pipelines.training.checkpoint import save_arrays
from pipelines.training.config import TrainConfig
from pipelines.training.dataset import PartImages
from pipelines.training.finishing import Finished, Trained, Validation, choose_calibration, finish
from pipelines.training.history import Row
from pipelines.training.job import FitJob
from pipelines.training.judging import judge
from pipelines.training.labelled import LabelledImages
from pipelines.training.loop import FitResult
from pipelines.training.owned_folder import owned_folder
from pipelines.training.preparation import Connect, Prepared, Tell, move, prepare
from pipelines.training.published import paper_behind
from pipelines.training.report import EpochProgress, TrainReport
from pipelines.training.reporting import make_report
from pipelines.training.resources import Resources, checking, choose_resources
from pipelines.training.versus import Validated, compare
from pipelines.training.writing import Made


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
    ready = prepare(config, connect, tell)
    with owned_folder(paths.join(ready.kept.work, fit_name(config, ready.kept.network, ready.data))) as folder:
        made = complete(config, ready, _fit(config, ready, folder, connect, tell), tell)
        bundle = writing.write(config, made)
    crowned = registry.champion(config.models, config.name)
    seconds = time.monotonic() - began
    return make_report(config, ready.found.labelled, made, bundle, crowned.version if crowned else None, seconds)


def complete(config: TrainConfig, ready: Prepared, fit: FitResult, tell: Tell) -> Made:
    """From trained weights to all that a bundle holds: compiled, calibrated, thresholds fitted, judged.

    Args:
        config: How it was trained.
        ready: What stood before; its network gets the weights.
        fit: What the fit left.
        tell: Called with progress; phases `compiling` and `validating`.

    Raises:
        ModelRefused: If the compiled model does not answer as the trained one.
        TryLater: If images cannot be read any more.
    """
    ready.kept.network.trainee().assign(fit.variables)
    return _judged(config, ready, fit, _finish(config, ready, tell))


def _fit(config: TrainConfig, ready: Prepared, folder: str, connect: Connect, tell: Tell) -> FitResult:
    """Train on the workers of a cluster."""
    network = ready.kept.network
    with connect() as cluster:
        resources = choose_resources(config.workers, dict(config.resources), cluster)
        moved = move(config.seed, config.recipe, ready.found, ready.kept, ready.data, connect, tell)
        inputs = write_inputs(folder, network, ready.data, ready.kept.plain, moved)
        start = None
        if ready.found.start is not None:
            start = paths.join(folder, "start.npz")
            save_arrays(start, network.trainee().arrays())
        place = paths.join(folder, "checkpoint.npz")
        job = make_job(config.recipe, inputs, ready.found.positive, config.seed, place, start)
        return train_weights(job, resources, config.recipe.epochs, tell)


def train_weights(job: FitJob, resources: Resources, epochs: int, tell: Tell) -> FitResult:
    """Train on the cluster that this process is connected to, told epoch by epoch.

    Args:
        job: What to train.
        resources: Of the workers.
        epochs: At most so many, for the progress.
        tell: Called with progress of phase `training`.
    """
    from pipelines.training.distributed import train_on_ray  # only now: Ray reads its environment at import

    def on_epoch(row: Row) -> None:
        tell(EpochProgress("training", int(row["epoch"]), epochs, row=row))

    tell(ScoreProgress("training", 0, epochs))
    return train_on_ray(job, resources, on_epoch)


def _finish(config: TrainConfig, ready: Prepared, tell: Tell) -> Finished:
    """Compile the trained network and fit what is fitted on validation."""
    tell(ScoreProgress("compiling"))
    recipe, network, found = config.recipe, ready.kept.network, ready.found
    train_part, validation = ready.data.part("train"), ready.data.part("val")
    logits = network.logits(ready.kept.plain.read(validation.rows)[:, 0])
    contents = train_part.images["content_sha256"].to_pylist()
    uris = train_part.images["image_uri"].to_pylist()
    return finish(
        Trained(network.backbone, network.head, recipe.input_size, recipe.pooling, recipe.flip_at_prediction),
        Validation(validation.images, validation.labels, logits, patients_of(found.labelled, validation)),
        choose_calibration(uris, train_part.labels.tolist(), contents),
        found.positive,
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
        [data.classes[number] for number in ready.found.positive],
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
        positive=ready.found.positive,
        contents=validation.images["content_sha256"].to_pylist(),
        labels=validation.labels,
        groups=validation.groups,
        probabilities=finished.probabilities,
    )
    paper = paper_behind(config.recipe.name)
    source = paper.source if paper else None
    versus = compare(new, ready.found.champion, config.seed)
    return Made(ready.kept.network, data, fit, finished, judged, versus, ready.found.start, source)
