"""The commit: exactly once, whatever comes between."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from pipelines.errors import LeaseLost, TryLater, UsageError
from pipelines.predictions import commit
from pipelines.predictions.query import run_query
from pipelines.predictions.schema import prediction_schema
from pipelines.predictions.table import create_table, open_table, table_schema

SCHEMA = prediction_schema(["benign", "malignant"], None)
DAY = datetime.date(2026, 3, 1)


def nothing() -> None:
    """No lease to check."""


def rows_of(run: str, count: int = 3, schema: pa.Schema = SCHEMA, **values: object) -> list[pa.RecordBatch]:
    """A few rows of a run, one batch each."""
    fixed = {"run_id": run, "status": "scored", "frame": 0, "scored_date": DAY, **values}
    empty = dict.fromkeys(schema.names)
    rows = [{**empty, **fixed, "image_uri": f"/archive/{run}-{number}.jpg"} for number in range(count)]
    return [pa.RecordBatch.from_pylist([row], schema=schema) for row in rows]


def meanwhile(action: Callable[[], object]) -> object:
    """Let another thread do something while a writer's rows are being read; the library forbids it in the same one."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(action).result()


def counted(results: str) -> dict[str, int]:
    """Rows of each run in the table."""
    table = run_query(results, "SELECT run_id, count(*) AS n FROM rows GROUP BY ALL")
    return dict(zip(table.column("run_id").to_pylist(), table.column("n").to_pylist(), strict=True))


@pytest.fixture
def results(tmp_path: Path) -> str:
    """A results folder with an empty table, of a name that has to be escaped."""
    place = str(tmp_path / "a b ü %x=1 {*}&")
    commit.ensure_table(place)
    return place


def test_there_is_nothing_before_the_first_run(tmp_path: Path) -> None:
    place = str(tmp_path)
    assert commit.committed_files(place) == []
    assert commit.table_version(place) is None
    assert commit.transaction_state(place, "a") is None
    with pytest.raises(UsageError, match="no predictions"):
        commit.commit_run(place, "a", SCHEMA, rows_of("a"), nothing)


def test_ensuring_twice_changes_nothing(results: str) -> None:
    commit.ensure_table(results)
    assert commit.table_version(results) == 0


def test_the_second_commit_of_a_run_says_which_version_has_it(results: str) -> None:
    assert commit.commit_run(results, "a", SCHEMA, rows_of("a"), nothing) == 1
    assert commit.commit_run(results, "b", SCHEMA, rows_of("b"), nothing) == 2
    assert commit.commit_run(results, "a", SCHEMA, rows_of("a"), nothing) == 1
    assert counted(results) == {"a": 3, "b": 3}
    assert (commit.transaction_state(results, "a"), commit.transaction_state(results, "c")) == (1, None)
    assert all(Path(file).is_file() for file in commit.committed_files(results))


def test_an_abandoned_run_is_never_committed(results: str) -> None:
    assert commit.abandon_run(results, "a") and commit.abandon_run(results, "a")
    with pytest.raises(LeaseLost):
        commit.commit_run(results, "a", SCHEMA, rows_of("a"), nothing)
    assert counted(results) == {}


def test_a_committed_run_is_not_abandoned(results: str) -> None:
    commit.commit_run(results, "a", SCHEMA, rows_of("a"), nothing)
    assert not commit.abandon_run(results, "a")
    assert commit.transaction_state(results, "a") == 1


def test_a_writer_that_slept_through_its_abandonment_stops(results: str) -> None:
    def slept() -> Iterator[pa.RecordBatch]:
        yield from rows_of("a")
        assert meanwhile(lambda: commit.abandon_run(results, "a"))

    with pytest.raises(LeaseLost):
        commit.commit_run(results, "a", SCHEMA, slept(), nothing)
    assert counted(results) == {}


def test_a_writer_that_slept_through_its_own_commit_by_another_adds_nothing(results: str) -> None:
    def slept() -> Iterator[pa.RecordBatch]:
        yield from rows_of("a")
        assert meanwhile(lambda: commit.commit_run(results, "a", SCHEMA, rows_of("a"), nothing)) == 1

    assert commit.commit_run(results, "a", SCHEMA, slept(), nothing) == 1
    assert counted(results) == {"a": 3}


def test_another_run_in_between_costs_nothing(results: str) -> None:
    def slow() -> Iterator[pa.RecordBatch]:
        yield from rows_of("a")
        meanwhile(lambda: commit.commit_run(results, "b", SCHEMA, rows_of("b"), nothing))

    commit.commit_run(results, "first", SCHEMA, rows_of("first"), nothing)
    assert commit.commit_run(results, "a", SCHEMA, slow(), nothing) == 3
    assert counted(results) == {"first": 3, "a": 3, "b": 3}


class Colliding:
    """Batches of a class; on the first pass another run with another class is committed in between."""

    def __init__(self, results: str) -> None:
        self.results = results
        self.schema = prediction_schema(["first"], None)
        self.passes = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        self.passes += 1
        if self.passes == 1:
            other = prediction_schema(["second"], None)
            rows = rows_of("b", schema=other)
            meanwhile(lambda: commit.commit_run(self.results, "b", other, rows, nothing))
        yield from rows_of("a", schema=self.schema)


def test_two_new_columns_at_once_are_tried_again(results: str) -> None:
    batches = Colliding(results)
    commit.commit_run(results, "a", batches.schema, batches, nothing)
    assert batches.passes == 2
    assert counted(results) == {"a": 3, "b": 3}


def test_a_one_shot_iterator_is_not_committed_half(results: str) -> None:
    batches = Colliding(results)
    with pytest.raises(TryLater):
        commit.commit_run(results, "a", batches.schema, iter(batches), nothing)
    assert counted(results) == {"b": 3}


def test_batches_that_fail_commit_nothing_and_say_why(results: str) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield from rows_of("a")
        raise KeyError("shard 7")

    with pytest.raises(KeyError, match="shard 7"):
        commit.commit_run(results, "a", SCHEMA, broken(), nothing)
    assert commit.transaction_state(results, "a") is None
    assert commit.table_version(results) == 0


@pytest.mark.parametrize("call", [1, 2])
def test_a_lost_lease_prevents_the_commit(results: str, call: int) -> None:
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == call:
            raise LeaseLost("lost")

    with pytest.raises(LeaseLost, match="lost"):
        commit.commit_run(results, "a", SCHEMA, rows_of("a"), check)
    assert commit.table_version(results) == 0


def test_threads_that_commit_and_abandon_at_once_agree(results: str) -> None:
    outcomes: dict[str, list[object]] = {}
    start = threading.Barrier(4)

    def act(run: str, abandon: bool) -> None:
        start.wait()
        try:
            if abandon:
                outcomes[run].append(("abandoned", commit.abandon_run(results, run)))
            else:
                outcomes[run].append(("committed", commit.commit_run(results, run, SCHEMA, rows_of(run), nothing)))
        except (LeaseLost, TryLater) as error:
            outcomes[run].append(error.code)

    for number in range(3):
        run = f"run{number}"
        outcomes[run] = []
        threads = [threading.Thread(target=act, args=(run, i == 0)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        state = commit.transaction_state(results, run)
        assert counted(results).get(run, 0) == (3 if state == 1 else 0)
        assert ("abandoned", state == 0) in outcomes[run]


def test_marks_outlive_checkpoints(results: str) -> None:
    for number in range(25):
        commit.commit_run(results, f"r{number}", SCHEMA, rows_of(f"r{number}", 1), nothing)
    assert list((Path(results) / "predictions" / "_delta_log").glob("*.checkpoint*.parquet"))
    assert commit.transaction_state(results, "r0") == 1
    assert commit.commit_run(results, "r0", SCHEMA, rows_of("r0", 1), nothing) == 1
    assert commit.commit_run(results, "r24", SCHEMA, rows_of("r24", 1), nothing) == 25
    assert sum(counted(results).values()) == 25


def test_columns_of_another_type_are_refused_before_scoring(results: str) -> None:
    text = prediction_schema(["a", "b"], pa.schema([("mrn", pa.string())]))
    commit.commit_run(results, "a", text, rows_of("a", schema=text, mrn="007"), nothing)
    number = prediction_schema(["a", "b"], pa.schema([("mrn", pa.int64())]))
    other_case = prediction_schema(["a", "b"], pa.schema([("MRN", pa.string())]))
    for schema in (number, other_case):
        with pytest.raises(UsageError, match=r"mrn|MRN"):
            commit.check_carried(results, schema)
        with pytest.raises(UsageError):
            commit.commit_run(results, "b", schema, rows_of("b", schema=schema), nothing)
    commit.check_carried(results, text)
    assert run_query(results, "SELECT DISTINCT mrn FROM rows").to_pylist() == [{"mrn": "007"}]


def test_a_table_whose_columns_another_release_described_otherwise_takes_rows(tmp_path: Path) -> None:
    place = str(tmp_path / "older")
    older = [field.with_metadata({"description": "Said otherwise.", "nightread": "own"}) for field in SCHEMA]
    create_table(place, pa.schema(older))
    commit.commit_run(place, "run", SCHEMA, rows_of("run"), nothing)
    assert counted(place) == {"run": 3}
    assert table_schema(open_table(place)).field("status").metadata[b"description"] == b"Said otherwise."


def test_every_kind_of_carried_column_comes_back(results: str) -> None:
    moment = datetime.datetime(2020, 1, 2, 3, 4, 5, 6)
    values: dict[str, tuple[pa.DataType, object]] = {
        "Patient ID": (pa.string(), "007"),
        "Orig[Width,": (pa.int64(), 1 << 40),
        "small": (pa.int8(), -3),
        "share": (pa.float64(), 0.1),
        "yes": (pa.bool_(), True),
        "day": (pa.date32(), DAY),
        "naive": (pa.timestamp("us"), moment),
        "aware": (pa.timestamp("us", tz="UTC"), moment.replace(tzinfo=datetime.UTC)),
    }
    schema = prediction_schema(["a"], pa.schema([(name, kind) for name, (kind, _) in values.items()]))
    told = {name: value for name, (_, value) in values.items()}
    commit.commit_run(results, "a", schema, rows_of("a", 1, schema, **told), nothing)
    commit.commit_run(results, "b", SCHEMA, rows_of("b", 1), nothing)
    rows = run_query(results, "FROM rows ORDER BY run_id").to_pylist()
    assert {name: rows[0][name] for name in told} == told
    assert all(rows[1][name] is None for name in told)


def test_a_newer_or_a_foreign_table_is_refused(tmp_path: Path) -> None:
    for name, description in (("newer", "Predictions of nightread, format 2"), ("foreign", "sales")):
        DeltaTable.create(str(tmp_path / name / "predictions"), schema=SCHEMA, description=description)
        with pytest.raises(UsageError, match=r"format 2|none of nightread"):
            commit.ensure_table(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a#b", "a?b", "a[b]", "a^b", "a|b", "a\\b", "a%20b", "a\nb", "a\udcffb"])
def test_a_folder_that_the_library_cannot_write_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="path"):
        commit.ensure_table(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_results_that_cannot_be_made_are_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError):
        commit.ensure_table(str(tmp_path / "file" / "results"))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "predictions").write_bytes(b"")
    with pytest.raises(UsageError):
        commit.ensure_table(str(tmp_path / "results"))


def test_a_damaged_log_is_explained(results: str) -> None:
    commit.commit_run(results, "a", SCHEMA, rows_of("a"), nothing)
    (Path(results) / "predictions" / "_delta_log" / f"{1:020d}.json").write_bytes(b'{"add": 1')
    with pytest.raises(TryLater, match="predictions"):
        commit.committed_files(results)


def test_the_library_still_takes_a_stale_append_for_a_conflict(results: str) -> None:
    """What the commit stands on: a run's mark that came in between makes an append through an older object fail."""
    from deltalake.exceptions import CommitFailedError

    stale = DeltaTable(str(Path(results) / "predictions"))
    assert commit.abandon_run(results, "a")
    properties = CommitProperties(app_transactions=[Transaction("a", 1)])
    rows = pa.RecordBatchReader.from_batches(SCHEMA, rows_of("a"))
    with pytest.raises(CommitFailedError):
        write_deltalake(stale, rows, mode="append", schema_mode="merge", commit_properties=properties)


def test_meanings_travel_in_the_parquet_files(results: str) -> None:
    import pyarrow.parquet as pq

    commit.commit_run(results, "a", SCHEMA, rows_of("a"), nothing)
    written = pq.read_schema(commit.committed_files(results)[0])
    for field in written:
        assert field.metadata[b"description"] == SCHEMA.field(field.name).metadata[b"description"]
