"""Questions to the results: DuckDB over the table's own files, locked so that nothing can be written or left."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from pipelines.errors import NightreadError, TryLater, UsageError
from pipelines.predictions.runs import RunRecord, list_runs
from pipelines.predictions.schema import FILE_COLUMN, PARTITION_COLUMN, column_order
from pipelines.predictions.statements import check_read_only, first_line, literal, quoted
from pipelines.predictions.table import live_files, open_table, table_schema
from pipelines.storage import paths

if TYPE_CHECKING:
    import duckdb

    from pipelines.storage.read_only import ReadOnlyFiles

MEMORY_LIMIT: Final = "2GB"
BATCH_ROWS: Final = 1 << 16
# What tells one row of the table's files from another, while a file is made from them; no table has such a column.
ROW_COLUMN: Final = "nightread row"

VIEWS: Final[dict[str, str]] = {
    "predictions": "SELECT * FROM rows WHERE status = 'scored'",
    "failures": "SELECT * FROM rows WHERE status = 'failed'",
    "latest": """SELECT * FROM rows WHERE status = 'scored'
        QUALIFY row_number() OVER (
            PARTITION BY image_uri, frame, model_name ORDER BY scored_at DESC, run_id DESC) = 1""",
    "unresolved": """SELECT * FROM (SELECT * FROM rows
        QUALIFY row_number() OVER (PARTITION BY image_uri ORDER BY scored_at DESC, run_id DESC) = 1)
        WHERE status = 'failed'""",
    "referrals": "SELECT * FROM latest WHERE decision IN ('refer', 'positive') ORDER BY p_positive DESC",
}

# Only where the table has the column; an empty cell of a CSV manifest is an empty text, and no patient. The limits are
# those of patients in the run of the patient's newest row. Where it recorded none, or several versions answered the
# patient's images, whose probabilities are no like for like, the images decide.
PATIENT_COLUMN: Final = "patient_id"
_PATIENTS: Final = f"""SELECT {PATIENT_COLUMN}, model_name, images, p_positive, CASE
            WHEN high IS NULL OR models > 1 THEN worst WHEN p_positive >= high THEN 'positive'
            WHEN p_positive >= low THEN 'refer' ELSE 'negative' END AS decision
        FROM (SELECT {PATIENT_COLUMN}, model_name, count(DISTINCT image_uri) AS images, max(p_positive) AS p_positive,
                arg_max(run_id, (scored_at, run_id)) AS run_id, count(DISTINCT (model_id, precision)) AS models,
                CASE max(CASE decision WHEN 'positive' THEN 3 WHEN 'refer' THEN 2 WHEN 'negative' THEN 1 END)
                    WHEN 3 THEN 'positive' WHEN 2 THEN 'refer' WHEN 1 THEN 'negative' END AS worst
            FROM latest WHERE trim(CAST({PATIENT_COLUMN} AS VARCHAR)) <> '' GROUP BY ALL)
        LEFT JOIN internal.patient_limits USING (run_id) ORDER BY p_positive DESC"""

_RUNS_SCHEMA: Final = pa.schema(
    [
        ("run_id", pa.string()),
        ("status", pa.string()),
        ("started_at", pa.timestamp("us", tz="UTC")),
        ("seconds", pa.float64()),
        ("found", pa.int64()),
        ("planned", pa.int64()),
        ("scored", pa.int64()),
        ("failed", pa.int64()),
        ("images_per_second", pa.float64()),
        ("table_version", pa.int64()),
        ("model_name", pa.string()),
        ("model_id", pa.string()),
        ("precision", pa.string()),
        ("archive", pa.string()),
        ("os_user", pa.string()),
        ("host", pa.string()),
    ]
)
_LIMITS_SCHEMA: Final = pa.schema([("run_id", pa.string()), ("low", pa.float64()), ("high", pa.float64())])
_BAND: Final = ("refer_low", "refer_high")
_NAMES: Final = ", ".join(["rows", *VIEWS, f"patients (where rows have {PATIENT_COLUMN})", "runs"])
# What needs the records of runs; `query` is a function that takes a statement as text.
_NAMES_RUNS: Final = re.compile(r"\bruns\b|\bpatients\b|\bquery", re.I)


@contextlib.contextmanager
def connect(results: str, with_runs: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the results for questions, for as long as the block runs.

    The views are `rows` (all), `predictions` (scored), `failures`, `latest` (the newest scored row of each image,
    frame and model name), `unresolved` (images whose newest row is failed), `referrals` (newest, refer or positive, by
    `p_positive`), `patients` (each patient's images together, where the table has `patient_id`) and `runs`. Nothing
    but the table's own files can be read, nothing written, no setting changed. The files are those of the table's
    newest version now; a commit made later is not seen.

    Args:
        results: The results folder.
        with_runs: Read the records of runs; without them `runs` is empty, `patients` decides by the images alone, and
            a damaged one is in nobody's way.

    Returns:
        An open connection; DuckDB's errors within the block become ones that a person can act on.

    Raises:
        UsageError: If there are no results, a newer release wrote them, or DuckDB refuses a statement.
        TryLater: If storage does not answer.
    """
    table = open_table(results)
    schema, named = table_schema(table), named_files(live_files(table, results))
    with open_files(results, named, MEMORY_LIMIT) as connection:
        _create_views(connection, schema, list(named), list_runs(results) if with_runs else [])
        _lock(connection, list(named))
        yield connection


@contextlib.contextmanager
def open_files(results: str, named: Mapping[str, str], memory_limit: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open DuckDB with the files of a table, for as long as the block runs; nothing is locked, no view is made.

    Args:
        results: The results folder, for messages.
        named: The table's files as `named_files` calls them.
        memory_limit: What DuckDB may keep in memory, in its own words; the rest is spilled.

    Returns:
        An open connection; DuckDB's errors within the block become ones that a person can act on.
    """
    import duckdb

    from pipelines.storage.read_only import ReadOnlyFiles

    # DuckDB makes this folder when it spills, and removes it when the connection is closed.
    spill = os.path.join(tempfile.gettempdir(), f"nightread-query-{secrets.token_hex(8)}")
    files = ReadOnlyFiles(named)
    with (
        _explained(results, files),
        duckdb.connect(
            config={"memory_limit": memory_limit, "temp_directory": spill, "python_enable_replacements": False}
        ) as connection,
    ):
        # The bar would be drawn on standard output, between the answers.
        connection.execute("LOAD icu; SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        connection.register_filesystem(files)
        yield connection


@contextlib.contextmanager
def open_query(results: str, sql: str) -> Iterator[pa.RecordBatchReader]:
    """Ask a question and read its answer in batches, for as long as the block runs.

    Args:
        results: The results folder.
        sql: One statement that reads.

    Returns:
        A reader whose columns are plain: HUGEINT is int64, DECIMAL double. Memory holds a few batches.

    Raises:
        UsageError: If the statement is not allowed, DuckDB refuses it, or a whole number does not fit 64 bits.
        TryLater: If storage does not answer.
    """
    with _answer(results, sql) as reader:
        schema = _plain_schema(reader.schema)
        yield pa.RecordBatchReader.from_batches(schema, _plain_batches(reader, schema))


def run_query(results: str, sql: str) -> pa.Table:
    """Ask a question.

    Args:
        results: The results folder.
        sql: One statement that reads.

    Returns:
        The whole answer, in plain types: HUGEINT is int64, or double where one does not fit; DECIMAL is double.

    Raises:
        UsageError, TryLater: As `open_query`.
    """
    with _answer(results, sql) as reader:
        table = reader.read_all()
    columns = [_plain_column(table.column(i), kind) for i, kind in enumerate(_plain_schema(table.schema).types)]
    return pa.Table.from_arrays(columns, names=table.column_names)


@contextlib.contextmanager
def _answer(results: str, sql: str) -> Iterator[pa.RecordBatchReader]:
    with connect(results, _NAMES_RUNS.search(sql) is not None) as connection:
        check_read_only(connection, sql)
        yield connection.sql(sql).to_arrow_reader(BATCH_ROWS)


def named_files(uris: Sequence[str]) -> dict[str, str]:
    """A name of ours for each file, which holds its day and no pattern; only these names can be opened."""
    return {
        f"nightread://{number}/{paths.name(paths.parent(uri))}/rows.parquet": uri for number, uri in enumerate(uris)
    }


def _create_views(
    connection: duckdb.DuckDBPyConnection, schema: pa.Schema, uris: Sequence[str], runs: Sequence[RunRecord]
) -> None:
    order = column_order(schema)
    create_rows(connection, schema, uris)
    for name, sql in VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {sql}")
    for name, table in (("runs", _runs_table(runs)), ("internal.patient_limits", _limits_table(runs))):
        connection.register("nightread_made", table)
        connection.execute(f"CREATE TABLE {name} AS FROM nightread_made")
        connection.unregister("nightread_made")
    if PATIENT_COLUMN in (name.lower() for name in order):
        connection.execute(f"CREATE VIEW patients AS {_PATIENTS}")


def create_rows(
    connection: duckdb.DuckDBPyConnection, schema: pa.Schema, names: Sequence[str], with_place: bool = False
) -> None:
    """Make the view `rows`: all rows of the files, their columns in the order in which people read them.

    Args:
        connection: From `open_files`.
        schema: The table's.
        names: The files' names there.
        with_place: Add the column `ROW_COLUMN` behind the others, a number that each row of the files has alone.
    """
    connection.register("nightread_none", schema.empty_table())
    connection.execute("CREATE SCHEMA internal; CREATE TABLE internal.columns AS FROM nightread_none")
    connection.unregister("nightread_none")
    columns = ", ".join(quoted(name) for name in column_order(schema))
    # The empty table stands for columns whose rows were all rolled back since.
    source = f"(FROM internal.columns UNION ALL BY NAME {_scan(names, with_place)})" if names else "internal.columns"
    place = quoted(ROW_COLUMN) if names else f"NULL::BIGINT AS {quoted(ROW_COLUMN)}"
    connection.execute(f"CREATE VIEW rows AS SELECT {columns}{f', {place}' if with_place else ''} FROM {source}")


def _scan(names: Sequence[str], with_place: bool) -> str:
    """The files as one relation, `scored_date` taken from the name of each file's folder."""
    files = ", ".join(literal(name) for name in names)
    column = quoted(FILE_COLUMN)
    date = f"regexp_extract({column}, '.*/{PARTITION_COLUMN}=([0-9-]+)/', 1)::DATE"
    place = f", (file_index::BIGINT << 36) + file_row_number AS {quoted(ROW_COLUMN)}" if with_place else ""
    return f"""SELECT * EXCLUDE ({column}), {date} AS {PARTITION_COLUMN}{place} FROM read_parquet(
        [{files}], union_by_name = true, hive_partitioning = false, filename = {literal(FILE_COLUMN)})"""


def _lock(connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> None:
    """From here on only the table's files can be opened; the order matters, the last line forbids the others.

    DuckDB would write to a path that it may read. These are names of a file system that cannot write.
    """
    allowed = ", ".join(literal(name) for name in names)
    connection.execute(f"SET allowed_paths = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _runs_table(runs: Sequence[RunRecord]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            "run_id": run.run_id,
            "status": run.status,
            "started_at": run.started_at,
            "table_version": run.table_version,
            "seconds": run.timings.get("seconds"),
            "images_per_second": run.timings.get("images_per_second"),
            **{name: run.counts.get(name) for name in ("found", "planned", "scored", "failed")},
            **{name: run.configuration.get(name) for name in ("model_name", "model_id", "precision", "archive")},
            "os_user": run.who.get("user"),
            "host": run.who.get("host"),
        }
        for run in runs
    ]
    plain = [{name: _valid_text(value) for name, value in row.items()} for row in rows]
    return pa.Table.from_pylist(plain, schema=_RUNS_SCHEMA)


def _limits_table(runs: Sequence[RunRecord]) -> pa.Table:
    """Where each run's decisions on patients begin to be `refer` and `positive`; runs that know no such limits lack."""
    rows = []
    for run in runs:
        fitted = next((own for unit, own in _thresholds(run).items() if unit.startswith("patient_max")), None)
        if fitted is not None:
            low, high = (fitted["threshold"] if end is None else end for end in map(fitted.get, _BAND))
            rows.append({"run_id": run.run_id, "low": low, "high": high})
    return pa.Table.from_pylist(rows, schema=_LIMITS_SCHEMA)


def _thresholds(run: RunRecord) -> Mapping[str, Mapping[str, Any]]:
    return run.model.get("thresholds") or {}


def _valid_text(value: Any) -> Any:
    """Text that UTF-8 can hold: a path's byte that is none stands in a record as half of a pair."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _plain_batches(reader: pa.RecordBatchReader, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for batch in reader:
        try:
            yield batch.cast(schema)
        except pa.ArrowInvalid:
            raise UsageError(
                "The answer holds a whole number that does not fit 64 bits.", "Cast it: CAST(… AS DOUBLE)."
            ) from None


def _plain_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        return column.cast(pa.float64())


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([pa.field(field.name, _plain_type(field.type)) for field in schema])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type in which an answer is given: no decimals, no dictionaries."""
    if pa.types.is_decimal(kind):
        return pa.int64() if kind.scale == 0 and kind.precision >= 38 else pa.float64()
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain_type(field.type)) for field in kind])
    return kind


@contextlib.contextmanager
def _explained(results: str, files: ReadOnlyFiles) -> Iterator[None]:
    """Turn DuckDB's errors within the block into ones that a person can act on."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        if files.failure is not None:
            raise files.failure from None
        raise _explanation(error, results) from None


def _explanation(error: duckdb.Error, results: str) -> NightreadError:
    import duckdb

    if isinstance(error, duckdb.OutOfMemoryException):
        return UsageError(
            f"The question needs more than the {MEMORY_LIMIT} of memory, or the temporary space, that it may take.",
            "Ask for fewer columns or rows, or write the answer to a file with --output.",
        )
    if isinstance(error, duckdb.IOException):
        return TryLater(
            f"The table's files in {paths.canonical(results)!r} could not be read: {first_line(error)}",
            "If they were being cleaned or moved, ask again; `nightread doctor --results` looks at the storage.",
        )
    return UsageError(first_line(error), f"The views are {_NAMES}; DESCRIBE rows shows the columns.")
