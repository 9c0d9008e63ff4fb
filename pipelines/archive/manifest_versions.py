"""What lies under the names of a manifest: the version of each image, under the spelling that its file really has."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.archive.listing import LISTING_SCHEMA, listing_writer
from pipelines.archive.manifest_rows import BATCH_ROWS
from pipelines.archive.manifest_uris import UriResolver
from pipelines.archive.spellings import listed, respell_listed, respell_local
from pipelines.storage import paths
from pipelines.storage.reading import local_version
from pipelines.storage.throttle import Throttle

if TYPE_CHECKING:
    import duckdb

ROW_NUMBER: Final = "nightread row"
VERSION_THERE: Final = "nightread version"
_STAT_THREADS: Final = 16
_STATS_AT_ONCE: Final = 256


def locate(
    question: duckdb.DuckDBPyConnection,
    staged: Path,
    resolver: UriResolver,
    trusts_versions: bool,
    throttle: Throttle,
) -> Path:
    """Find the version of each row's image, and its file's own spelling where the row has it in another form.

    Args:
        question: A connection for the work; tables are made in it.
        staged: Parquet file of the rows: their numbers, URIs, the manifest's versions and further columns.
        resolver: Has resolved all rows.
        trusts_versions: The manifest's versions of a bucket's objects are taken as they are, and nothing is listed.
        throttle: Announces each request to a bucket.

    Returns:
        Another file beside it: `staged` with the column `VERSION_THERE`, '' where nothing is there.

    Raises:
        UsageError: If the place that holds the images may not be listed.
        TryLater: If storage does not answer.
    """
    located, respelled = staged.with_name("located.parquet"), 0
    prefix = resolver.prefix
    if prefix is None or paths.is_local(prefix):
        _add_local_versions(staged, located)
        _note_missing(question, located)
        respelled = respell_local(question, staged.parent, resolver.base)
    elif trusts_versions:
        _copy(question, f"SELECT *, image_version AS {_quoted(VERSION_THERE)} FROM read_parquet($1)", [staged], located)
    else:
        there = staged.with_name("there.parquet")
        with listing_writer(there, LISTING_SCHEMA) as write:
            for batch in listed(prefix, throttle):
                write(batch)
        _copy(
            question,
            f"""SELECT staged.*, coalesce(there.image_version, '') AS {_quoted(VERSION_THERE)}
            FROM read_parquet($1) AS staged LEFT JOIN read_parquet($2) AS there USING (image_uri)""",
            [staged, there],
            located,
        )
        _note_missing(question, located)
        respelled = respell_listed(question, staged.parent, resolver.base, prefix, there, throttle)
    if not respelled:
        return located
    final = staged.with_name("respelled.parquet")
    _copy(
        question,
        f"""SELECT located.* REPLACE (coalesce(respelled.image_uri, located.image_uri) AS image_uri,
        coalesce(respelled.image_version, located.{_quoted(VERSION_THERE)}) AS {_quoted(VERSION_THERE)})
        FROM read_parquet($1) AS located LEFT JOIN respelled ON located.{_quoted(ROW_NUMBER)} = respelled.number""",
        [located],
        final,
    )
    return final


def _note_missing(question: duckdb.DuckDBPyConnection, located: Path) -> None:
    question.read_parquet(str(located)).create_view("located")
    question.execute(
        f"""CREATE VIEW missing AS SELECT {_quoted(ROW_NUMBER)} AS number, image_uri FROM located
        WHERE {_quoted(VERSION_THERE)} = ''"""
    )


def _copy(question: duckdb.DuckDBPyConnection, query: str, sources: list[Path], out: Path) -> None:
    """Write the rows of a query in the order of their numbers."""
    numbered = f"{query} ORDER BY {_quoted(ROW_NUMBER)}"
    rows = question.sql(numbered, params=[str(path) for path in sources]).to_arrow_reader(BATCH_ROWS)
    with listing_writer(out, rows.schema) as write:
        for batch in rows:
            write(batch)


def _add_local_versions(staged: Path, out: Path) -> None:
    file = pq.ParquetFile(staged)
    schema = file.schema_arrow.append(pa.field(VERSION_THERE, pa.string()))
    # One call to a network share takes longer than a thousand to a disk: several at a time.
    with listing_writer(out, schema) as write, ThreadPoolExecutor(_STAT_THREADS, thread_name_prefix="stat") as pool:
        for batch in file.iter_batches(BATCH_ROWS):
            uris = batch.column("image_uri").to_pylist()
            pieces = pool.map(_versions_of, (uris[i : i + _STATS_AT_ONCE] for i in range(0, len(uris), _STATS_AT_ONCE)))
            versions = pa.array([version for piece in pieces for version in piece], pa.string())
            write(pa.RecordBatch.from_arrays([*batch.columns, versions], schema=schema))


def _versions_of(uris: list[str]) -> list[str]:
    return [_version_of(uri) for uri in uris]


def _version_of(uri: str) -> str:
    try:
        return local_version(os.stat(paths.unescape_name(uri)))
    except (OSError, ValueError):
        return ""  # whoever reads the image finds out why


def _quoted(name: str) -> str:
    return f'"{name}"'
