"""Answers of points as files: one a point, written whole as soon as the point is read off.

They are all that a search needs to go on after a crash: a point whose file is there is not trained again. The weights
lie in a file of their own, because most of them are deleted before the search is over.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.storage import files, paths
from pipelines.training.checkpoint import load_arrays, save_arrays
from pipelines.training.history import Row
from pipelines.tuning.points import Answer

FORMAT = 1

_POINTS = "points"
_ANSWER = re.compile(r"([0-9a-f]+)\.npz")
_WEIGHTS = re.compile(r"([0-9a-f]+)\.weights\.npz")
_READERS = 16
_DAMAGED = (
    *(ValueError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError, MemoryError),
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error),
)
"""What reading a file can end with that is torn, or not one of ours."""


def save_answer(folder: str, answer: Answer, variables: Sequence[NDArray[Any]] | None) -> None:
    """Write an answer; once its file is there, its weights are too.

    Args:
        folder: The search's.
        answer: Of a point; a second one of the same point takes its place.
        variables: The kept weights, in the order of `Trainee.variables`; None where there are none.

    Raises:
        TryLater: If the disk is full or storage does not answer.
    """
    if variables is not None:
        save_arrays(_weights_file(folder, answer.point), variables)
    columns = list(answer.history[0]) if answer.history else []
    said = {
        "format": FORMAT,
        "point": answer.point,
        "training": answer.training,
        "status": answer.status,
        "error": answer.error,
        "best_epoch": answer.best_epoch,
        "kept_epoch": answer.kept_epoch,
        "columns": columns,
        "logits": answer.logits is not None,
    }
    rows = [[row[column] for column in columns] for row in answer.history]
    arrays: dict[str, Any] = {
        "answer": np.frombuffer(json.dumps(said).encode(), np.uint8),
        "history": np.array(rows, np.float64).reshape(len(rows), len(columns)),
    }
    if answer.logits is not None:
        arrays["logits"] = np.asarray(answer.logits, np.float32)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    files.write_atomic(_answer_file(folder, answer.point), buffer.getvalue())


def load_answer(folder: str, point: str, logits: bool = True) -> Answer | None:
    """Read an answer.

    Args:
        folder: The search's.
        point: Key of the point.
        logits: Whether they are wanted; without them many answers take little memory.

    Returns:
        None where there is none, or its file is damaged or of another format: the point then has no answer. Rows of
        the history hold floats, and a whole number as `epoch`.

    Raises:
        TryLater: If storage does not answer.
    """
    try:
        data = files.read_bytes(_answer_file(folder, point))
    except FileNotFoundError:
        return None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as kept:
            said = json.loads(kept["answer"].tobytes())
            rows, answers = kept["history"], kept["logits"] if logits and said["logits"] else None
        if (said["format"], said["point"]) != (FORMAT, point):
            return None
        return Answer(
            point=point,
            training=str(said["training"]),
            status=str(said["status"]),
            error=None if said["error"] is None else str(said["error"]),
            history=_history(said["columns"], rows),
            best_epoch=int(said["best_epoch"]),
            kept_epoch=int(said["kept_epoch"]),
            logits=answers,
        )
    except _DAMAGED:
        return None


def load_answers(folder: str, points: Iterable[str]) -> Iterator[Answer]:
    """Read the answers of many points, without their logits, several at a time.

    Args:
        folder: The search's.
        points: Keys of points; those without an answer are passed over.

    Yields:
        Answers in the order of the keys; at no time are more than a few held.

    Raises:
        TryLater: If storage does not answer.
    """
    there = answered(folder)
    with ThreadPoolExecutor(_READERS) as readers:
        wanted = [point for point in points if point in there]
        for start in range(0, len(wanted), _READERS):
            some = wanted[start : start + _READERS]
            found = readers.map(lambda point: load_answer(folder, point, logits=False), some)
            yield from (answer for answer in found if answer is not None)


def answered(folder: str) -> set[str]:
    """Keys of the points that have a file; whether it can be read, only reading it tells.

    Args:
        folder: The search's.
    """
    found = (_ANSWER.fullmatch(name) for name in files.list_names(paths.join(folder, _POINTS)))
    return {match[1] for match in found if match}


def weights_kept(folder: str) -> set[str]:
    """Keys of the points whose weights are there.

    Args:
        folder: The search's.
    """
    found = (_WEIGHTS.fullmatch(name) for name in files.list_names(paths.join(folder, _POINTS)))
    return {match[1] for match in found if match}


def load_variables(folder: str, point: str) -> tuple[NDArray[Any], ...] | None:
    """Read the weights of a point.

    Args:
        folder: The search's.
        point: Key of the point.

    Returns:
        In the order of `Trainee.variables`; None where there are none, or their file is damaged.

    Raises:
        TryLater: If storage does not answer.
    """
    try:
        return tuple(load_arrays(_weights_file(folder, point)))
    except FileNotFoundError:
        return None
    except _DAMAGED:
        return None


def drop_variables(folder: str, points: Iterable[str]) -> None:
    """Delete the weights of points; their answers stay.

    Args:
        folder: The search's.
        points: Keys of points; those without weights are fine.
    """
    for point in points:
        files.delete(_weights_file(folder, point))


def _history(columns: Sequence[str], rows: NDArray[np.float64]) -> tuple[Row, ...]:
    if rows.ndim != 2 or rows.dtype != np.float64 or rows.shape[1] != len(columns):
        raise ValueError("the history does not fit its columns")
    read = [dict(zip(columns, row, strict=True)) for row in rows.tolist()]
    return tuple({**row, "epoch": int(row["epoch"])} for row in read)


def _answer_file(folder: str, point: str) -> str:
    return paths.join(folder, _POINTS, f"{point}.npz")


def _weights_file(folder: str, point: str) -> str:
    return paths.join(folder, _POINTS, f"{point}.weights.npz")
