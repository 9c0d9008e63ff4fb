"""The leaderboard of a search: a row for each point, best first, as Parquet and as CSV.

It is a function of the grid and of the answers, never of the order in which they came.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.evaluation.metrics import METRIC_NAMES
from pipelines.storage import files, paths
from pipelines.training.history import VALIDATION_COLUMNS, Row
from pipelines.training.recipe_rules import RULES
from pipelines.tuning.points import FAILED, Answer, Point
from pipelines.tuning.ranking import in_order, rank

LEADERBOARD_FILE = "leaderboard.parquet"
CSV_FILE = "leaderboard.csv"

_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
_BEGINS_FORMULA = ("=", "+", "-", "@")


def leaderboard_row(
    point: Point, answer: Answer | None, metric: str, status: str, error: str | None = None
) -> dict[str, Any]:
    """What is known of a point.

    Args:
        point: The point.
        answer: Its answer, with or without logits; None where there is none yet.
        metric: What points are ranked by.
        status: Such as `waiting`; of an answer, its own is taken.
        error: Why there is no answer; of an answer, its own is taken.

    Returns:
        The columns of `leaderboard_table` but the rank, which takes all rows; and `order`, which decides among points
        of the same value. What is not known or no number is None.
    """
    row: dict[str, Any] = {
        "point": point.key,
        "training": None,
        "status": status,
        "error": _plain_text(error),
        "backbone": point.recipe.backbone,
        **point.settings,
        "value": None,
        "order": in_order(point),
    }
    if answer is None:
        return row
    history, kept, best = answer.history, answer.kept_epoch, answer.best_epoch
    last = history[-1] if history else None
    row |= {"training": answer.training, "status": answer.status, "error": _plain_text(answer.error)}
    if answer.status != FAILED:
        row["value"] = _figure(_at(history, kept), metric)
    row |= {"epochs_run": len(history), "kept_epoch": kept or None, "best_epoch": best or None}
    row |= {f"best_{name}": _figure(_at(history, best), name) for name in METRIC_NAMES}
    row |= {"last_epoch": len(history) or None, **{f"last_{name}": _figure(last, name) for name in METRIC_NAMES}}
    return row | {"seconds": answer.seconds}


def leaderboard_table(rows: Sequence[Mapping[str, Any]], points: Sequence[Point], metric: str) -> pa.Table:
    """All rows, best first.

    Args:
        rows: Of `leaderboard_row`, in any order.
        points: Their points, in the order of the grid: they say which keys have a column.
        metric: What the points are ranked by.

    Returns:
        Columns `rank, point, training, status, error, backbone`, the keys of the grid, `value, epochs_run, kept_epoch,
        best_epoch, best_<metric>…, last_epoch, last_<metric>…, seconds`; each field with the metadata `description`.
    """
    ranked = rank(rows, metric)
    schema = pa.schema(
        [
            pa.field(name, kind, metadata={"description": meaning})
            for name, (kind, meaning) in _columns(points, metric).items()
        ]
    )
    return pa.Table.from_pylist([dict(row) for row in ranked], schema=schema)


def leaderboard_csv(table: pa.Table) -> bytes:
    """A leaderboard as RFC 4180 has it, in UTF-8: a header, commas, quotes where they are needed, CRLF.

    What is null is empty; numbers are written with all their digits. A text that a spreadsheet would take for a
    formula has an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table.column_names)
    writer.writerows([_cell(value) for value in row.values()] for row in table.to_pylist())
    return text.getvalue().encode()


def write_leaderboard(folder: str, table: pa.Table) -> str:
    """Write both files in the place of the last ones, each whole.

    Args:
        folder: The search's.
        table: As `leaderboard_table` makes it.

    Returns:
        Where leaderboard.parquet lies.

    Raises:
        TryLater: If the disk is full or storage does not answer.
    """
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    place = paths.join(folder, LEADERBOARD_FILE)
    files.write_atomic(place, buffer.getvalue())
    files.write_atomic(paths.join(folder, CSV_FILE), leaderboard_csv(table))
    return place


def _columns(points: Sequence[Point], metric: str) -> dict[str, tuple[pa.DataType, str]]:
    """Type and meaning of each column, in their order."""
    text, whole, number = pa.string(), pa.int32(), pa.float64()
    keys = dict.fromkeys(key for point in points for key in point.settings)
    figures = {
        when: {f"{when}_{name}": (number, f"{name} on validation after {when}_epoch.") for name in METRIC_NAMES}
        for when in ("best", "last")
    }
    return {
        "rank": (
            whole,
            "Place by value, 1 the best, points that were stopped behind all others; null without a value.",
        ),
        "point": (text, "Key of the point: a hash of its whole recipe."),
        "training": (text, "Key of the training that it was read off; points of one key differ in epochs only."),
        "status": (text, "`done`, `stopped` early by the scheduler, `failed`, or `waiting`."),
        "error": (text, "Why it failed; null otherwise."),
        "backbone": (text, RULES["backbone"].meaning),
        **{key: (_TYPES[RULES[key].kind], RULES[key].meaning) for key in keys},
        "value": (
            number,
            f"{metric} on validation after kept_epoch, by which points are ranked; null for a failed one.",
        ),
        "epochs_run": (whole, "Epochs that were run for it; fewer than epochs where it ended early."),
        "kept_epoch": (whole, "The epoch, from 1, whose weights are kept."),
        "best_epoch": (whole, "The best epoch by the recipe's own metric; null where that was never a number."),
        **figures["best"],
        "last_epoch": (whole, "The last epoch that was run."),
        **figures["last"],
        "seconds": (number, "Of its epochs, summed; points of one training share those of the smallest number."),
    }


def _at(history: Sequence[Row], epoch: int) -> Row | None:
    """The row of an epoch, from 1; None where there is none."""
    return history[epoch - 1] if 0 < epoch <= len(history) else None


def _figure(row: Row | None, name: str) -> float | None:
    value = math.nan if row is None else row.get(VALIDATION_COLUMNS[name], math.nan)
    return value if math.isfinite(value) else None


def _plain_text(text: str | None) -> str | None:
    """One line that every table can hold: line breaks become spaces, what is no UTF-8 an escape."""
    return None if text is None else " ".join(text.encode(errors="backslashreplace").decode().split())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(_BEGINS_FORMULA) else text
