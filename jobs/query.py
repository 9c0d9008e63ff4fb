"""`nightread query`: a question in SQL to the results; nothing can be written or left by it."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import Console, JsonOption, plain
from pipelines.errors import UsageError
from pipelines.storage.scratch import Scratch

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN_ROWS = 1000
SUFFIXES = (".csv", ".parquet")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("query")(query)


def query(
    results: Annotated[str, typer.Argument(help="The results folder or URI.")],
    sql: Annotated[
        str,
        typer.Argument(
            help="One SELECT over rows, predictions, failures, latest, unresolved, referrals, patients or runs."
        ),
    ],
    output: Annotated[str | None, typer.Option(help="Write the whole answer to FILE.csv or FILE.parquet.")] = None,
    json: JsonOption = False,
) -> None:
    """Ask the results a question in SQL."""
    console = Console(json)
    if output is not None:
        rows = _write_file(results, sql, output)
        console.result(
            {"output": output, "rows": rows}, f"Wrote {rows:,} {'row' if rows == 1 else 'rows'} to {output}."
        )
    elif json:
        from pipelines.predictions.query import run_query

        table = run_query(results, sql)
        names = distinct_names(table.column_names)
        console.result([dict(zip(names, row, strict=True)) for row in _rows(table)])
    else:
        _show(console, results, sql)


def distinct_names(names: list[str]) -> list[str]:
    """Number the repeats of a column's name, so that a row can be an object: a, a_2."""
    used: set[str] = set()
    distinct = []
    for name in names:
        candidate, number = name, 1
        while candidate in used:
            number += 1
            candidate = f"{name}_{number}"
        used.add(candidate)
        distinct.append(candidate)
    return distinct


def guarded(rows: pa.Table) -> pa.Table:
    """Make rows safe to open in a spreadsheet.

    Args:
        rows: Of plain types.

    Returns:
        Times as ISO 8601, lists and structures as JSON text, bytes in hexadecimal; a `'` before each text, and each
        column's name, that a spreadsheet would run as a formula. Numbers stay as they are.
    """
    import pyarrow as pa

    columns = [_guarded_column(_as_text(rows.column(i))) for i in range(rows.num_columns)]
    names = [f"'{name}" if name.startswith(FORMULA_STARTS) else name for name in rows.column_names]
    return pa.Table.from_arrays(columns, names=names)


def _show(console: Console, results: str, sql: str) -> None:
    from pipelines.predictions.query import open_query

    rows: list[tuple[Any, ...]] = []
    with open_query(results, sql) as reader:
        names = reader.schema.names
        for batch in reader:
            rows += _rows(batch.slice(0, SHOWN_ROWS + 1 - len(rows)))
            if len(rows) > SHOWN_ROWS:
                break
    if names == ["explain_key", "explain_value"]:
        console.say("\n".join(str(row[1]) for row in rows))
        return
    console.table(names, rows[:SHOWN_ROWS])
    if len(rows) > SHOWN_ROWS:
        console.warn(f"only the first {SHOWN_ROWS:,} rows are shown; --output FILE.csv or --json gives all.")


def _rows(table: pa.Table | pa.RecordBatch) -> list[tuple[Any, ...]]:
    if not table.num_columns:
        return []
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _write_file(results: str, sql: str, output: str) -> int:
    """Write the whole answer, in batches, so that it need not fit into memory; the file appears whole or not at all."""
    from pipelines.predictions.query import open_query
    from pipelines.storage import files, paths

    suffix = Path(output).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"--output {output} is of no kind that is written.", "Name a .csv or a .parquet file.")
    place = paths.canonical(output)
    if paths.is_inside(place, paths.canonical(results)):
        raise UsageError(f"--output {output} lies in the results, which are only read.", "Choose another folder.")
    with Scratch() as folder:
        path = folder / f"answer{suffix}"
        with open_query(results, sql) as reader:
            count = _write_csv(reader, path) if suffix == ".csv" else _write_parquet(reader, path)
        files.put(str(path), place)
    return count


def _write_csv(reader: pa.RecordBatchReader, path: Path) -> int:
    import pyarrow as pa
    import pyarrow.csv

    count = 0
    schema = guarded(reader.schema.empty_table()).schema
    with pa.csv.CSVWriter(path, schema) as writer:
        for rows in _tables(reader):
            writer.write_table(guarded(rows))
            count += rows.num_rows
    return count


def _write_parquet(reader: pa.RecordBatchReader, path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = distinct_names(reader.schema.names)
    count = 0

    def storable(rows: pa.Table) -> pa.Table:
        columns = [_interval_as_text(rows.column(i)) for i in range(rows.num_columns)]
        return pa.Table.from_arrays(columns, names=names)

    with pq.ParquetWriter(path, storable(reader.schema.empty_table()).schema, compression="zstd") as writer:
        for rows in _tables(reader):
            writer.write_table(storable(rows))
            count += rows.num_rows
    return count


def _tables(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    import pyarrow as pa

    for batch in reader:
        yield pa.Table.from_batches([batch])


def _interval_as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    return _json_text(column) if column.type == pa.month_day_nano_interval() else column


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """What CSV cannot hold, as text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_timestamp(kind):
        return pc.strftime(column, "%Y-%m-%dT%H:%M:%SZ" if kind.tz else "%Y-%m-%dT%H:%M:%S")
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or kind == pa.month_day_nano_interval():
        return _json_text(column)
    return column


def _json_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    return pa.chunked_array([[_text_of(value) for value in column.to_pylist()]], pa.string())


def _text_of(value: Any) -> str | None:
    told = plain(value)
    return told if told is None or isinstance(told, str) else json_module.dumps(told, ensure_ascii=False)


def _guarded_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_string(column.type):
        return column
    return pc.replace_substring_regex(column, r"\A([=+\-@\t\r])", r"'\1")
