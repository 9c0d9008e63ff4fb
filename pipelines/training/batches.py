"""What is in a batch: a function of (seed, epoch, step), never of how many workers share it. Plain NumPy.

An epoch is planned as a whole; a batch is a stretch of the plan, and a worker's part is a stretch of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ORDER, _MIXUP, _DROPOUT = 0, 1, 2


@dataclass(frozen=True)
class EpochPlan:
    """The images of an epoch in the order in which they are taken; L of them.

    Attributes:
        batch_size: B; the last batch takes what is left.
        rows: Row of the training arrays, int64 `[L]`.
        repeats: How often the same image came before in this epoch, int64 `[L]`.
        partners: With mixup, the place in the plan (of the same batch) of what an image is mixed with, int64 `[L]`.
        shares: With mixup, the image's own share of the mixture, float32 `[L]`, 0 to 1.
        dropout_key: Two numbers from which all masks of the epoch are drawn, int32 `[2]`.
    """

    batch_size: int
    rows: NDArray[np.int64]
    repeats: NDArray[np.int64]
    partners: NDArray[np.int64] | None
    shares: NDArray[np.float32] | None
    dropout_key: NDArray[np.int32]

    @property
    def steps(self) -> int:
        """Batches of the epoch."""
        return -(-len(self.rows) // self.batch_size)


@dataclass(frozen=True)
class Block:
    """A worker's part of a few successive batches.

    Attributes:
        first_step: Number of the first of these batches in the epoch, from 0.
        places: Places in the plan of this worker's images, int64 `[P]`; may be empty.
        bounds: Batch s of the block has `places[bounds[s]:bounds[s + 1]]`, int32 `[steps + 1]`.
        offsets: Where this worker's images begin within the whole batch, int32 `[steps]`.
        sizes: Images of the whole batch, int32 `[steps]`.
    """

    first_step: int
    places: NDArray[np.int64]
    bounds: NDArray[np.int32]
    offsets: NDArray[np.int32]
    sizes: NDArray[np.int32]


def plan_epoch(
    labels: NDArray[np.int64], *, seed: int, epoch: int, batch_size: int, oversample: bool, mixup: float
) -> EpochPlan:
    """Plan an epoch.

    Args:
        labels: Class numbers of the training images, `[N]`.
        seed: Of the fit.
        epoch: From 1.
        batch_size: Images a step.
        oversample: Whether every class comes as often as the largest (Chawla's random oversampling): each image
            equally often, and what is then missing drawn without replacement, anew each epoch.
        mixup: Alpha of the Beta distribution of the shares (Zhang et al., ICLR 2018); 0 mixes nothing.
    """
    random = np.random.default_rng([seed, epoch, _ORDER])
    rows = _oversampled(labels, random) if oversample else np.arange(len(labels))
    rows = random.permutation(rows).astype(np.int64)
    partners = shares = None
    if mixup:
        random = np.random.default_rng([seed, epoch, _MIXUP])
        batch = np.arange(len(rows)) // batch_size
        partners = np.lexsort((random.random(len(rows)), batch)).astype(np.int64)
        shares = random.beta(mixup, mixup, len(rows)).astype(np.float32)
    key = np.random.SeedSequence([seed, epoch, _DROPOUT]).generate_state(2).view(np.int32)
    return EpochPlan(batch_size, rows, _repeats(rows), partners, shares, key)


def _oversampled(labels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    members = [np.flatnonzero(labels == number) for number in np.unique(labels)]
    most = max(map(len, members))
    drawn = []
    for rows in members:
        whole, missing = divmod(most, len(rows))
        drawn += [np.tile(rows, whole), random.permutation(rows)[:missing]]
    return np.concatenate(drawn)


def _repeats(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each entry, how many equal ones stand before it."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    starts = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(rows) else np.array([], bool)
    counted = np.arange(len(rows)) - np.maximum.accumulate(np.where(starts, np.arange(len(rows)), 0))
    repeats = np.empty(len(rows), np.int64)
    repeats[order] = counted
    return repeats


def worker_rows(rows: int, rank: int, workers: int) -> tuple[int, int]:
    """The stretch of `rows` rows that a worker takes, first and one past the last; workers differ by at most one."""
    return rows * rank // workers, rows * (rank + 1) // workers


def block_of(plan: EpochPlan, first_step: int, last_step: int, rank: int, workers: int) -> Block:
    """A worker's part of the batches from `first_step` to before `last_step`."""
    places, bounds, offsets, sizes = [], [0], [], []
    for step in range(first_step, last_step):
        begin = step * plan.batch_size
        size = min(plan.batch_size, len(plan.rows) - begin)
        low, high = worker_rows(size, rank, workers)
        places.append(np.arange(begin + low, begin + high))
        bounds.append(bounds[-1] + high - low)
        offsets.append(low)
        sizes.append(size)
    return Block(
        first_step,
        np.concatenate(places).astype(np.int64),
        np.array(bounds, np.int32),
        np.array(offsets, np.int32),
        np.array(sizes, np.int32),
    )


def variants_of(
    keys: NDArray[np.int64], repeats: NDArray[np.int64], *, seed: int, epoch: int, variants: int
) -> NDArray[np.int64]:
    """Which cached variant of each image an epoch takes.

    (h(image, seed) + epoch + repeats) mod V: over V epochs every image shows all its variants, each image in another
    turn, and an image that comes twice in an epoch comes in two variants.

    Args:
        keys: Numbers from the images' content, int64 `[P]`.
        repeats: As in the plan, `[P]`.
        seed: Of the fit.
        epoch: From 1.
        variants: V, at least 1.
    """
    if variants == 1:
        return np.zeros(keys.shape, np.int64)
    start = _mixed(keys.view(np.uint64) ^ _mixed(np.full(1, seed, np.uint64))) % np.uint64(variants)
    return (start.astype(np.int64) + epoch + repeats) % variants


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al., OOPSLA 2014): every bit of the answer depends on every bit given."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
