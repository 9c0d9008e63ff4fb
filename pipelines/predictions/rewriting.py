"""Days of the table written anew in one commit, row by row as a stream.

The library's own UPDATE and DELETE hold as many files in memory as there are, and leave text in another Arrow type.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from pipelines.predictions.commit import WatchedBatches
from pipelines.predictions.schema import PARTITION_COLUMN
from pipelines.predictions.table import explained_errors, live_files, table_schema, table_uri
from pipelines.storage import files, paths
from pipelines.storage.scratch import Scratch

if TYPE_CHECKING:
    from deltalake import DeltaTable

BATCH_ROWS: Final = 4096


def rewrite_days(
    table: DeltaTable,
    results: str,
    first: datetime.date,
    last: datetime.date,
    change: Callable[[pa.RecordBatch], pa.RecordBatch],
    last_check: Callable[[], None],
    told: Mapping[str, str],
    marks: Sequence[tuple[str, int]] = (),
) -> None:
    """Replace all rows of some days by what `change` makes of them; other days stay as they are.

    Args:
        table: The table at its newest version, opened with the lease; at the new version afterwards.
        results: The results folder.
        first: The first day.
        last: The last one.
        change: Gets rows with the table's columns and gives those that take their place.
        last_check: Called when all rows have been handed over, before the commit; raises to prevent it.
        told: What the table's log says of it.
        marks: Run ids and what becomes of them, committed together with the rows.

    Raises:
        CommitFailedError: If the table has changed meanwhile; nothing was written.
        Exception: What `change` or `last_check` raised. Any other error does not tell whether the commit has landed.
    """
    from deltalake import CommitProperties, Transaction, WriterProperties, write_deltalake
    from deltalake.exceptions import CommitFailedError

    schema = table_schema(table)
    uris = [uri for uri in live_files(table, results) if first <= day_of(uri) <= last]
    rows = WatchedBatches(schema, _Changed(schema, uris, change), last_check)
    try:
        with explained_errors(table_uri(results)):
            write_deltalake(
                table,
                pa.RecordBatchReader.from_batches(schema, iter(rows)),
                mode="overwrite",
                predicate=f"{PARTITION_COLUMN} >= '{first}' AND {PARTITION_COLUMN} <= '{last}'",
                writer_properties=WriterProperties(compression="ZSTD"),
                commit_properties=CommitProperties(
                    app_transactions=[Transaction(run_id, mark) for run_id, mark in marks], custom_metadata=dict(told)
                ),
            )
    except CommitFailedError:
        raise
    except Exception:
        if rows.error is not None:
            raise rows.error from None
        raise


class _Changed:
    """Rows of some files of the table with the table's columns, changed batch by batch."""

    def __init__(
        self, schema: pa.Schema, uris: Sequence[str], change: Callable[[pa.RecordBatch], pa.RecordBatch]
    ) -> None:
        self._schema = schema
        self._uris = uris
        self._change = change

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        import pyarrow.parquet as pq

        for uri in self._uris:
            with _at_hand(uri) as path, pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                    changed = self._change(self._fitted(batch, day_of(uri)))
                    if changed.num_rows:
                        yield changed

    def _fitted(self, batch: pa.RecordBatch, day: datetime.date) -> pa.RecordBatch:
        """The batch with the table's columns: those that came later are null, the day stands in the folder's name."""
        there = set(batch.schema.names)
        columns = {field.name: batch.column(field.name) for field in self._schema if field.name in there}
        missing = [field for field in self._schema if field.name not in there]
        columns |= {field.name: pa.nulls(batch.num_rows, field.type) for field in missing}
        columns[PARTITION_COLUMN] = pa.repeat(pa.scalar(day), batch.num_rows)
        arrays = [columns[field.name].cast(field.type) for field in self._schema]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)


@contextlib.contextmanager
def _at_hand(uri: str) -> Iterator[str]:
    """The local path of a file; of one in a bucket a copy that lasts as long as the block."""
    if paths.is_local(uri):
        yield uri
        return
    with Scratch() as folder:
        path = str(folder / "rows.parquet")
        files.fetch(uri, path)
        yield path


def day_of(uri: str) -> datetime.date:
    """The day that a file of the table holds rows of."""
    return datetime.date.fromisoformat(paths.name(paths.parent(uri)).partition("=")[2])
