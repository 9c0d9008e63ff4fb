"""Whether results are whole: files, rows, runs and records against each other. Nothing is written, no lease taken.

Records are read before the table, so that a run that is committed meanwhile is nobody's fault: what the record of a run
says to be in the table must be there.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from pipelines.errors import NightreadError, TryLater, UsageError
from pipelines.predictions.commit import ABANDONED, COMMITTED, ROLLED_BACK
from pipelines.predictions.query import MEMORY_LIMIT, create_rows, named_files, open_files
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.table import live_files, open_table, table_schema
from pipelines.predictions.value_checks import wrong_values
from pipelines.storage import files, paths
from pipelines.storage.audit import audit_uri, read_audit

if TYPE_CHECKING:
    import duckdb
    from deltalake import DeltaTable

_READERS: Final = 16
_DEEP_READERS: Final = 2
_BATCH_ROWS: Final = 16_384
# What a row of a run is an answer to; each at most once.
_ANSWERED: Final = "run_id, image_uri, frame, image_version, model_id, preprocessing_id, precision"


@dataclass(frozen=True)
class UsedModel:
    """A model that rows name.

    Attributes:
        model_name: As the rows call it.
        model_id: The hash of its bundle.json.
        refs: Where runs with this model found it; none where no record tells.
    """

    model_name: str
    model_id: str
    refs: tuple[str, ...]


@dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes:
        table_version: The version that was looked at.
        files: Its files.
        rows: Its rows, as the log has them.
        runs: Runs with a record.
        problems: What is wrong, one sentence each.
        notes: What a person may want to know and is no fault.
        models: Models that rows name; whether their bundles are there is for the caller to ask.
    """

    table_version: int
    files: int
    rows: int
    runs: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    models: tuple[UsedModel, ...]


@dataclass(frozen=True)
class _LiveFile:
    uri: str
    size: int
    rows: int | None


@dataclass
class _Found:
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _InTable:
    """Rows of a run in the table: scored ones, and failed ones by code."""

    scored: int = 0
    failed: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.scored + sum(self.failed.values())


def verify(results: str, deep: bool = False) -> Verified:
    """Compare what a results folder says with what is in it.

    Args:
        results: The results folder.
        deep: Read every row and check its values too, instead of the files' footers and a few columns.

    Raises:
        UsageError: If there are no results, or a newer release wrote them.
        TryLater: If storage does not answer.
    """
    place = paths.canonical(results)
    found = _Found()
    records = _read_records(place, found)
    table = open_table(place)
    live = _live(table, place)
    with ThreadPoolExecutor(_DEEP_READERS if deep else _READERS, thread_name_prefix="verify") as pool:
        checked = list(pool.map(lambda file: _check_file(file, deep), live))
    found.problems += [problem for _, problems in checked for problem in problems]
    models: tuple[UsedModel, ...] = ()
    if not all(readable for readable, _ in checked):
        found.notes.append("Rows were not compared with the records of runs, for that needs every file of the table.")
    else:
        with _rows(table, place, live) as connection:
            counted = _count(connection)
            found.problems += _doubled(connection)
            models = _models(connection, records)
        _compare(table, place, records, counted, found)
    if unreadable := read_audit(place)[1]:
        found.notes.append(f"Lines of {audit_uri(place)!r} that cannot be read: {unreadable:,}.")
    return Verified(
        int(table.version()),
        len(live),
        sum(file.rows or 0 for file in live),
        len(records),
        tuple(found.problems),
        tuple(found.notes),
        models,
    )


def _read_records(place: str, found: _Found) -> dict[str, RunRecord]:
    """The records of all runs by run; those that cannot be read are problems."""

    def read(run_id: str) -> RunRecord | str | None:
        folder = RunFolder(place, run_id)
        try:
            return folder.read_record()
        except UsageError as error:
            return error.message if files.exists(folder.run_json) else None

    names = files.list_names(paths.join(place, "runs"))
    records = {}
    with ThreadPoolExecutor(_READERS, thread_name_prefix="runs") as pool:
        for run_id, record in zip(names, pool.map(read, names), strict=True):
            if isinstance(record, RunRecord):
                records[run_id] = record
            elif record is None:
                found.notes.append(f"Run {run_id} died before it had a record; it has no rows.")
            else:
                found.problems.append(record)
    return records


def _live(table: DeltaTable, place: str) -> list[_LiveFile]:
    """The files of this version, with what the log says of them."""
    added = pa.table(table.get_add_actions())
    sizes = added.column("size_bytes").to_pylist()
    rows = added.column("num_records").to_pylist() if "num_records" in added.column_names else [None] * len(sizes)
    return [_LiveFile(*facts) for facts in zip(live_files(table, place), sizes, rows, strict=True)]


def _check_file(file: _LiveFile, deep: bool) -> tuple[bool, list[str]]:
    """Whether a file can be read at all, and what is wrong with it."""
    import pyarrow.parquet as pq

    name = f"The table's file {file.uri!r}"
    try:
        size = files.size(file.uri)
        if size != file.size:
            return False, [f"{name} has {size:,} bytes, and {file.size:,} by the log."]
        with files.open_input(file.uri) as handle, pq.ParquetFile(handle, pre_buffer=False) as parquet:
            problems = []
            rows = parquet.metadata.num_rows
            if file.rows is not None and rows != file.rows:
                problems.append(f"{name} has {rows:,} rows, and {file.rows:,} by the log.")
            if deep:
                wrong = wrong_values(parquet.iter_batches(_BATCH_ROWS, use_threads=False))
                problems += [f"{name}: {words}." for words in wrong]
            return True, problems
    except TryLater:  # whether it is there is not known
        raise
    except FileNotFoundError:
        return False, [f"{name} is missing."]
    except NightreadError as error:
        return False, [f"{name} cannot be read: {error.message}"]
    except (pa.ArrowException, OSError, KeyError) as error:
        return False, [f"{name} is damaged: {str(error).partition(chr(10))[0]}"]


@contextlib.contextmanager
def _rows(table: DeltaTable, place: str, live: list[_LiveFile]) -> Iterator[duckdb.DuckDBPyConnection]:
    """The view `rows` over the files of this version."""
    named = named_files([file.uri for file in live])
    with open_files(place, named, MEMORY_LIMIT) as connection:
        create_rows(connection, table_schema(table), list(named))
        connection.execute("SET preserve_insertion_order = false")
        yield connection


def _count(connection: duckdb.DuckDBPyConnection) -> dict[str, _InTable]:
    counted: dict[str, _InTable] = defaultdict(_InTable)
    sql = (
        "SELECT run_id, CASE WHEN status = 'failed' THEN coalesce(error_code, '') END, count(*) FROM rows GROUP BY ALL"
    )
    for run_id, code, number in connection.execute(sql).fetchall():
        if code is None:
            counted[str(run_id)].scored = number
        else:
            counted[str(run_id)].failed[code] = number
    return counted


def _doubled(connection: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """Runs that hold an image twice.

    Texts of ten million rows do not fit into memory: their hashes say which few rows may be doubled.
    """
    mark = f"hash({_ANSWERED})"
    connection.execute(f"CREATE TEMP TABLE alike AS SELECT {mark} AS h FROM rows GROUP BY h HAVING count(*) > 1")
    found = connection.execute(
        f"""SELECT run_id, count(*), any_value(image_uri) FROM (
            SELECT {_ANSWERED} FROM rows WHERE {mark} IN (FROM alike) GROUP BY ALL HAVING count(*) > 1)
        GROUP BY run_id ORDER BY run_id"""
    ).fetchall()
    for run_id, images, example in found:
        yield f"Run {run_id} has {images:,} images more than once in the table, {example!r} among them."


def _models(connection: duckdb.DuckDBPyConnection, records: Mapping[str, RunRecord]) -> tuple[UsedModel, ...]:
    refs: dict[str, set[str]] = defaultdict(set)
    for record in records.values():
        model, model_id = record.configuration.get("model"), record.configuration.get("model_id")
        if model and model_id:
            refs[str(model_id)].add(paths.unescape_name(str(model)))
    named = connection.execute(
        "SELECT DISTINCT model_name, model_id FROM rows WHERE model_id IS NOT NULL ORDER BY ALL"
    ).fetchall()
    return tuple(UsedModel(str(name), str(own), tuple(sorted(refs[str(own)]))) for name, own in named)


def _compare(
    table: DeltaTable, place: str, records: Mapping[str, RunRecord], counted: Mapping[str, _InTable], found: _Found
) -> None:
    """Records against the table, and the other way round."""
    for run_id, record in records.items():
        state, rows = table.transaction_version(run_id), counted.get(run_id, _InTable())
        if record.status == "committed" and state == ROLLED_BACK:
            record = RunFolder(place, run_id).read_record()  # it may have been rolled back since
        problem = _contradiction(record, state, rows)
        if problem is not None:
            found.problems.append(f"Run {run_id} {problem}")
        elif record.status == "running" and state is None:
            found.notes.append(f"Run {run_id} is running, or was interrupted.")
        elif record.status == "running":
            found.notes.append(f"Run {run_id} is at its end; the next score writes that into its record.")
    for run_id in sorted(counted.keys() - records.keys()):
        if not files.exists(RunFolder(place, run_id).run_json):
            found.problems.append(f"Run {run_id} has {counted[run_id].rows:,} rows in the table and no record.")


def _contradiction(record: RunRecord, state: int | None, there: _InTable) -> str | None:
    """What does not fit between a record and the table; None where all does."""
    if record.status == "committed":
        if state == ROLLED_BACK:
            return (
                f"was rolled back, and its record does not say so: nightread runs rollback … {record.run_id} ends it."
            )
        if state != COMMITTED:
            return "is committed by its record, and unknown to the table."
        return _other_counts(record, there)
    if record.status == "running":
        return f"is not committed, and has {there.rows:,} rows in the table." if there.rows and not state else None
    if state == COMMITTED and record.status == "abandoned":
        return "is abandoned by its record, and committed by the table."
    if state == ABANDONED and record.status == "rolled_back":
        return "is rolled back by its record, and abandoned by the table."
    return f"is {record.status}, and has {there.rows:,} rows in the table." if there.rows else None


def _other_counts(record: RunRecord, there: _InTable) -> str | None:
    said: dict[str, Any] = {name: record.counts.get(name) for name in ("scored", "failed", "failed_by_code")}
    found = {"scored": there.scored, "failed": there.rows - there.scored, "failed_by_code": there.failed}
    for name, value in found.items():
        if said[name] is not None and said[name] != value:
            return f"has {_words(value)} {name} rows in the table, and {_words(said[name])} by its record."
    return None


def _words(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"{value:,}"
    return ", ".join(f"{number:,} {code}" for code, number in sorted(value.items())) or "no"
