"""The commit between real processes: writers that sleep, die, or race each other."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.predictions import commit
from pipelines.predictions.query import run_query

WRITER = """
import datetime, sys, time
import pyarrow as pa
from pipelines.errors import NightreadError
from pipelines.predictions import commit
from pipelines.predictions.schema import prediction_schema

results, run, rows, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
schema = prediction_schema(["a", "b"], None)

def batches():
    for start in range(0, rows, 500):
        print("writing", flush=True)
        time.sleep(pause)
        numbers = range(start, min(start + 500, rows))
        columns = {name: pa.nulls(len(numbers), schema.field(name).type) for name in schema.names}
        columns["run_id"] = pa.array([run] * len(numbers))
        columns["image_uri"] = pa.array([f"/{run}/{number}" for number in numbers])
        columns["scored_date"] = pa.array([datetime.date(2026, 1, 1)] * len(numbers))
        yield pa.RecordBatch.from_pydict(columns, schema=schema)

class Rows:
    def __iter__(self):
        return batches()

try:
    print("version", commit.commit_run(results, run, schema, Rows(), lambda: None), flush=True)
except NightreadError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


def start_writer(checkout: Path, results: str, run: str, rows: int = 2000, pause: float = 0.0) -> subprocess.Popen[str]:
    """Start a process that commits a run."""
    command = [sys.executable, "-c", WRITER, results, run, str(rows), str(pause)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def counted(results: str) -> dict[str, tuple[int, int]]:
    """Rows and distinct images of each run."""
    rows = run_query(
        results, "SELECT run_id, count(*) n, count(DISTINCT image_uri) d FROM rows GROUP BY ALL"
    ).to_pylist()
    return {row["run_id"]: (row["n"], row["d"]) for row in rows}


@pytest.fixture
def results(tmp_path: Path) -> str:
    """A results folder with an empty table."""
    commit.ensure_table(str(tmp_path / "results"))
    return str(tmp_path / "results")


def test_a_writer_that_is_paused_past_its_abandonment_commits_nothing(checkout: Path, results: str) -> None:
    writer = start_writer(checkout, results, "a", pause=0.2)
    assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
    os.kill(writer.pid, signal.SIGSTOP)
    assert commit.abandon_run(results, "a")
    os.kill(writer.pid, signal.SIGCONT)
    out, errors = writer.communicate(timeout=120)
    assert writer.returncode == 75, (out, errors)
    assert counted(results) == {}


def test_a_writer_that_is_paused_while_another_commits_its_run_adds_nothing(checkout: Path, results: str) -> None:
    paused = start_writer(checkout, results, "a", pause=0.2)
    assert paused.stdout is not None and paused.stdout.readline() == "writing\n"
    os.kill(paused.pid, signal.SIGSTOP)
    other = start_writer(checkout, results, "a")
    assert other.wait(timeout=120) == 0
    other.communicate()
    os.kill(paused.pid, signal.SIGCONT)
    out, errors = paused.communicate(timeout=120)
    assert paused.returncode == 0, (out, errors)
    assert out.splitlines()[-1] == "version 1"
    assert counted(results) == {"a": (2000, 2000)}


def test_processes_that_commit_the_same_runs_at_once_commit_each_once(checkout: Path, results: str) -> None:
    writers = [start_writer(checkout, results, run) for run in ("a", "b") for _ in range(3)]
    answers = [writer.communicate(timeout=180) for writer in writers]
    assert {writer.returncode for writer in writers} <= {0, 75}, answers
    for run in ("a", "b"):
        again = start_writer(checkout, results, run)
        assert again.wait(timeout=120) == 0
        again.communicate()
    assert counted(results) == {"a": (2000, 2000), "b": (2000, 2000)}


def test_killed_writers_leave_all_rows_or_none(checkout: Path, results: str) -> None:
    moments = random.Random(20260301)
    for number in range(6):
        run = f"r{number}"
        writer = start_writer(checkout, results, run, pause=0.02)
        assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
        time.sleep(moments.uniform(0, 0.25))
        writer.kill()
        writer.communicate()
        assert counted(results).get(run, (0, 0)) in ((0, 0), (2000, 2000))
        again = start_writer(checkout, results, run)
        out, errors = again.communicate(timeout=120)
        assert again.returncode == 0, (out, errors)
    assert counted(results) == {f"r{number}": (2000, 2000) for number in range(6)}


def test_a_full_disk_is_try_later_and_the_next_attempt_succeeds(checkout: Path, results: str) -> None:
    command = [sys.executable, "-c", WRITER, results, "a", "60000", "0"]

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    full = subprocess.run(
        command, env=environment, capture_output=True, text=True, preexec_fn=small_files, check=False, timeout=120
    )
    assert full.returncode == 75, (full.stdout[-300:], full.stderr[-800:])
    assert "disk is full" in full.stdout
    assert counted(results) == {}
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert again.returncode == 0
    assert counted(results) == {"a": (60000, 60000)}
