"""A manifest's rows as they stand in the file: CSV in its dialects, or Parquet, in batches with row numbers."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import UsageError

BATCH_ROWS: Final = 8192
_BOM: Final = "\ufeff"
_DELIMITERS: Final = (",", ";", "\t")


@dataclass(frozen=True)
class ManifestRows:
    """A manifest, opened.

    Attributes:
        schema: Its columns under our names; `uri` is among them, all of plain types.
        unit: What its numbers count: `line` or `row`.
        batches: Starts reading: (number of each row, int64 from 1; the rows).
    """

    schema: pa.Schema
    unit: str
    batches: Callable[[], Iterator[tuple[pa.Int64Array, pa.RecordBatch]]]


def open_manifest(path: str, shown: str, columns: Mapping[str, str]) -> ManifestRows:
    """Open a manifest and settle its columns.

    Args:
        path: Local file; Parquet where its name in `shown` ends so, else CSV.
        shown: Its name for messages.
        columns: Our names to theirs, for columns that are called otherwise.

    Raises:
        UsageError: If it is unreadable, a column is missing, or a column's type is not kept.
    """
    if shown.lower().endswith(".parquet"):
        return _open_parquet(path, shown, columns)
    return _open_csv(path, shown, columns)


def _open_csv(path: str, shown: str, columns: Mapping[str, str]) -> ManifestRows:
    with open(path, "rb") as handle:
        first = next(_lines(handle, shown), "")
    if not first.strip():
        raise UsageError(f"The manifest {shown!r} has no header line.", "Its first line names the columns.")
    delimiter = _delimiter_of(first, columns.get("uri", "uri"))
    header = next(csv.reader([first], delimiter=delimiter))
    places = _places(header, columns, shown)
    schema = pa.schema([pa.field(name, pa.string()) for name in places])

    def batches() -> Iterator[tuple[pa.Int64Array, pa.RecordBatch]]:
        numbers: list[int] = []
        rows: list[list[str]] = []
        with open(path, "rb") as handle:
            for number, row in _csv_rows(handle, shown, delimiter, len(header)):
                numbers.append(number)
                rows.append(row)
                if len(rows) == BATCH_ROWS:
                    yield _as_batch(numbers, rows, places, schema)
                    numbers, rows = [], []
        if rows:
            yield _as_batch(numbers, rows, places, schema)

    return ManifestRows(schema, "line", batches)


def _as_batch(
    numbers: list[int], rows: list[list[str]], places: Mapping[str, int], schema: pa.Schema
) -> tuple[pa.Int64Array, pa.RecordBatch]:
    cells = [pa.array([row[place] for row in rows], pa.string()) for place in places.values()]
    return pa.array(numbers, pa.int64()), pa.RecordBatch.from_arrays(cells, schema=schema)


def _csv_rows(handle: BinaryIO, shown: str, delimiter: str, width: int) -> Iterator[tuple[int, list[str]]]:
    """Rows below the header, each with the line that it begins in; blank lines are passed over."""
    reader = csv.reader(_lines(handle, shown), delimiter=delimiter, strict=True)
    began = 1
    try:
        next(reader)
        for row in reader:
            line, began = began + 1, reader.line_num
            if not any(row):
                continue
            if len(row) != width:
                raise UsageError(
                    f"Line {line} of the manifest {shown!r} has {len(row)} columns; its header has {width}.",
                    "Correct the line; a cell that holds the separator must be quoted.",
                )
            yield line, row
    except csv.Error as error:
        raise UsageError(
            f"The manifest {shown!r} is no CSV file at line {reader.line_num}: {error}.", "Correct its quotes."
        ) from None


def _lines(handle: BinaryIO, shown: str) -> Iterator[str]:
    """Text lines with their ends; the byte order mark is dropped."""
    for number, line in enumerate(handle, 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise UsageError(
                f"The manifest {shown!r} is not UTF-8: byte 0x{line[error.start]:02x} in line {number}.",
                "Save it as CSV UTF-8.",
            ) from None
        yield text.removeprefix(_BOM) if number == 1 else text


def _delimiter_of(header: str, uri: str) -> str:
    """The separator under which the header has a column for the URI; else the most frequent one."""
    for delimiter in _DELIMITERS:
        if uri in next(csv.reader([header], delimiter=delimiter)):
            return delimiter
    return max(_DELIMITERS, key=header.count)


def _open_parquet(path: str, shown: str, columns: Mapping[str, str]) -> ManifestRows:
    try:
        source = pq.ParquetFile(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UsageError(f"The manifest {shown!r} is no Parquet file.", "Check how it was written.") from None
    theirs = source.schema_arrow
    places = _places(theirs.names, columns, shown)
    schema = pa.schema([pa.field(name, _plain(theirs.field(place), name)) for name, place in places.items()])
    if schema.field("uri").type != pa.string():
        raise UsageError(f"The manifest's uri column is of the type {schema.field('uri').type}.", "It must be text.")

    def batches() -> Iterator[tuple[pa.Int64Array, pa.RecordBatch]]:
        start = 1
        for batch in _read(source, shown):
            chosen = pa.RecordBatch.from_arrays([batch.column(place) for place in places.values()], names=schema.names)
            yield pa.array(range(start, start + batch.num_rows), pa.int64()), chosen.cast(schema)
            start += batch.num_rows

    return ManifestRows(schema, "row", batches)


def _read(source: pq.ParquetFile, shown: str) -> Iterator[pa.RecordBatch]:
    try:
        yield from source.iter_batches(BATCH_ROWS)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"The manifest {shown!r} is damaged: {str(error).strip()}", "Write it again.") from None


def _places(theirs: list[str], columns: Mapping[str, str], shown: str) -> dict[str, int]:
    """Our name of each column to its place; columns without a name, such as an index, are left out."""
    names = ", ".join(name for name in theirs if name) or "none"
    for mine, other in columns.items():
        if other not in theirs:
            raise UsageError(
                f"The manifest {shown!r} has no column {other!r}, which --columns names for {mine!r}.",
                f"Its columns are: {names}.",
            )
    renamed = {other: mine for mine, other in columns.items()}
    places: dict[str, int] = {}
    for place, name in enumerate(theirs):
        if not name.strip():
            continue
        mine = renamed.get(name, name)
        if mine.lower() in (known.lower() for known in places):
            raise UsageError(
                f"The manifest {shown!r} has two columns {mine!r}; upper and lower case are one.",
                "Rename one of them, in the file or by --columns.",
            )
        places[mine] = place
    if "uri" not in places:
        raise UsageError(
            f"The manifest {shown!r} has no column 'uri'; its columns are: {names}.",
            "Say which one holds the images: --columns uri=NAME.",
        )
    return places


def _plain(field: pa.Field, name: str) -> pa.DataType:
    """The type under which a column is carried; integers keep their values, texts their letters."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", tz="UTC") if kind.tz else pa.timestamp("us")
    if kind not in _CARRIED_AS:
        raise UsageError(
            f"The manifest's column {name!r} is of the type {kind}, which the table does not keep.",
            "Write it as text, a number, a date or a timestamp, or leave it out of the manifest.",
        )
    return _CARRIED_AS[kind]


_CARRIED_AS: Final[dict[pa.DataType, pa.DataType]] = {
    pa.null(): pa.string(),
    pa.bool_(): pa.bool_(),
    pa.int8(): pa.int8(),
    pa.int16(): pa.int16(),
    pa.int32(): pa.int32(),
    pa.int64(): pa.int64(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.float16(): pa.float32(),
    pa.float32(): pa.float32(),
    pa.float64(): pa.float64(),
    pa.date32(): pa.date32(),
    pa.date64(): pa.date32(),
}


def cell_text(value: object) -> str | None:
    """A cell as text; empty text and NaN are nothing. Whole numbers stored as floats lose their `.0`."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return text.strip() or None
