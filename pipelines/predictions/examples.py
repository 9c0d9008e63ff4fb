"""Examples of a run's failed images, by code, read from as few bytes of the table as will do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.predictions.runs import RunRecord
from pipelines.predictions.schema import PARTITION_COLUMN
from pipelines.predictions.table import open_table, table_uri
from pipelines.storage import files, paths

MOST = 3


@dataclass(frozen=True)
class Example:
    """A failed image.

    Attributes:
        image_uri: Canonical; it may hold control characters and say who a patient is.
        message: Why, in a sentence.
    """

    image_uri: str
    message: str


def failure_examples(results: str, record: RunRecord, most: int = MOST) -> dict[str, list[Example]]:
    """Some failed images of a run for each code of its record.

    Reads the files of the run's own day, of which the log says that they may hold its rows, and of these the pieces
    that hold a failure; stops as soon as every code has its examples. The columns of names are read last.

    Args:
        results: The results folder.
        record: The run's record; its counts say what to look for.
        most: Examples of a code at most.

    Returns:
        By code, in the order of the counts, the greatest first; of a run without failures, {}.

    Raises:
        UsageError, TryLater: If the table cannot be read.
    """
    by_code: Mapping[str, int] = record.counts.get("failed_by_code") or {}
    wanted = {code: min(most, count) for code, count in sorted(by_code.items(), key=lambda one: -one[1]) if count}
    found: dict[str, list[Example]] = {code: [] for code in wanted}
    if not wanted:
        return {}
    for file in _files_of(results, record):
        with files.open_input(file) as handle, files.explaining(file):
            for rows in _failures(pq.ParquetFile(handle), record.run_id, wanted, found):
                for row in rows.to_pylist():
                    found[row["error_code"]].append(Example(row["image_uri"], row["error_message"] or ""))
        if all(len(found[code]) >= count for code, count in wanted.items()):
            break
    return found


def _files_of(results: str, record: RunRecord) -> list[str]:
    """The table's files that may hold rows of a run, by the statistics of its log."""
    from urllib.parse import unquote

    added = pa.table(open_table(results).get_add_actions(flatten=True))
    day = pc.equal(added.column(f"partition.{PARTITION_COLUMN}"), pa.scalar(record.started_at.date()))
    for side, compare in (("min.run_id", pc.less_equal), ("max.run_id", pc.greater_equal)):
        if side in added.column_names:
            within = compare(added.column(side).cast(pa.string()), record.run_id)
            day = pc.and_(day, pc.fill_null(within, True))
    return [paths.join(table_uri(results), unquote(path)) for path in added.filter(day).column("path").to_pylist()]


def _failures(
    file: pq.ParquetFile, run_id: str, wanted: Mapping[str, int], found: Mapping[str, list[Example]]
) -> Iterator[pa.Table]:
    """Rows of failures that are still wanted, row group by row group."""
    for group in range(file.num_row_groups):
        codes = file.read_row_group(group, columns=["run_id", "error_code"])
        own = pc.equal(codes.column("run_id"), run_id)
        places: list[int] = []
        for code, count in wanted.items():
            missing = count - len(found[code])
            if missing > 0:
                mask = pc.fill_null(pc.and_(own, pc.equal(codes.column("error_code"), code)), False)
                places += pc.indices_nonzero(mask).slice(0, missing).to_pylist()
        if places:
            names = file.read_row_group(group, columns=["image_uri", "error_code", "error_message"])
            yield names.take(sorted(places))
