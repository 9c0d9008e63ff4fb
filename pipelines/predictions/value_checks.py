"""What the values of a row must be like, whichever model made it: looked at row by row when results are verified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

_DECISIONS: Final = ("negative", "refer", "positive")
# Rounding of float32; an 8-bit scorer answers in steps of 1/256 for each class.
_ROUNDING: Final = 1e-4
_SUM_FLOAT32: Final = 1e-3
_SUM_INT8: Final = 5e-2


def wrong_values(batches: Iterable[pa.RecordBatch]) -> list[str]:
    """Read rows and say what is wrong with them.

    Args:
        batches: Rows of the table, with the columns that its files have; `scored_date` is not looked at.

    Returns:
        A few words for each kind of fault, with the number of rows that have it.
    """
    wrong: Counter[str] = Counter()
    for batch in batches:
        for what, rows in _looked_at(batch):
            wrong[what] += pc.sum(pc.fill_null(rows, False)).as_py() or 0
    return [f"{count:,} rows {what}" for what, count in wrong.items() if count]


def _looked_at(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.BooleanArray]]:
    """Each rule's words, and which rows break it."""
    columns = {name: _plain(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    status = columns["status"]
    scored, failed = pc.equal(status, "scored"), pc.equal(status, "failed")
    yield "are neither scored nor failed", pc.invert(pc.fill_null(pc.or_(scored, failed), False))
    for name in ("run_id", "image_uri"):
        yield f"have no {name}", pc.is_null(columns[name])
    yield "are scored and have an error_code", pc.and_(scored, pc.is_valid(columns["error_code"]))
    yield "are failed and have no error_code", pc.and_(failed, pc.is_null(columns["error_code"]))
    classes = [name for name in columns if name.startswith("p_") and name != "p_positive"]
    for name in ("predicted_class", "score", "p_positive"):
        yield f"are scored and have no {name}", pc.and_(scored, pc.is_null(columns[name]))
    for name in ("predicted_class", "score", "p_positive", "decision", *classes):
        yield f"are failed and have a {name}", pc.and_(failed, pc.is_valid(columns[name]))
    for name in ("score", "p_positive", "mean_intensity", *classes):
        yield f"have a {name} that is not from 0 to 1", _outside(columns[name])
    decided = pc.is_in(columns["decision"], value_set=pa.array(_DECISIONS))
    yield "have an unknown decision", pc.and_(pc.is_valid(columns["decision"]), pc.invert(decided))
    if classes:
        yield from _looked_at_probabilities(columns, classes, scored)


def _looked_at_probabilities(
    columns: dict[str, pa.Array], classes: list[str], scored: pa.BooleanArray
) -> Iterator[tuple[str, pa.BooleanArray]]:
    given = [columns[name] for name in classes]
    total = pc.fill_null(given[0], 0.0).cast(pa.float64())
    for column in given[1:]:
        total = pc.add(total, pc.fill_null(column, 0.0).cast(pa.float64()))
    room = pc.if_else(pc.equal(columns["precision"], "float32"), _SUM_FLOAT32, _SUM_INT8)
    off = pc.greater(pc.abs(pc.subtract(total, 1.0)), room)
    yield "have probabilities that do not add up to 1", pc.and_(scored, off)
    highest = pc.max_element_wise(*given)
    apart = pc.greater(pc.abs(pc.subtract(highest, columns["score"])), _ROUNDING)
    yield "have a score that is not the highest probability", pc.and_(scored, apart)


def _plain(column: pa.Array) -> pa.Array:
    """Other tools may have written text as views, which are compared with nothing."""
    return column.cast(pa.string()) if pa.types.is_string_view(column.type) else column


def _outside(column: pa.Array) -> pa.BooleanArray:
    """Values below 0, above 1, or no number."""
    inside = pc.and_(pc.greater_equal(column, -_ROUNDING), pc.less_equal(column, 1 + _ROUNDING))
    return pc.and_(pc.is_valid(column), pc.invert(inside))
