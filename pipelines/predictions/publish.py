"""The published file: the view `latest` as one plain Parquet file, for tools that know no Delta tables.

The file is swapped in whole: whoever reads the folder sees the file of one table version or of the next, each image
once. Its own metadata tell of which table and version it was made, so that nothing is written twice. Filling it takes
minutes: who wrote it looks at what is there once more, and at its lease, right before it is swapped in (in a bucket:
sent there), so that a writer that slept does not put an older version over a newer one.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipelines.errors import TryLater, UsageError
from pipelines.predictions.query import ROW_COLUMN, create_rows, named_files, open_files
from pipelines.predictions.schema import column_order
from pipelines.predictions.statements import literal, quoted
from pipelines.predictions.table import explained_errors, live_files, load_table, open_table, table_schema, table_uri
from pipelines.storage import files, local_files, paths

if TYPE_CHECKING:
    import duckdb
    from deltalake import DeltaTable

FILE_NAME: Final = "latest.parquet"
MEMORY_LIMIT: Final = "1GB"
# More would write more row groups at once, each of which is held in memory.
THREADS: Final = 4

_RESULTS_KEY: Final = "nightread_results"
_TABLE_KEY: Final = "nightread_table"
_VERSION_KEY: Final = "nightread_table_version"
_TIME_KEY: Final = "nightread_published_at"
_KEPT_FOR_US: Final = ("archives", "leases", "listings", "nights", "predictions", "runs")
# In these a local path would be a pattern for DuckDB.
_PATTERN: Final = re.compile(r"[*?\[\]{}\\]")


@dataclass(frozen=True)
class Published:
    """What became of a publication.

    Attributes:
        path: The file.
        rows: Its rows.
        seconds: How long it took.
        skipped: Whether the file there already held this version of the table, or a later one.
    """

    path: str
    rows: int
    seconds: float
    skipped: bool


@dataclass(frozen=True)
class _Origin:
    """What a published file says of itself."""

    table: str
    version: int
    rows: int


class _Overtaken(Exception):
    """Another process has published this version, or a later one, while this one was writing."""

    def __init__(self, there: _Origin) -> None:
        super().__init__()
        self.there = there


def check_place(results: str, place: str, try_writing: bool = True) -> None:
    """Refuse a folder into which nothing can or may be published; call it before a night's work.

    Args:
        results: The results folder; it need not exist yet.
        place: The folder or URI for the published file.
        try_writing: Make the folder, and see whether it may be written.

    Raises:
        UsageError: If it holds the results, lies where they keep their files or in a Delta table, holds a file of that
            name that was not published from these results, or may not be written.
        TryLater: If storage does not answer.
    """
    _check_folder(results, place)
    uri = paths.join(paths.canonical(place), FILE_NAME)
    there = _origin(uri)
    if there is not None:
        _check_origin(there, uri, load_table(results))
    if try_writing:
        _try_writing(paths.canonical(place))


def _check_folder(results: str, place: str) -> None:
    own, target = paths.parent(table_uri(results)), paths.canonical(place)
    cure = "Publish into a folder of its own, beside the results."
    if target == own or paths.is_inside(own, target):
        raise UsageError(f"{target!r} holds the results themselves; a reader of it would read both.", cure)
    for folder in (paths.join(own, name) for name in _KEPT_FOR_US):
        if target == folder or paths.is_inside(target, folder):
            raise UsageError(f"{target!r} lies where the results keep their own files.", cure)
    for folder in _upwards(target):
        if files.exists(paths.join(folder, "_delta_log")):
            raise UsageError(
                f"{folder!r} is the folder of a Delta table; a file in it would confuse its readers.", cure
            )


def _check_origin(there: _Origin, uri: str, table: DeltaTable | None) -> None:
    """Refuse a file of another table; where there is none yet, whatever is there is of another."""
    if table is None or there.table != str(table.metadata().id):
        raise UsageError(f"{uri!r} was published from another table.", "Choose another folder, or delete that file.")


def publish(results: str, place: str, table_version: int, *, check: Callable[[], None] = lambda: None) -> Published:
    """Write the view `latest` of a version of the table as plain Parquet.

    Args:
        results: The results folder.
        place: The folder or URI in which `latest.parquet` is replaced.
        table_version: The version to publish.
        check: Called right before the file is swapped in; what it raises (a lost lease) leaves the old one there.

    Returns:
        What was written, or that it was there already.

    Raises:
        UsageError: As `check_place`; or there is no such version.
        TryLater: If storage does not answer, the disk is full, or the file was cleared away while it was filled.
    """
    began = time.monotonic()
    _check_folder(results, place)
    uri = paths.join(paths.canonical(place), FILE_NAME)
    try:
        table = _table_ahead_of(uri, results, table_version)
        with explained_errors(table_uri(results)):
            table.load_as_version(table_version)
        with _filling(uri) as path:
            rows = _write(results, table, path, _metadata(results, table))
            if paths.is_local(uri):
                # The disk may take its time over it, which must not lie between the last look and the swap.
                with contextlib.suppress(FileNotFoundError):
                    local_files.sync(path)
            _table_ahead_of(uri, results, table_version)
            check()
    except _Overtaken as overtaken:
        return Published(uri, overtaken.there.rows, time.monotonic() - began, skipped=True)
    return Published(uri, rows, time.monotonic() - began, skipped=False)


def _table_ahead_of(uri: str, results: str, version: int) -> DeltaTable:
    """Open the table at its newest version, unless the published file holds the given version or a later one.

    A file that says that it is of a version which the table has not reached is of none: the results have been restored
    from a backup.

    Raises:
        _Overtaken: If it does.
    """
    # In this order: a file of a version that is committed and published in between would seem to be of none.
    there = _origin(uri)
    table = open_table(results)
    if there is not None:
        _check_origin(there, uri, table)
        if version <= there.version <= table.version():
            raise _Overtaken(there)
    return table


def _metadata(results: str, table: DeltaTable) -> dict[str, str]:
    return {
        _RESULTS_KEY: paths.canonical(results),
        _TABLE_KEY: str(table.metadata().id),
        _VERSION_KEY: str(table.version()),
        _TIME_KEY: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _write(results: str, table: DeltaTable, path: str, told: dict[str, str]) -> int:
    uris = live_files(table, results)
    names = _names(uris)
    with open_files(results, names, MEMORY_LIMIT) as connection:
        create_rows(connection, table_schema(table), list(names), with_place=True)
        connection.execute(f"SET threads = {min(THREADS, os.cpu_count() or 1)}; SET preserve_insertion_order = false")
        condition = _without_older(connection)
        columns = ", ".join(quoted(name) for name in column_order(table_schema(table)))
        metadata = ", ".join(f"{key}: {literal(value)}" for key, value in told.items())
        # The path is a hidden one already; DuckDB's own temporary file beside it would be seen by readers.
        written = connection.execute(
            f"COPY (SELECT {columns} FROM rows WHERE {condition}) TO {literal(path)} "
            f"(FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false, KV_METADATA {{{metadata}}})"
        ).fetchone()
    return int(written[0]) if written else 0


def _without_older(connection: duckdb.DuckDBPyConnection) -> str:
    """The condition that leaves the rows of the view `latest`.

    The view sorts whole rows, which takes minutes and gigabytes for ten million. Here a first look at the three names
    of an image finds the few that may have several rows (by a hash, which may say so of too many), and only among
    those is the newest looked for, in the narrow columns that decide it.
    """
    identity = "hash(image_uri, frame, model_name)"
    connection.execute(
        f"CREATE TEMP TABLE repeated AS SELECT {identity} AS name FROM rows WHERE status = 'scored' "
        "GROUP BY ALL HAVING count(*) > 1"
    )
    found = connection.execute("SELECT count(*) FROM repeated").fetchone()
    if not found or not found[0]:
        return "status = 'scored'"
    connection.execute(
        f"""CREATE TEMP TABLE older AS SELECT place FROM (
            SELECT {quoted(ROW_COLUMN)} AS place, row_number() OVER (
                PARTITION BY image_uri, frame, model_name ORDER BY scored_at DESC, run_id DESC) AS age
            FROM rows WHERE status = 'scored' AND {identity} IN (SELECT name FROM repeated)) WHERE age > 1"""
    )
    return f"status = 'scored' AND {quoted(ROW_COLUMN)} NOT IN (SELECT place FROM older)"


def _names(uris: Sequence[str]) -> dict[str, str]:
    """The files as DuckDB is to call them: by their own paths where it can, which it reads several times as fast."""
    if all(paths.is_local(uri) and not _PATTERN.search(uri) for uri in uris):
        return {uri: uri for uri in uris}
    return named_files(uris)


def _origin(uri: str) -> _Origin | None:
    """What the file there says of itself; None where there is none.

    Raises:
        UsageError: If it is not one that was published.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with files.open_input(uri) as handle, files.explaining(uri):
            found = pq.read_metadata(handle)
        told = found.metadata or {}
        return _Origin(told[_TABLE_KEY.encode()].decode(), int(told[_VERSION_KEY.encode()]), found.num_rows)
    except FileNotFoundError:
        return None
    except (pa.ArrowInvalid, KeyError, ValueError):
        raise UsageError(
            f"{uri!r} is there already, and nightread has not written it.", "Choose another folder, or move that file."
        ) from None


@contextlib.contextmanager
def _filling(uri: str) -> Iterator[str]:
    """The path of an empty local file to be filled, which then takes the place of the published one, whole.

    It lies in the folder above where that can be: some readers of a folder (Polars) take hidden files for its content.
    """
    if not paths.is_local(uri):
        with files.filling(uri) as path:
            yield path
        return
    folder, name = os.path.split(uri)
    above, own = os.path.split(folder)
    # Short, since temporary names are cut, and this folder's alone, since leftovers are removed.
    outside = os.path.join(above, f"{name}-{hashlib.sha256(os.fsencode(own)).hexdigest()[:12]}")
    with files.explaining(uri):
        local_files.make_folder(folder)
        same = os.access(above, os.W_OK) and os.stat(above).st_dev == os.stat(folder).st_dev
        for path in (outside, uri):  # only the lease's owner publishes
            local_files.remove_leftovers(path)
        try:
            with local_files.replacing(uri, outside if same else uri) as path:
                yield path
        except FileNotFoundError:
            raise TryLater(
                f"What was to become {uri!r} was removed by another process while it was filled.",
                "Start the same command again.",
            ) from None


def _upwards(folder: str) -> Iterator[str]:
    """The folder, the one above it and so on."""
    yield folder
    while folder != paths.parent(folder):
        folder = paths.parent(folder)
        yield folder


def _try_writing(target: str) -> None:
    if paths.is_local(target):
        with files.explaining(target):
            local_files.make_folder(target)
            if not os.access(target, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), target)
        return
    probe = paths.join(target, f".{FILE_NAME}.{secrets.token_hex(6)}.tmp")
    files.write_atomic(probe, b"")
    files.delete(probe)
