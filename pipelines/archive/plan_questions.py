"""What the table says of a listing: each answer of DuckDB is row numbers, as bits over the listing.

Only what no listing has, the images that are gone, comes back as names, in batches.
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

from pipelines.archive.plan_writing import wanted_rows
from pipelines.errors import IMAGE_ERRORS, NightreadError, TryLater, UsageError
from pipelines.storage import faults
from pipelines.storage.scratch import Scratch

if TYPE_CHECKING:
    import duckdb

Bits = npt.NDArray[np.bool_]

MEMORY_LIMIT: Final = "2500MB"

_ANSWER_ROWS: Final = 1 << 20
# A part of the listing that is smaller than this share of it is written to a file of its own to be joined.
_SMALL_PART: Final = 0.25

# What tells whether an archive was moved: so many of its images, looked for under another root.
_SAMPLE_ROWS: Final = 500

_LISTING: Final = "read_parquet($listing, file_row_number = true)"
_NUMBERED: Final = f"(SELECT file_row_number AS number, image_uri, image_version FROM {_LISTING})"
_SOME: Final = "read_parquet($some)"
_SOME_SCHEMA: Final = pa.schema([("number", pa.int64()), ("image_uri", pa.string()), ("image_version", pa.string())])
_COMMITTED: Final = "read_parquet($committed, union_by_name = true, hive_partitioning = false)"
_OF_KEY: Final = "model_id = $model_id AND preprocessing_id = $preprocessing_id AND precision = $precision"
_ANSWERED: Final = "(status = 'scored' OR list_contains($codes, error_code))"
_OWN_CODES: Final = [code for code, kind in IMAGE_ERRORS.items() if kind.lies_in_image]

# What an old row knows of the bytes and the pixels; beside it every column `p_…`, which only classes have.
_PREVIOUS_COLUMNS: Final = (
    "content_sha256", "width", "height", "mean_intensity", "frames", "predicted_class", "score", "decision",
    "in_training_set", "decoder",
)  # fmt: skip


@dataclass(frozen=True)
class PlanKey:
    """What makes two scores of the same image the same.

    Attributes:
        model_id: Hash of the bundle.
        preprocessing_id: Hash of the way to the pixels.
        precision: `float32` or `int8`.
        model_name: The model's name in its registry: what its versions share. It tells no two scores apart.
    """

    model_id: str
    preprocessing_id: str
    precision: str
    model_name: str


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors of DuckDB and of the disk within the block into ones that a person can act on."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise explanation(error) from None
    except OSError as error:
        raise faults.translated(error, tempfile.gettempdir()) from None


def explanation(error: duckdb.Error) -> NightreadError:
    """What a person can act on instead of an error of DuckDB."""
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
def open_questions(listing_path: str, committed: Sequence[str], filesystem: Any) -> Iterator[Questions]:
    """Open a listing and a table for questions, for as long as the block runs.

    Args:
        listing_path: Local Parquet file with `image_uri` and `image_version`.
        committed: The Parquet files of the table.
        filesystem: An fsspec file system through which they are read, or None for local ones.
    """
    import duckdb

    rows = pq.read_metadata(listing_path).num_rows
    with (
        Scratch() as folder,
        duckdb.connect(config={"memory_limit": MEMORY_LIMIT, "temp_directory": str(folder)}) as connection,
    ):
        if filesystem is None:
            yield Questions(connection, listing_path, [_as_pattern(uri) for uri in committed], rows, folder)
            return
        from pipelines.storage.read_only import ReadOnlyFiles

        named = {f"nightread://{number}.parquet": uri for number, uri in enumerate(committed)}
        files = ReadOnlyFiles(named, filesystem)
        connection.register_filesystem(files)
        try:
            yield Questions(connection, listing_path, list(named), rows, folder)
        except duckdb.Error:
            if files.failure is not None:
                raise files.failure from None
            raise


class Questions:
    """A listing and a table; most answers are one bit for each row of the listing.

    Args:
        connection: Where the questions are asked.
        listing: Local Parquet file.
        committed: The table's files, as DuckDB is to open them.
        rows: Rows of the listing.
        folder: A temporary folder.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, listing: str, committed: list[str], rows: int, folder: Path
    ) -> None:
        self._connection = connection
        self._listing = listing
        self._folder = folder
        self._rows = rows
        self._parameters = {"listing": _as_pattern(listing), "committed": committed}

    def repeated(self) -> Bits:
        """Rows whose URI stands in an earlier row; a network share can list a file twice while it is renamed."""
        hashes = np.empty(self._rows, np.uint64)
        start = 0
        for batch in self._answers(f"SELECT hash(image_uri) FROM {_LISTING} ORDER BY file_row_number"):
            hashes[start : start + batch.num_rows] = _numpy(batch)
            start += batch.num_rows
        hashes.sort()
        if not (hashes[1:] == hashes[:-1]).any():
            return self._none()
        return self._marked(
            f"""SELECT file_row_number FROM {_LISTING}
            QUALIFY row_number() OVER (PARTITION BY image_uri ORDER BY file_row_number) > 1"""
        )

    def settled(self, among: Bits, key: PlanKey, retry_failed: bool) -> Bits:
        """Of some rows those whose image needs no score of this model any more."""
        codes = [] if retry_failed else _OWN_CODES
        return self.there(among, "image_uri, image_version", f"{_OF_KEY} AND {_ANSWERED}", codes=codes, **_of(key))

    def settled_by_name(self, among: Bits, model_name: str, retry_failed: bool) -> Bits:
        """Of some rows those whose image needs no score any more of some model of this name."""
        codes = [] if retry_failed else _OWN_CODES
        where = f"model_name = $model_name AND {_ANSWERED}"
        return self.there(among, "image_uri, image_version", where, codes=codes, model_name=model_name)

    def answered(self, among: Bits) -> Bits:
        """Of some rows those whose URI some model has scored, or failed at for a reason that lay in the image."""
        return self.there(among, "image_uri", _ANSWERED, codes=_OWN_CODES)

    def there(self, among: Bits, columns: str, where: str = "true", **parameters: object) -> Bits:
        """Of some rows those that agree with a row of the table.

        Args:
            among: The rows.
            columns: In what they agree: `image_uri`, or `image_uri, image_version`.
            where: Which rows of the table count, in SQL.
            **parameters: What stands in `where` as `$name`.
        """
        count = np.count_nonzero(among)
        if not self._parameters["committed"] or not count:
            return self._none()
        rows = _NUMBERED
        if count < _SMALL_PART * self._rows:
            # Most nights ask for a few rows among millions: then the join is with those alone.
            rows, parameters = _SOME, {**parameters, "some": _as_pattern(self._write_some(among))}
        query = (
            f"SELECT number FROM {rows} SEMI JOIN (SELECT {columns} FROM {_COMMITTED} WHERE {where}) USING ({columns})"
        )
        return self._marked(query, **parameters) & among

    def not_listed(self, inside: str, young: Path | None) -> Iterator[tuple[pa.StringArray, pa.BooleanArray]]:
        """The table's images below a root that the listing lacks, scored or failed for a reason that lay in them.

        Args:
            inside: What their URIs begin with.
            young: Local Parquet file with `image_uri`, or None.

        Yields:
            URIs, each once over all, and whether it stands in `young`.
        """
        if not self._parameters["committed"]:
            return
        is_young = "false" if young is None else "image_uri IN (SELECT image_uri FROM read_parquet($young))"
        query = f"""SELECT image_uri, {is_young} FROM (SELECT DISTINCT image_uri FROM {_COMMITTED}
            ANTI JOIN (SELECT image_uri FROM {_LISTING}) USING (image_uri)
            WHERE starts_with(image_uri, $inside) AND {_ANSWERED})"""
        for batch in self._answers(query, inside=inside, codes=_OWN_CODES, young=_as_pattern(str(young))):
            yield batch.column(0), batch.column(1)

    def known_elsewhere(self, among: Bits, inside: str) -> tuple[str, int, int]:
        """Look whether the images of some rows are known under another root: same path below it, same version.

        Args:
            among: The rows; some hundreds of them are looked at, evenly spread.
            inside: The root that their URIs begin with, with a slash.

        Returns:
            The root under which most of them are known, escaped and without a slash; how many of those that were
            looked at; how many were looked at.
        """
        places = np.flatnonzero(among)
        sample = self._none()
        sample[places[:: max(1, len(places) // _SAMPLE_ROWS)]] = True
        looked_at = np.count_nonzero(sample)
        if not self._parameters["committed"] or not looked_at:
            return "", 0, int(looked_at)
        found = self._query(
            f"""SELECT left(known.image_uri, length(known.image_uri) - length(below) - 1) AS root,
                count(DISTINCT number) AS images
            FROM (SELECT number, image_version, substr(image_uri, length($inside) + 1) AS below
                FROM {_SOME} WHERE starts_with(image_uri, $inside) AND image_version <> '')
            JOIN (SELECT image_uri, image_version FROM {_COMMITTED} WHERE {_ANSWERED}) AS known USING (image_version)
            WHERE ends_with(known.image_uri, '/' || below) GROUP BY root ORDER BY images DESC, root LIMIT 1""",
            inside=inside,
            codes=_OWN_CODES,
            some=_as_pattern(self._write_some(sample)),
        ).fetchall()
        return (found[0][0], int(found[0][1]), int(looked_at)) if found else ("", 0, int(looked_at))

    def write_previous(self, among: Bits, key: PlanKey) -> Path | None:
        """Find what a model said of some rows' images before, in whatever version of the file.

        Args:
            among: The rows.
            key: The model.

        Returns:
            Local Parquet file with `number` (int64, rows of the listing, ascending) and columns of the newest scored
            row: `content_sha256, width, height, mean_intensity, frames, predicted_class, score, decision,
            in_training_set, decoder`, and `p_positive` and every class's `p_…`, as far as the table has them. It lasts
            as long as the questions. None where no image has such a row.
        """
        if not self._parameters["committed"] or not among.any():
            return None
        there = self._query(f"SELECT * FROM {_COMMITTED} LIMIT 0").columns
        named = ", ".join(f'"{name}"' for name in there if name in _PREVIOUS_COLUMNS or name.startswith("p_"))
        answers = self._answers(
            f"""SELECT number, {named} FROM {_SOME} JOIN (
                SELECT image_uri, scored_at, run_id, {named} FROM {_COMMITTED} WHERE {_OF_KEY} AND status = 'scored'
            ) USING (image_uri)
            QUALIFY row_number() OVER (PARTITION BY number ORDER BY scored_at DESC, run_id DESC) = 1
            ORDER BY number""",
            some=_as_pattern(self._write_some(among)),
            **_of(key),
        )
        path, out = self._folder / "previous.parquet", None
        for batch in answers:
            out = out or pq.ParquetWriter(path, batch.schema, compression="lz4")
            out.write_batch(batch)
        if out is None:
            return None
        out.close()
        return path

    def _write_some(self, among: Bits) -> str:
        """Write some rows of the listing with their numbers to a file of their own."""
        path = str(self._folder / "some.parquet")
        source = pq.ParquetFile(self._listing)
        with pq.ParquetWriter(path, _SOME_SCHEMA, use_dictionary=False, compression="lz4") as out:
            for numbers, rows in wanted_rows(source, among, ["image_uri", "image_version"]):
                out.write_table(rows.add_column(0, _SOME_SCHEMA.field(0), pa.array(numbers)))
        return path

    def _none(self) -> Bits:
        return np.zeros(self._rows, np.bool_)

    def _marked(self, query: str, **parameters: object) -> Bits:
        bits = self._none()
        for batch in self._answers(query, **parameters):
            bits[_numpy(batch)] = True
        return bits

    def _answers(self, query: str, **parameters: object) -> Iterator[pa.RecordBatch]:
        yield from self._query(query, **parameters).to_arrow_reader(_ANSWER_ROWS)

    def _query(self, query: str, **parameters: object) -> duckdb.DuckDBPyRelation:
        named = {name: value for name, value in {**self._parameters, **parameters}.items() if f"${name}" in query}
        return self._connection.sql(query, params=named)


def _of(key: PlanKey) -> dict[str, str]:
    return {"model_id": key.model_id, "preprocessing_id": key.preprocessing_id, "precision": key.precision}


def _numpy(batch: pa.RecordBatch) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = batch.column(0).to_numpy(zero_copy_only=False)
    return array


def _as_pattern(uri: str) -> str:
    """A file name for DuckDB, which takes `*?[` for patterns."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in uri)
