"""Where a fit stands: one file of arrays, replaced whole, from which training goes on as if nothing had happened."""

from __future__ import annotations

import io
import json
import math
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.storage import files
from pipelines.training.history import Row
from pipelines.training.schedules import Plateau

Array = NDArray[Any]

SHARE_OF_TIME = 0.2
"""Writing checkpoints takes at most about this share of a fit."""

_GROUPS = ("variables", "optimizer", "average", "best")


@dataclass(frozen=True)
class Standing:
    """A fit after one of its epochs.

    Attributes:
        epoch: Epochs done.
        step: Steps done, through all epochs.
        history: Their rows.
        best_epoch: The best of them; 0 where none could be judged yet.
        best_value: Its figure; NaN where there is none.
        plateau: What the learning rate has come to.
        finished: Whether training is over; then `variables` are the weights to keep, and the other groups are empty.
        variables: The trained part's arrays, in the trainee's order.
        optimizer: The optimizer's.
        average: The averaged ones; empty where the recipe averages none.
        best: The best epoch's; empty before there is one.
    """

    epoch: int = 0
    step: int = 0
    history: tuple[Row, ...] = ()
    best_epoch: int = 0
    best_value: float = math.nan
    plateau: Plateau = field(default_factory=Plateau)
    finished: bool = False
    variables: tuple[Array, ...] = ()
    optimizer: tuple[Array, ...] = ()
    average: tuple[Array, ...] = ()
    best: tuple[Array, ...] = ()


def save(uri: str, key: str, standing: Standing) -> None:
    """Write a checkpoint in the place of the last one, whole or not at all.

    Args:
        uri: The file.
        key: The job's.
        standing: What to keep.

    Raises:
        TryLater: If the disk is full or storage does not answer.
    """
    small = asdict(replace(standing, variables=(), optimizer=(), average=(), best=())) | {"key": key}
    arrays = {"standing": np.frombuffer(json.dumps(small).encode(), np.uint8)}
    for group in _GROUPS:
        arrays |= {f"{group}_{number:05d}": array for number, array in enumerate(getattr(standing, group))}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    files.write_atomic(uri, buffer.getvalue())


def load(uri: str, key: str) -> Standing | None:
    """Read a checkpoint.

    Args:
        uri: The file.
        key: The job's.

    Returns:
        None where there is none, or it is damaged, or another job's: training then begins anew.
    """
    try:
        data = files.read_bytes(uri)
    except FileNotFoundError:
        return None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as kept:
            small = json.loads(kept["standing"].tobytes())
            groups = {
                group: tuple(kept[name] for name in sorted(kept.files) if name.startswith(f"{group}_"))
                for group in _GROUPS
            }
        if small.pop("key") != key:
            return None
        small |= {"history": tuple(small["history"]), "plateau": Plateau(**small["plateau"])}
        return Standing(**{**small, **groups})
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile):
        return None


def save_arrays(uri: str, arrays: Sequence[Array]) -> None:
    """Write the first weights of a trained part, for `FitJob.start`."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{f"{number:05d}": array for number, array in enumerate(arrays)})
    files.write_atomic(uri, buffer.getvalue())


def load_arrays(uri: str) -> list[Array]:
    """Undo `save_arrays`."""
    with np.load(io.BytesIO(files.read_bytes(uri)), allow_pickle=False) as kept:
        return [kept[name] for name in sorted(kept.files)]


class Keeper:
    """Writes checkpoints after epochs, but never so often that they become the work.

    After each epoch, unless the last write took more than a fifth of the time since: a head whose epoch takes a few
    milliseconds is kept every few epochs. What is done again after a kill is then those few epochs, and they come out
    the same, because every batch is a function of (seed, epoch, step).

    Args:
        uri: The file.
        key: The job's.
    """

    def __init__(self, uri: str, key: str) -> None:
        self._uri = uri
        self._key = key
        self._next = 0.0

    def due(self) -> bool:
        """Whether it is time for another one."""
        return time.monotonic() >= self._next

    def keep(self, standing: Standing) -> None:
        """Write one.

        Raises:
            TryLater: If the disk is full or storage does not answer.
        """
        began = time.monotonic()
        save(self._uri, self._key, standing)
        ended = time.monotonic()
        self._next = ended + (ended - began) * (1 / SHARE_OF_TIME - 1)
