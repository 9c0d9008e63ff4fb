"""The commit: a run's rows enter the table once, in one transaction, or not at all.

Delta's transaction marks are no locks: appending again with the same mark succeeds and doubles the rows. What makes
it once is the order: open the table, look at the mark, append *through that same object*. A writer that came between
makes the append fail, and the look is repeated. Abandoning a run is a commit as well, an empty one with another mark,
so that whoever commits second, of a writer and its undertaker, finds out.

Where the file system knows no hard links, a commit is a rename that replaces whatever is there; then all of this
stands on the lease alone, and who cannot show one is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from pipelines.errors import LeaseLost, TryLater, UsageError
from pipelines.predictions.schema import prediction_schema
from pipelines.predictions.table import (
    create_table,
    explained_errors,
    live_files,
    load_table,
    open_table,
    passes,
    table_schema,
    table_uri,
)

if TYPE_CHECKING:
    from deltalake import DeltaTable

    from pipelines.storage.leases import Lease

COMMITTED: Final = 1
ABANDONED: Final = 0
ROLLED_BACK: Final = 2

_RUN_KEY: Final = "nightread_run"
_TRIES: Final = 5


def ensure_table(results: str, lease: Lease | None = None) -> None:
    """Create the table where there is none; a later run adds the columns of its classes.

    Args:
        results: The results folder.
        lease: The right to write to it; needed where the file system knows no hard links.

    Raises:
        UsageError: If what is there is newer or no table of nightread, or the place cannot be written.
        TryLater: If storage does not answer.
    """
    if load_table(results, lease) is None:
        create_table(results, prediction_schema((), None), lease)
        open_table(results)


def check_carried(results: str, schema: pa.Schema) -> None:
    """Refuse columns whose type differs from the table's; the library would convert '007' to 7 without a word.

    Args:
        results: The results folder.
        schema: Columns of a run, as `prediction_schema` made them (which has checked the names).

    Raises:
        UsageError: Naming the column and both types.
    """
    table = load_table(results)
    if table is not None:
        _check_types(table, schema)


def committed_files(results: str) -> list[str]:
    """The Parquet files that make up the table now; none where there is no table.

    Returns:
        Local paths or bucket URIs, unescaped. The column `scored_date` is in their folder's name, not in them.
    """
    table = load_table(results)
    return [] if table is None else live_files(table, results)


def table_version(results: str) -> int | None:
    """The table's newest version; None where there is no table."""
    table = load_table(results)
    return None if table is None else int(table.version())


def transaction_state(results: str, run_id: str) -> int | None:
    """What became of a run: 1 it was committed, 0 it was abandoned, 2 it was rolled back, None neither."""
    table = load_table(results)
    return None if table is None else table.transaction_version(run_id)


def commit_run(
    results: str,
    run_id: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    before_append: Callable[[], None],
    lease: Lease | None = None,
) -> int:
    """Append a run's rows exactly once.

    Whatever happens in between, a second call finds out whether the first one succeeded: an error from storage does
    not tell whether the commit landed, so the table is asked before anything is said.

    Args:
        results: The results folder; its table exists.
        run_id: The run.
        schema: Columns of the rows.
        batches: The rows; one pass is made for each attempt, and memory holds a few batches at a time. If it raises,
            nothing is committed and the error is passed on. A one-shot iterator allows one attempt.
        before_append: Called just before the append begins and again before it is committed; raises to prevent it.
        lease: The right to write to the folder; needed where the file system knows no hard links.

    Returns:
        The table version that holds the rows; of the earlier commit if this run was committed already.

    Raises:
        LeaseLost: If the run was abandoned by another process.
        UsageError: If the columns do not fit the table.
        TryLater: If storage fails, or other processes keep changing the table.
    """
    trouble: TryLater | None = None
    for attempt in range(_TRIES):
        table = open_table(results, lease)
        state = table.transaction_version(run_id)
        if state == COMMITTED:
            return _version_of(table, run_id)
        if state is not None:
            raise LeaseLost(
                f"Run {run_id} was abandoned by another process.", "Start the same command again: it plans anew."
            )
        _check_types(table, schema)
        if attempt and iter(batches) is batches:
            break
        before_append()
        rows = WatchedBatches(_described_as_there(table, schema), batches, before_append)
        try:
            if _append(table, results, run_id, COMMITTED, rows):
                return int(table.version())
            trouble = None
        except TryLater as error:
            if rows.error is not None or not passes(error, table_uri(results)):
                raise
            trouble = error
    raise trouble or _contended(run_id)


def _described_as_there(table: DeltaTable, schema: pa.Schema) -> pa.Schema:
    """The columns of a run with what the table says of those that it has: the library takes no other description."""
    there = {field.name: field for field in table_schema(table)}
    return pa.schema([field.with_metadata(there.get(field.name, field).metadata) for field in schema])


def abandon_run(results: str, run_id: str, lease: Lease | None = None) -> bool:
    """Make sure that a run is never committed; its images are new again.

    Args:
        results: The results folder; its table exists.
        run_id: The run.
        lease: As for `commit_run`.

    Returns:
        True once it is abandoned; False if it has been committed.
    """
    for _ in range(_TRIES):
        table = open_table(results, lease)
        state = table.transaction_version(run_id)
        if state is not None:
            return state != COMMITTED
        if _append(table, results, run_id, ABANDONED, WatchedBatches(table_schema(table), (), _nothing)):
            return True
    raise _contended(run_id)


def _append(table: DeltaTable, results: str, run_id: str, mark: int, rows: WatchedBatches) -> bool:
    """Append through the given table object; False where the table must be looked at again."""
    from deltalake import CommitProperties, Transaction, WriterProperties, write_deltalake
    from deltalake.exceptions import CommitFailedError

    properties = CommitProperties(
        app_transactions=[Transaction(run_id, mark)], custom_metadata={_RUN_KEY: f"{run_id} {mark}"}
    )
    try:
        with explained_errors(table_uri(results)):
            write_deltalake(
                table,
                pa.RecordBatchReader.from_batches(rows.schema, iter(rows)),
                mode="append",
                schema_mode="merge",
                commit_properties=properties,
                writer_properties=WriterProperties(compression="ZSTD"),
            )
    except CommitFailedError:
        return False
    except Exception:
        if rows.error is not None:
            raise rows.error from None
        # An error after the commit was sent says nothing about whether it landed.
        if transaction_state(results, run_id) is not None:
            return False
        raise
    return True


def _version_of(table: DeltaTable, run_id: str) -> int:
    """The version whose commit carried a run; the newest where the log no longer tells."""
    for entry in table.history():
        if entry.get(_RUN_KEY) == f"{run_id} {COMMITTED}":
            return int(entry["version"])
    return int(table.version())


def _check_types(table: DeltaTable, schema: pa.Schema) -> None:
    known = {field.name.lower(): field for field in table_schema(table)}
    for field in schema:
        there = known.get(field.name.lower())
        if there is None or (there.type == field.type and there.name == field.name):
            continue
        if there.name != field.name:
            raise UsageError(
                f"The column {field.name!r} differs from the table's {there.name!r} in upper and lower case only.",
                f"Carry it as {there.name!r}: --columns {there.name}={field.name}.",
            )
        raise UsageError(
            f"The column {field.name!r} is of the type {field.type}, and of the type {there.type} in the table.",
            "Give it the table's type in the manifest, or carry it under another name with --columns.",
        )


def _contended(run_id: str) -> TryLater:
    return TryLater(
        f"The table changed under the commit of run {run_id} each time it was tried; nothing was written.",
        "Start the same command again: it goes on from the finished parts.",
    )


def _nothing() -> None:
    """Stands for a check where there is none."""


class WatchedBatches:
    """Batches on their way to the writer: keeps the error that they raise, which the writer would rewrite.

    Args:
        schema: Of the batches.
        batches: They themselves.
        last_check: Called when all have been handed over, before the commit; raises to prevent it.

    Attributes:
        schema: Of the batches.
        error: What reading them, or the last check, raised; None so far.
    """

    def __init__(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch], last_check: Callable[[], None]) -> None:
        self.schema = schema
        self.error: BaseException | None = None
        self._batches = batches
        self._last_check = last_check

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._batches
            self._last_check()
        except GeneratorExit:
            raise
        except BaseException as error:
            self.error = error
            raise
