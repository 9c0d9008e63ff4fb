"""Results that were copied while a night ran: restored elsewhere they are whole, and the next night does the rest."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.predictions import commit
from pipelines.predictions.runs import RunFolder, RunRecord, new_run_id
from pipelines.predictions.schema import prediction_schema
from pipelines.predictions.verifying import verify

COMMAND = [sys.executable, "-m", "jobs"]
INJECTOR = Path(__file__).parent / "injector"
PARTS_BEFORE_THE_COPY = 5


def copy_as_documented(results: Path, to: Path) -> None:
    """docs/operations.md: the runs, then the table's log, then its files; no leases, no hint of a checkpoint."""
    leave = shutil.ignore_patterns("*.tmp", "_last_checkpoint", "_delta_log")
    for folder in ("runs", "archives", "predictions/_delta_log", "predictions"):
        if (results / folder).exists():
            shutil.copytree(results / folder, to / folder, ignore=leave, dirs_exist_ok=True)


def test_a_copy_of_a_running_night(
    tmp_path: Path,
    tiny_models: Path,
    environment: dict[str, str],
    nightread: Callable,
    draw: Callable,
    rows_of: Callable,
) -> None:
    archive, results, restored = tmp_path / "archive", tmp_path / "results", tmp_path / "elsewhere" / "results"
    first = draw(archive, 24)
    arguments = ["score", archive, "--model", f"{tiny_models}/cells", "--shard-size", "4", "--json", "--results"]
    begun = nightread(*arguments, results)
    assert begun.code == 0, begun.err

    second = draw(archive, 60, start=24)
    path = f"{INJECTOR}{os.pathsep}{environment['PYTHONPATH']}"
    slow = {**environment, "PYTHONPATH": path, "FAULTS": "slow", "FAULT_SECONDS": "0.4"}
    night = subprocess.Popen(
        [*COMMAND, *map(str, arguments), str(results)], env=slow, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while night.poll() is None and len(list(results.glob("runs/*/parts/*.parquet"))) < PARTS_BEFORE_THE_COPY:
        time.sleep(0.005)
    copy_as_documented(results, restored)
    shutil.copytree(tiny_models, restored.parent / "MODELS")
    _, errors = night.communicate()
    assert night.returncode == 0, errors.decode()[-3000:]
    parts = [pq.read_table(part).to_pylist() for part in restored.glob("runs/*/parts/*.parquet")]
    had = {row["image_uri"]: row for rows in parts for row in rows}
    assert 0 < len(had) < len(second)

    for place in (results, restored):
        looked = nightread("runs", "verify", place, "--deep", "--json")
        assert (looked.code, looked.answer["problems"]) == (0, []), looked.out
    assert "is running, or was interrupted." in looked.answer["notes"][0]

    # The first night is taken back in the copy: its images are new again, beside those that the copy lacks.
    back = nightread("runs", "rollback", restored, begun.answer["run_id"], "--json")
    assert (back.code, back.answer["images"]) == (0, len(first)), back.err
    arguments[3] = f"{restored.parent}/MODELS/cells"
    done = nightread(*arguments, restored)
    assert (done.code, done.answer["scored"], done.answer["new"]) == (0, 84, len(first)), done.err
    assert done.answer["resumed"] is not None
    rows = {row["image_uri"]: row for row in rows_of(restored)}
    assert len(rows) == len(rows_of(restored)) == 84
    kept = {uri for uri, row in had.items() if row["scored_at"] == rows[uri]["scored_at"]}
    assert kept == set(had)
    before = {row["image_uri"]: row["scored_at"] for row in rows_of(results)}
    assert {uri for uri, row in rows.items() if row["scored_at"] == before[uri]} == kept
    assert {uri: row["score"] for uri, row in rows.items()} == {
        row["image_uri"]: row["score"] for row in rows_of(results)
    }
    assert verify(str(restored), deep=True).problems == ()


SCHEMA = prediction_schema(["benign"], None)
START = datetime.datetime(2026, 3, 1, 22, tzinfo=datetime.UTC)


def night_of(results: Path, number: int) -> str:
    run = new_run_id()
    record = RunRecord(run, "f", {}, {"scored": 20, "failed": 0}, {}, {}, None, "committed", START)
    fixed = {"run_id": run, "status": "scored", "scored_date": START.date(), "scored_at": START}
    rows = [{**dict.fromkeys(SCHEMA.names), **fixed, "image_uri": f"/{number}/{n}"} for n in range(20)]
    commit.commit_run(str(results), run, SCHEMA, pa.Table.from_pylist(rows, SCHEMA).to_batches(), lambda: None)
    RunFolder(str(results), run).write_record(record)
    return run


def test_a_rollback_that_is_killed_is_ended_by_the_same_command(
    tmp_path: Path, environment: dict[str, str], nightread: Callable, rows_of: Callable
) -> None:
    """Killed as soon as the table has its new version, before or while the run's record is written."""
    results = tmp_path / "results"
    commit.ensure_table(str(results))
    runs = [night_of(results, number) for number in range(3)]
    log = results / "predictions" / "_delta_log"
    before = len(list(log.glob("*.json")))
    arguments = ["runs", "rollback", str(results), runs[1], "--json"]
    process = subprocess.Popen([*COMMAND, *arguments], env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(log.glob("*.json"))) == before:
        pass
    process.kill()
    process.wait()
    assert commit.transaction_state(str(results), runs[1]) == commit.ROLLED_BACK
    again = nightread(*arguments)
    assert again.code == 0 or "already" in again.err
    assert {row["run_id"] for row in rows_of(results)} == {runs[0], runs[2]}
    assert RunFolder(str(results), runs[1]).read_record().status == "rolled_back"
    assert verify(str(results), deep=False).problems == ()
