"""One name, two forms: `é` as one character or as `e` with an accent, as Macs and some shares write it.

People do not see the difference, file systems and buckets do. For names of a manifest that are not there as they
stand, this looks for the one file whose name is equal in Unicode's composed form (NFC). Names in ASCII have no other
form, so that only folders that hold other names are read, each of them once. All sets are kept by DuckDB, on disk
where they are large.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from pipelines.archive.listing import LISTING_SCHEMA, listing_writer
from pipelines.storage import paths
from pipelines.storage.folder_names import names_in
from pipelines.storage.listing import list_files
from pipelines.storage.reading import local_version
from pipelines.storage.throttle import Throttle

if TYPE_CHECKING:
    import duckdb

_BATCH: Final = 8192
_THREADS: Final = 16
_NAMES: Final = pa.schema([("place", pa.string()), ("name", pa.string())])
_FOUND: Final = pa.schema([("number", pa.int64()), *LISTING_SCHEMA])
# What DuckDB calls strlen counts bytes, what it calls length characters.
_NOT_ASCII: Final = "strlen({0}) <> length({0})"


def respell_local(question: duckdb.DuckDBPyConnection, folder: Path, base: str) -> int:
    """Find local files under another form of their names, in folders or in the name itself.

    Args:
        question: Has the view `missing`: `number` and `image_uri` of rows whose file is not there. Gets the table
            `respelled`: of each row for which exactly one file was found its `number`, and the file's `image_uri`
            and `image_version`.
        folder: For files of our own.
        base: Canonical, escaped folder whose own name is taken as it is; every row lies in it.

    Returns:
        Rows in `respelled`.
    """
    inner = f"substr(image_uri, {len(base.rstrip('/')) + 2})"
    question.execute(
        f"""CREATE TABLE wanted AS SELECT number, string_split(nfc_normalize({inner}), '/') AS parts FROM missing
        WHERE {_NOT_ASCII.format(inner)}"""
    )
    if not _count(question, "wanted"):
        return 0
    _find_places(question, folder, base, Throttle())
    found = folder / "candidates.parquet"
    with listing_writer(found, _FOUND) as write, ThreadPoolExecutor(_THREADS, thread_name_prefix="stat") as pool:
        for batch in question.sql("SELECT number, place FROM candidates").to_arrow_reader(_BATCH):
            versions = list(pool.map(_file_version, batch.column("place").to_pylist()))
            cells = [batch.column("number"), batch.column("place"), pa.array(versions, pa.string())]
            write(pa.RecordBatch.from_arrays(cells, schema=_FOUND))
    question.execute(
        f"""CREATE TABLE respelled AS SELECT number, min(image_uri) AS image_uri, min(image_version) AS image_version
        FROM read_parquet({_text(found)}) WHERE image_version <> '' GROUP BY number HAVING count(*) = 1"""
    )
    return _count(question, "respelled")


def respell_listed(
    question: duckdb.DuckDBPyConnection, folder: Path, base: str, prefix: str, there: Path, throttle: Throttle
) -> int:
    """Find objects of a bucket under another form of their keys.

    Args:
        question: As in `respell_local`.
        folder: For files of our own.
        base: Canonical, escaped place whose own name is taken as it is.
        prefix: The same or a place in it, in which all rows lie, and which `there` lists.
        there: Parquet file of what the prefix holds: `image_uri`, `image_version`.
        throttle: Announces each request to a bucket.

    Returns:
        Rows in `respelled`.
    """
    if not _count(question, f"missing WHERE {_NOT_ASCII.format('image_uri')}"):
        return 0
    elsewhere = folder / "elsewhere.parquet"
    question.execute("CREATE TABLE wanted (number BIGINT, parts VARCHAR[])")
    if paths.is_inside(prefix, base):
        inner = paths.relative(prefix, base)
        question.execute("INSERT INTO wanted SELECT 0, string_split(nfc_normalize($1), '/')", [inner])
    _find_places(question, folder, base, throttle)
    others = question.sql("SELECT place FROM candidates WHERE place <> $prefix", params={"prefix": prefix}).fetchall()
    with listing_writer(elsewhere, LISTING_SCHEMA) as write:
        for (place,) in others:
            for batch in listed(place, throttle):
                write(batch)
    question.execute(
        f"""CREATE TABLE respelled AS
        SELECT number, min(there.image_uri) AS image_uri, min(there.image_version) AS image_version
        FROM (SELECT * FROM missing WHERE {_NOT_ASCII.format("image_uri")}) AS missing
        JOIN read_parquet([{_text(there)}, {_text(elsewhere)}]) AS there
        ON nfc_normalize(missing.image_uri) = nfc_normalize(there.image_uri)
        WHERE {_NOT_ASCII.format("there.image_uri")} GROUP BY number HAVING count(*) = 1"""
    )
    return _count(question, "respelled")


def listed(place: str, throttle: Throttle) -> Iterator[pa.RecordBatch]:
    """All that lies below an escaped place: `image_uri` and `image_version`.

    Raises:
        UsageError: If it may not be listed.
        TryLater: If storage does not answer.
    """
    for batch in list_files(paths.unescape_name(place), lambda _uri, _reason: None, throttle=throttle):
        yield pa.RecordBatch.from_arrays([batch.uris, batch.versions], schema=LISTING_SCHEMA)


def _find_places(question: duckdb.DuckDBPyConnection, folder: Path, base: str, throttle: Throttle) -> None:
    """From `wanted` (number, parts in composed form) make `candidates` (number, place): what may be meant.

    Level by level: a part in ASCII is only put behind its folder, whether it is there or not; for others the folder
    is read. So a place stands for nothing yet, and two forms of one folder both go on.
    """
    question.execute("CREATE TABLE candidates (number BIGINT, place VARCHAR)")
    question.execute("CREATE TABLE places AS SELECT '' AS path, $1 AS place", [base.rstrip("/")])
    depth = question.sql("SELECT coalesce(max(len(parts)), 0) FROM wanted").fetchall()[0][0]
    names = folder / "names.parquet"
    for level in range(1, depth + 1):
        question.execute(
            f"""CREATE OR REPLACE TABLE needed AS SELECT DISTINCT {_path(level - 1)} AS parent, parts[{level}] AS name
            FROM wanted WHERE len(parts) >= {level}"""
        )
        _write_names(question, names, throttle)
        question.execute(
            f"""CREATE OR REPLACE TABLE places AS
            SELECT concat(parent, '/', name) AS path, concat(place, '/', name) AS place
            FROM needed JOIN places ON parent = path WHERE NOT {_NOT_ASCII.format("name")}
            UNION ALL
            SELECT concat(parent, '/', needed.name), concat(places.place, '/', names.name)
            FROM needed JOIN places ON parent = path JOIN read_parquet({_text(names)}) AS names
            ON names.place = places.place AND nfc_normalize(names.name) = needed.name"""
        )
        question.execute(
            f"""INSERT INTO candidates SELECT number, place FROM wanted JOIN places ON path = {_path(level)}
            WHERE len(parts) = {level}"""
        )


def _write_names(question: duckdb.DuckDBPyConnection, out: Path, throttle: Throttle) -> None:
    """Read each folder once in which a name that is not ASCII is needed."""
    folders = question.sql(
        f"""SELECT DISTINCT place FROM needed JOIN places ON parent = path WHERE {_NOT_ASCII.format("name")}
        ORDER BY place"""
    ).to_arrow_reader(_BATCH)
    with listing_writer(out, _NAMES) as write:
        pairs: list[tuple[str, str]] = []
        for batch in folders:
            for place in batch.column("place").to_pylist():
                for name in names_in(paths.unescape_name(place) or "/", throttle):
                    if not name.isascii():
                        pairs.append((place, paths.escape_name(name)))
                    if len(pairs) == _BATCH:
                        write(_as_names(pairs))
                        pairs.clear()
        write(_as_names(pairs))


def _as_names(pairs: list[tuple[str, str]]) -> pa.RecordBatch:
    columns = [pa.array([pair[place] for pair in pairs], pa.string()) for place in (0, 1)]
    return pa.RecordBatch.from_arrays(columns, schema=_NAMES)


def _path(level: int) -> str:
    """The first parts of a row, each with a slash before it."""
    return f"array_to_string(list_prepend('', parts[1:{level}]), '/')"


def _file_version(uri: str) -> str:
    try:
        status = os.stat(paths.unescape_name(uri))
    except (OSError, ValueError):
        return ""
    return local_version(status) if stat.S_ISREG(status.st_mode) else ""


def _count(question: duckdb.DuckDBPyConnection, relation: str) -> int:
    return int(question.sql(f"SELECT count(*) FROM {relation}").fetchall()[0][0])


def _text(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
