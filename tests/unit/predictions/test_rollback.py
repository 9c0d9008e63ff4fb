"""A run that is taken back: its rows and no others leave, whatever lies in one file, and a kill changes nothing."""

from __future__ import annotations

import datetime
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from jobs.cli import main
from pipelines.errors import LeaseLost, TryLater, UsageError
from pipelines.predictions import commit
from pipelines.predictions.query import run_query
from pipelines.predictions.rollback import RolledBack, roll_back
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema
from pipelines.storage.leases import Lease

SCHEMA = prediction_schema(["benign"], None)
OTHER = prediction_schema(["normal"], pa.schema([("patient_id", pa.string())]))
START = datetime.datetime(2026, 3, 1, 22, tzinfo=datetime.UTC)
WHO = {"user": "it", "host": "pacs", "command_line": ["not", "for", "the", "log"]}


def record(results: str, run: str, status: str, version: int | None = None, **values: Any) -> RunRecord:
    written = RunRecord(run, "f", {"model_name": "m"}, {"found": 9}, {}, {}, version, status, START)
    RunFolder(results, run).write_record(replace(written, **values))
    return RunFolder(results, run).read_record()


def night(results: str, run: str, uris: list[str], schema: pa.Schema = SCHEMA, **values: object) -> None:
    """Commit a run of scored rows, all on one day, and its record."""
    fixed = {"run_id": run, "frame": 0, "status": "scored", "model_name": "m", "model_id": "1", "scored_at": START}
    fixed |= {"image_version": "10-7", "preprocessing_id": "p", "precision": "float32", "scored_date": START.date()}
    rows = [{**dict.fromkeys(schema.names), **fixed, "image_uri": uri, **values} for uri in uris]
    batches = pa.Table.from_pylist(rows, schema).to_batches()
    record(results, run, "committed", commit.commit_run(results, run, schema, batches, lambda: None))


def rows_of(results: str) -> list[dict[str, Any]]:
    """All rows, read from the table's log by PyArrow, in a fixed order."""
    table = DeltaTable(f"{results}/predictions")
    day = ds.partitioning(pa.schema([("scored_date", pa.date32())]), flavor="hive")
    whole = ds.dataset(table.file_uris(), schema=pa.schema(table.schema().to_arrow()), partitioning=day).to_table()
    return sorted(whole.to_pylist(), key=lambda row: (row["run_id"], row["image_uri"]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("made") / "results")
    commit.ensure_table(place)
    night(place, "r1", ["/a", "/b"])
    night(place, "r2", ["/b", "/c"], OTHER, model_id="2", patient_id="007")
    night(place, "r3", ["/d"])
    return place


@pytest.fixture
def results(made: str, tmp_path: Path) -> str:
    return str(shutil.copytree(made, tmp_path / "results"))


@pytest.mark.parametrize("together", [False, True], ids=["a file a run", "all runs in one file"])
@pytest.mark.parametrize("run", ["r1", "r2", "r3"])
def test_the_rows_of_one_run_leave_and_all_others_stay(results: str, run: str, together: bool) -> None:
    if together:
        DeltaTable(f"{results}/predictions").optimize.compact()
    before, version = rows_of(results), commit.table_version(results)
    own = [row for row in before if row["run_id"] == run]
    done = roll_back(results, run, WHO)
    assert done == RolledBack(run, len(own), len(own), (version or 0) + 1, False, ())
    assert rows_of(results) == [row for row in before if row["run_id"] != run]
    assert RunFolder(results, run).read_record() == replace(
        RunFolder(results, run).read_record(), status="rolled_back", table_version=int(run[1:]), counts={"found": 9}
    )
    earlier = DeltaTable(f"{results}/predictions", version=version)
    assert sum(pa.table(earlier.get_add_actions())["num_records"].to_pylist()) == len(before)


def test_a_run_that_is_alone_on_its_day_leaves_without_a_file_being_written(results: str) -> None:
    alone = START.date() + datetime.timedelta(days=1)
    before = rows_of(results)
    night(results, "r4", ["/a", "/e"], scored_date=alone)
    files = set(DeltaTable(f"{results}/predictions").file_uris())
    assert roll_back(results, "r4", WHO).rows == 2
    assert rows_of(results) == before
    assert set(DeltaTable(f"{results}/predictions").file_uris()) < files


def test_what_is_written_anew_has_plain_types(results: str) -> None:
    DeltaTable(f"{results}/predictions").optimize.compact()
    roll_back(results, "r1", WHO)
    (file,) = DeltaTable(f"{results}/predictions").file_uris()
    table = pa.schema(DeltaTable(f"{results}/predictions").schema().to_arrow())
    assert pq.read_schema(file).types == [field.type for field in table if field.name != "scored_date"]


def test_the_log_names_run_and_person_and_the_run_can_never_be_committed_again(results: str) -> None:
    roll_back(results, "r2", WHO)
    told = json.loads(DeltaTable(f"{results}/predictions").history(1)[0]["nightread_rollback"])
    assert {name: told[name] for name in ("run", "user", "host")} == {"run": "r2", "user": "it", "host": "pacs"}
    assert datetime.datetime.fromisoformat(told["at"]).tzinfo is not None
    assert commit.transaction_state(results, "r2") == commit.ROLLED_BACK
    with pytest.raises(LeaseLost):
        commit.commit_run(results, "r2", SCHEMA, [], lambda: None)


def test_after_a_kill_between_the_deletion_and_the_record_the_same_command_ends_it(results: str) -> None:
    before = RunFolder(results, "r2").read_record()
    first = roll_back(results, "r2", WHO)
    RunFolder(results, "r2").write_record(before)  # what a kill before the last write leaves
    second = roll_back(results, "r2", WHO)
    assert second == RolledBack("r2", 0, 0, first.table_version, True, ())
    assert RunFolder(results, "r2").read_record().status == "rolled_back"
    with pytest.raises(UsageError, match="already"):
        roll_back(results, "r2", WHO)


def test_a_run_whose_driver_died_before_its_last_word_gets_its_counts(results: str) -> None:
    record(results, "r1", "running", None, counts={"planned": 2})
    assert roll_back(results, "r1", WHO).rows == 2
    closed = RunFolder(results, "r1").read_record()
    assert (closed.status, closed.counts) == (
        "rolled_back",
        {"planned": 2, "scored": 2, "failed": 0, "failed_by_code": {}},
    )


def test_what_cannot_be_rolled_back_is_one_sentence_and_changes_nothing(
    results: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record(results, "r4", "running")
    commit.abandon_run(results, "r5")
    record(results, "r5", "abandoned")
    record(results, "r6", "committed", 2)
    roll_back(results, "r3", WHO)
    before, version = rows_of(results), commit.table_version(results)
    for run, sentence in {
        "r3": "Run r3 has been rolled back already.",
        "r4": "Run r4 is not committed: it is running, or was interrupted.",
        "r5": "Run r5 is not committed, but abandoned.",
        "r6": "Run r6 is committed by its record, and unknown to the table.",
        "r9": f"There is no run 'r9' in {results!r}.",
        "../runs/r1": f"There is no run '../runs/r1' in {results!r}.",
        "r1' OR '1'='1": f"There is no run \"r1' OR '1'='1\" in {results!r}.",
    }.items():
        assert main(["runs", "rollback", results, run]) == 2
        assert capsys.readouterr().err.splitlines()[0].endswith(sentence)
    assert (rows_of(results), commit.table_version(results)) == (before, version)


def test_a_place_without_results_and_one_in_use(tmp_path: Path, results: str) -> None:
    with pytest.raises(UsageError, match="no predictions"):
        roll_back(str(tmp_path / "nowhere"), "r1", WHO)
    assert not (tmp_path / "nowhere").exists()
    with Lease.acquire(results), pytest.raises(TryLater, match="is being written by"):
        roll_back(results, "r1", WHO)


def test_the_answer_names_the_published_file_and_how_to_see_it(
    results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = tmp_path / "for analysts" / "latest.parquet"
    record(results, "r1", "committed", 1, configuration={"publish": str(published.parent)})
    record(results, "r2", "committed", 2, configuration={"publish": str(tmp_path / "never written")})
    published.parent.mkdir()
    published.touch()
    assert main(["runs", "rollback", results, "r1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  rolled back r1: 2 rows of 2 images, which are new again"
    assert lines[1] == "  table       version 4"
    assert lines[2] == f"  stale       {published}, until the next score with --publish"
    assert lines[3].startswith("  see it      nightread query ")
    assert main(["runs", "rollback", results, "r2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "run_id": "r2", "rows": 2, "images": 2, "table_version": 5, "finished_earlier": False,
        "published": [str(published)], "results": results,
    }  # fmt: skip
    assert run_query(results, "SELECT run_id, status FROM runs ORDER BY 1").to_pylist() == [
        {"run_id": "r1", "status": "rolled_back"},
        {"run_id": "r2", "status": "rolled_back"},
        {"run_id": "r3", "status": "committed"},
    ]
