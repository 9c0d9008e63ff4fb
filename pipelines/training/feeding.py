"""Bring the images of a batch to the training step: from memory, from files, or augmented on the way."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UsageError
from pipelines.images.augment import Augmentation
from pipelines.storage import files, paths
from pipelines.training.batches import Block, EpochPlan, block_of, variants_of, worker_rows
from pipelines.training.job import FitJob
from pipelines.training.recipes import Recipe

RESIDENT_BYTES = 1 << 30
"""Arrays up to this size are handed to TensorFlow once; larger ones are read from their files block by block."""
BLOCK_BYTES = 64 << 20
LONG_BLOCK, SHORT_BLOCK = 1024, 16
"""Steps of one call of TensorFlow: of a head alone, and where layers of the backbone run, which takes seconds."""


@dataclass(frozen=True)
class Fed:
    """The images of a block; P of them on this worker.

    Attributes:
        block: Which.
        data: Inputs that `index` points into, `[R, D]`: an array, or a tensor that is there already.
        index: int64 `[1, P]`; with mixup `[2, P]`, the second row being the partners.
        labels: Class numbers, int64, of the shape of `index`.
        shares: Share of the image itself in the mixture, float32 `[P]`; 1 without mixup.
    """

    block: Block
    data: Any
    index: NDArray[np.int64]
    labels: NDArray[np.int64]
    shares: NDArray[np.float32]


@dataclass(frozen=True)
class TrainingArrays:
    """The arrays of a job, open.

    Attributes:
        inputs: `[N, V, D]`, mapped from its file.
        labels: int64 `[N]`.
        keys: int64 `[N]`.
        validation_inputs: `[M, D]`, mapped from its file.
        validation_labels: int64 `[M]`.
        resident: What was handed to TensorFlow already, so that the fits of a process share it.
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int64]
    keys: NDArray[np.int64]
    validation_inputs: NDArray[Any]
    validation_labels: NDArray[np.int64]
    resident: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def size(self) -> int:
        """D."""
        return int(self.inputs.shape[2])


def open_arrays(job: FitJob, folder: str) -> TrainingArrays:
    """Open the arrays of a job; what lies in a bucket is fetched first.

    Args:
        job: Says where they are.
        folder: Of this worker alone, for what is fetched.

    Raises:
        ValueError: If they do not fit each other.
        TryLater: If storage does not answer, or the disk is full.
    """
    where = job.arrays
    inputs, validation = _open(where.inputs, folder), _open(where.validation_inputs, folder)
    arrays = TrainingArrays(
        inputs[:, None] if inputs.ndim == 2 else inputs,
        np.array(_open(where.labels, folder), np.int64),
        np.array(_open(where.keys, folder), np.int64),
        validation.reshape(len(validation), -1),
        np.array(_open(where.validation_labels, folder), np.int64),
    )
    rows, width = len(arrays.inputs), arrays.inputs.shape[2]
    if {len(arrays.labels), len(arrays.keys)} != {rows} or arrays.validation_inputs.shape[1] != width:
        raise ValueError(f"training inputs {arrays.inputs.shape}, validation {arrays.validation_inputs.shape}")
    return arrays


def _open(place: str, folder: str) -> NDArray[Any]:
    path = paths.canonical(place)
    if not paths.is_local(path):
        path = os.path.join(folder, paths.name(place))
        files.fetch(place, path)
    try:
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError as error:
        raise UsageError(
            f"The node {socket.gethostname()} of the cluster does not see {path}, which the driver wrote.",
            "Give MODELS and --cache in a bucket (s3://…), or on a disk that all nodes share.",
        ) from error


class Feeder:
    """Feeds one worker.

    Args:
        job: Says how images are augmented and mixed.
        arrays: The images.
        rank: Of this worker.
        workers: How many share each batch.
        threads: For reading and augmenting.
        to_memory: Hands an array to TensorFlow once and for all.
    """

    def __init__(
        self,
        job: FitJob,
        arrays: TrainingArrays,
        *,
        rank: int,
        workers: int,
        threads: int,
        to_memory: Callable[[NDArray[Any]], Any],
    ) -> None:
        self._job, self._arrays = job, arrays
        self._rank, self._workers, self._threads = rank, workers, threads
        self._augmentation = augmentation_of(job.recipe) if job.fresh else None
        resident = arrays.inputs.nbytes <= RESIDENT_BYTES and self._augmentation is None
        self._resident = self._once("training", arrays.inputs.reshape(-1, arrays.size), to_memory) if resident else None
        low, high = worker_rows(len(arrays.validation_labels), rank, workers)
        own = arrays.validation_inputs[low:high]
        self.validation_rows = (low, high)
        self._validation = self._once("validation", own, to_memory) if own.nbytes <= RESIDENT_BYTES else own

    def _once(self, name: str, array: NDArray[Any], to_memory: Callable[[NDArray[Any]], Any]) -> Any:
        """Hand an array to TensorFlow, unless an earlier fit of this process did."""
        if name not in self._arrays.resident:
            self._arrays.resident[name] = to_memory(array)
        return self._arrays.resident[name]

    def validation(self) -> Iterator[Any]:
        """This worker's part of the validation inputs, in pieces `[m, D]` that a forward pass takes at once."""
        low, high = self.validation_rows
        size = 64 if self._job.runs_backbone else 4096
        for first in range(0, high - low, size):
            yield self._validation[first : first + size]

    def blocks(self, plan: EpochPlan, epoch: int) -> Iterator[Fed]:
        """The blocks of an epoch, one after the other; the next is made while the last is trained on."""
        steps = SHORT_BLOCK if self._job.runs_backbone else LONG_BLOCK
        if self._resident is None:
            inputs = 2 if plan.partners is not None else 1
            image = self._arrays.size * self._arrays.inputs.itemsize
            steps = min(steps, max(1, BLOCK_BYTES // (image * plan.batch_size * inputs)))
        starts = range(0, plan.steps, steps)
        cuts = [(first, min(first + steps, plan.steps)) for first in starts]
        if self._resident is not None:
            for first, last in cuts:
                yield self._fed(plan, epoch, block_of(plan, first, last, self._rank, self._workers))
            return
        with ThreadPoolExecutor(self._threads, "augment") as pool, ThreadPoolExecutor(1, "feed") as ahead:
            made: list[Future[Fed]] = []
            for first, last in cuts:
                block = block_of(plan, first, last, self._rank, self._workers)
                made.append(ahead.submit(self._fed, plan, epoch, block, pool))
                if len(made) > 1:
                    yield made.pop(0).result()
            yield made.pop(0).result()

    def _fed(self, plan: EpochPlan, epoch: int, block: Block, pool: ThreadPoolExecutor | None = None) -> Fed:
        places = block.places[None]
        shares = np.ones(len(block.places), np.float32)
        if plan.partners is not None and plan.shares is not None:
            places, shares = np.stack([block.places, plan.partners[block.places]]), plan.shares[block.places]
        rows, repeats = plan.rows[places], plan.repeats[places]
        labels = self._arrays.labels[rows]
        variants = variants_of(
            self._arrays.keys[rows], repeats, seed=self._job.seed, epoch=epoch, variants=self._arrays.inputs.shape[1]
        )
        if self._resident is not None:
            return Fed(block, self._resident, rows * self._arrays.inputs.shape[1] + variants, labels, shares)
        if self._augmentation is None or pool is None:
            data = self._arrays.inputs[rows.ravel(), variants.ravel()]
        else:
            data = self._augmented(self._augmentation, rows.ravel(), repeats.ravel(), epoch, pool)
        return Fed(block, data, np.arange(rows.size).reshape(rows.shape), labels, shares)

    def _augmented(
        self,
        augmentation: Augmentation,
        rows: NDArray[np.int64],
        repeats: NDArray[np.int64],
        epoch: int,
        pool: ThreadPoolExecutor,
    ) -> NDArray[np.uint8]:
        """Images as this epoch sees them: a function of content, seed, epoch and how often they came before."""
        side = self._job.recipe.input_size
        made = np.empty((len(rows), self._arrays.size), np.uint8)

        def draw(place: int) -> None:
            pixels = np.asarray(self._arrays.inputs[rows[place], 0]).reshape(side, side, 3)
            key = (self._job.seed, int(self._arrays.keys[rows[place]]), epoch, int(repeats[place]))
            made[place] = augmentation.apply(pixels, key).ravel()

        list(pool.map(draw, range(len(rows))))
        return made


def augmentation_of(recipe: Recipe) -> Augmentation:
    """How a recipe changes its training images."""
    return Augmentation(
        rotation=recipe.rotation,
        shift=recipe.shift,
        shear=recipe.shear,
        zoom=recipe.zoom,
        flip=recipe.flip,
        fill=recipe.fill,
    )
