"""What is to be scored: the listing against the table's rows, and the plan file that a run works through.

DuckDB answers only with row numbers, as bits over the listing; the rows themselves are streamed from file to file.
So memory does not grow with the length of the URIs, and the plan keeps the listing's order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import IMAGE_ERRORS, NightreadError, TryLater, UsageError
from pipelines.storage import faults

if TYPE_CHECKING:
    import duckdb

Bits = npt.NDArray[np.bool_]

MEMORY_LIMIT: Final = "2500MB"

_READ_ROWS: Final = 1 << 16
_ANSWER_ROWS: Final = 1 << 20
_WRITE_ROWS: Final = 1 << 17


@dataclass(frozen=True)
class PlanKey:
    """What makes two scores of the same image the same.

    Attributes:
        model_id: Hash of the bundle.
        preprocessing_id: Hash of the way to the pixels.
        precision: `float32` or `int8`.
    """

    model_id: str
    preprocessing_id: str
    precision: str


@dataclass(frozen=True)
class Plan:
    """What a listing holds against the table: `found = new + changed + unchanged`.

    Attributes:
        found: Images listed; one that was listed twice counts once.
        new: Images that the table does not settle, and whose URI it has in no other version only.
        changed: Images whose URI the table has, but never in this version.
        unchanged: Images that the table settles: scored by this model, or failed for a reason that lies in them.
        planned: Rows in the plan; with `rescore` unchanged ones too, with `limit` fewer.
        shards: How many shards they make.
    """

    found: int
    new: int
    changed: int
    unchanged: int
    planned: int
    shards: int


def make_plan(
    listing_path: str | Path,
    committed: Sequence[str],
    filesystem: Any,
    key: PlanKey,
    *,
    shard_size: int,
    rows_per_group: int,
    limit: int | None,
    rescore: bool,
    retry_failed: bool,
    out_path: str | Path,
) -> Plan:
    """Find what is to be scored and write it down.

    Args:
        listing_path: Local Parquet file with `image_uri`, `image_version` and carried columns.
        committed: The Parquet files of the table.
        filesystem: An fsspec file system through which they are read, or None for local ones.
        key: The model that is to score.
        shard_size: Images a shard.
        rows_per_group: Rows of a row group of the plan; a multiple of `shard_size`.
        limit: At most so many images, or None.
        rescore: Plan what the table settles, too.
        retry_failed: A failure that lies in the image does not settle it.
        out_path: Local Parquet file: `shard` (int32, from 0, in order) and the listing's columns, in its order.
            Not written where nothing is planned.

    Returns:
        The counts.

    Raises:
        ValueError: If `rows_per_group` is no multiple of `shard_size`.
        UsageError: If the join needs more memory than it may take.
        TryLater: If a file of the table cannot be read, or the disk of the temporary folder is full.
    """
    if rows_per_group % shard_size:
        raise ValueError(f"{rows_per_group} rows a group are no multiple of {shard_size} a shard")
    with _explained(), _opened(str(listing_path), committed, filesystem) as question:
        repeated = question.repeated()
        settled = question.settled(key, retry_failed) & ~repeated
        changed = question.changed(~(settled | repeated))
    wanted = ~repeated if rescore else ~(settled | repeated)
    if limit is not None:
        wanted &= np.cumsum(wanted) <= limit
    planned = int(wanted.sum())
    found = int(repeated.size - repeated.sum())
    unchanged, different = int(settled.sum()), int(changed.sum())
    if planned:
        with _explained():
            _write(str(listing_path), wanted, str(out_path), shard_size, rows_per_group)
    shards = -(-planned // shard_size)
    return Plan(found, found - unchanged - different, different, unchanged, planned, shards)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors of DuckDB and of the disk within the block into ones that a person can act on."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise _explanation(error) from None
    except OSError as error:
        raise faults.translated(error, tempfile.gettempdir()) from None


def _explanation(error: duckdb.Error) -> NightreadError:
    import duckdb

    text = str(error)
    if "No space left" in text or "max_temp_directory_size" in text:
        return TryLater(
            f"There is no space left in the temporary folder {tempfile.gettempdir()!r}, which planning needs.",
            "Free some space, or name a larger folder in TMPDIR, and start the same command again.",
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        return UsageError(
            f"Planning needs more than the {MEMORY_LIMIT} of memory that it may take.",
            "Score the archive in parts, by --include or its folders one by one.",
        )
    return TryLater(
        f"The table's files could not be read for planning: {text.strip().partition(chr(10))[0]}",
        "`nightread doctor --results` looks at the storage; if a file was moved or damaged, restore it. Then start the "
        "same command again.",
    )


@contextmanager
def _opened(listing_path: str, committed: Sequence[str], filesystem: Any) -> Iterator[_Question]:
    import duckdb

    rows = pq.read_metadata(listing_path).num_rows
    with (
        tempfile.TemporaryDirectory(prefix="nightread-join-") as folder,
        duckdb.connect(config={"memory_limit": MEMORY_LIMIT, "temp_directory": folder}) as connection,
    ):
        if filesystem is None:
            yield _Question(connection, listing_path, [_as_pattern(uri) for uri in committed], rows, folder)
            return
        from pipelines.storage.read_only import ReadOnlyFiles

        named = {f"nightread://{number}.parquet": uri for number, uri in enumerate(committed)}
        files = ReadOnlyFiles(named, filesystem)
        connection.register_filesystem(files)
        try:
            yield _Question(connection, listing_path, list(named), rows, folder)
        except duckdb.Error:
            if files.failure is not None:
                raise files.failure from None
            raise


class _Question:
    """A listing and a table; each answer is one bit for each row of the listing."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, listing: str, committed: list[str], rows: int, folder: str
    ) -> None:
        self._connection = connection
        self._listing = listing
        self._folder = folder
        self._committed = committed
        self._rows = rows
        self._parameters = {"listing": _as_pattern(listing), "committed": committed}

    def repeated(self) -> Bits:
        """Rows whose URI stands in an earlier row; a network share can list a file twice while it is renamed."""
        hashes = np.empty(self._rows, np.uint64)
        start = 0
        for (part,) in self._answers(f"SELECT hash(image_uri) FROM {_LISTING} ORDER BY file_row_number"):
            hashes[start : start + len(part)] = part
            start += len(part)
        ordered = np.sort(hashes)
        if not (ordered[1:] == ordered[:-1]).any():
            return np.zeros(self._rows, np.bool_)
        return self._marked(
            f"""SELECT file_row_number FROM {_LISTING}
            QUALIFY row_number() OVER (PARTITION BY image_uri ORDER BY file_row_number) > 1"""
        )

    def settled(self, key: PlanKey, retry_failed: bool) -> Bits:
        """Rows whose image needs no score of this model any more."""
        if not self._committed:
            return np.zeros(self._rows, np.bool_)
        codes = [] if retry_failed else [code for code, kind in IMAGE_ERRORS.items() if kind.lies_in_image]
        return self._marked(
            f"""SELECT file_row_number FROM {_LISTING} SEMI JOIN (
                SELECT image_uri, image_version FROM {_COMMITTED}
                WHERE model_id = $model_id AND preprocessing_id = $preprocessing_id AND precision = $precision
                  AND (status = 'scored' OR list_contains($codes, error_code))
            ) USING (image_uri, image_version)""",
            model_id=key.model_id,
            preprocessing_id=key.preprocessing_id,
            precision=key.precision,
            codes=codes,
        )

    def changed(self, among: Bits) -> Bits:
        """Of some rows those whose URI the table has, but never in this version."""
        if not self._committed or not among.any():
            return np.zeros(self._rows, np.bool_)
        if among.all():
            rows = f"(SELECT file_row_number AS number, image_uri, image_version FROM {_LISTING})"
            return self._marked(_CHANGED.format(rows=rows))
        # Most nights ask for a few rows among millions: then the joins are with those alone.
        return self._marked(_CHANGED.format(rows=_SOME), some=_as_pattern(self._some_rows(among)))

    def _some_rows(self, among: Bits) -> str:
        """Write some rows of the listing with their numbers to a file of their own."""
        path = f"{self._folder}/some.parquet"
        numbers = np.flatnonzero(among)
        source = pq.ParquetFile(self._listing)
        start = 0
        with pq.ParquetWriter(path, _SOME_SCHEMA, use_dictionary=False, compression="lz4") as out:
            for rows in _wanted_rows(source, among, ["image_uri", "image_version"]):
                some = pa.array(numbers[start : start + rows.num_rows])
                out.write_table(rows.add_column(0, _SOME_SCHEMA.field(0), some))
                start += rows.num_rows
        return path

    def _marked(self, query: str, **parameters: object) -> Bits:
        bits = np.zeros(self._rows, np.bool_)
        for (numbers,) in self._answers(query, **parameters):
            bits[numbers] = True
        return bits

    def _answers(self, query: str, **parameters: object) -> Iterator[list[npt.NDArray[Any]]]:
        named = {name: value for name, value in {**self._parameters, **parameters}.items() if f"${name}" in query}
        for batch in self._connection.sql(query, params=named).to_arrow_reader(_ANSWER_ROWS):
            yield [column.to_numpy(zero_copy_only=False) for column in batch.columns]


_LISTING: Final = "read_parquet($listing, file_row_number = true)"
_SOME: Final = "read_parquet($some)"
_SOME_SCHEMA: Final = pa.schema([("number", pa.int64()), ("image_uri", pa.string()), ("image_version", pa.string())])
_COMMITTED: Final = "read_parquet($committed, union_by_name = true, hive_partitioning = false)"
_CHANGED: Final = f"""SELECT number FROM {{rows}}
    SEMI JOIN (SELECT image_uri FROM {_COMMITTED}) USING (image_uri)
    ANTI JOIN (SELECT image_uri, image_version FROM {_COMMITTED}) USING (image_uri, image_version)"""


def _as_pattern(uri: str) -> str:
    """A file name for DuckDB, which takes `*?[` for patterns."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in uri)


def _write(listing_path: str, wanted: Bits, out_path: str, shard_size: int, rows_per_group: int) -> None:
    """Stream the wanted rows of the listing into the plan, in row groups of exactly `rows_per_group` rows."""
    source = pq.ParquetFile(listing_path)
    schema = pa.schema([pa.field("shard", pa.int32()), *source.schema_arrow])
    at_once = max(1, _WRITE_ROWS // rows_per_group) * rows_per_group
    written = 0
    with pq.ParquetWriter(
        out_path, schema, compression="zstd", use_dictionary=False, write_statistics=["shard"]
    ) as out:
        for rows in _in_pieces(_wanted_rows(source, wanted), at_once):
            shards = (np.arange(written, written + rows.num_rows) // shard_size).astype(np.int32)
            out.write_table(rows.add_column(0, schema.field(0), pa.array(shards)), row_group_size=rows_per_group)
            written += rows.num_rows


def _wanted_rows(source: pq.ParquetFile, wanted: Bits, columns: list[str] | None = None) -> Iterator[pa.Table]:
    start = 0
    for batch in source.iter_batches(_READ_ROWS, columns=columns):
        mask = wanted[start : start + batch.num_rows]
        start += batch.num_rows
        if mask.any():
            yield pa.Table.from_batches([batch if mask.all() else batch.filter(pa.array(mask))])


def _in_pieces(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """Regroup tables into ones of exactly `size` rows; the last may be shorter."""
    pending: list[pa.Table] = []
    count = 0
    for table in tables:
        pending.append(table)
        count += table.num_rows
        while count >= size:
            joined = pa.concat_tables(pending)
            yield joined.slice(0, size)
            pending, count = [joined.slice(size)], count - size
    if count:
        yield pa.concat_tables(pending)
