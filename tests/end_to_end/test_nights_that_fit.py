"""Nights that have to end, archives that are committed piece by piece, and commands that queue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "jobs"]
INJECTOR = Path(__file__).parent / "injector"


def slowly(environment: dict[str, str], seconds: float) -> dict[str, str]:
    """The environment of a command for which reading an image takes so much longer."""
    path = os.pathsep.join([str(INJECTOR), environment["PYTHONPATH"]])
    return {**environment, "PYTHONPATH": path, "FAULTS": "slow", "FAULT_SECONDS": str(seconds)}


@pytest.mark.slow
def test_a_night_that_ends_early_commits_what_is_finished_and_the_next_scores_the_rest(
    tmp_path: Path,
    tiny_models: Path,
    environment: dict[str, str],
    nightread: Callable,
    draw: Callable,
    rows_of: Callable,
) -> None:
    archive, results = tmp_path / "archive", tmp_path / "results"
    paths = draw(archive, 600)
    command = ["score", archive, "--model", f"{tiny_models}/cells", "--results", results, "--json"]
    command += ["--shard-size", "4"]
    # Sixteen reads at once take 0.4 s: all of them would take 15 s.
    short = nightread(
        *command, "--max-time", "12s", "--commit-every", "100", "--actors", "2", env=slowly(environment, 0.4)
    )
    assert short.code == 0, short.err
    first = short.answer
    rows = rows_of(results)
    assert first["planned"] == 600 and first["remaining"] == 600 - len(rows) > 0
    assert first["scored"] == len(rows) and len(rows) % 4 == 0
    assert set(first["runs"]) == {row["run_id"] for row in rows}
    assert first["seconds"] < 120  # begun shards are finished, which takes a busy machine its time
    listed = json.loads(nightread("runs", "list", results, "--json").out)
    assert {run["status"] for run in listed} <= {"committed", "abandoned"}
    assert sum(run["counts"].get("scored", 0) for run in listed) == len(rows)

    second = nightread(*command).answer
    assert (second["new"], second["unchanged"], second["scored"]) == (600 - len(rows), len(rows), 600 - len(rows))
    assert second["remaining"] == 0 and second["resumed"] is None
    assert Counter(row["image_uri"] for row in rows_of(results)) == {str(path): 1 for path in paths}
    assert not list(results.glob("runs/*/parts"))


def test_a_night_that_begins_too_late_is_told_so(tmp_path: Path, tiny_models: Path, nightread: Callable) -> None:
    (tmp_path / "archive").mkdir()
    past = time.strftime("%H:%M", time.localtime(time.time() - 120))
    command = ["score", tmp_path / "archive", "--model", f"{tiny_models}/cells", "--results", tmp_path / "results"]
    done = nightread(*command, "--until", past)
    assert done.code == 2 and "has passed" in done.err and "--max-time" in done.err
    assert not (tmp_path / "results").exists()


def test_a_large_archive_can_be_asked_while_it_is_scored_and_a_second_command_queues(
    tmp_path: Path,
    tiny_models: Path,
    environment: dict[str, str],
    nightread: Callable,
    draw: Callable,
    rows_of: Callable,
) -> None:
    archive, results = tmp_path / "archive", tmp_path / "results"
    paths = draw(archive, 250)
    command = ["score", str(archive), "--model", f"{tiny_models}/cells", "--results", str(results), "--json"]
    pieces = ["--commit-every", "100", "--shard-size", "8"]
    first = subprocess.Popen(
        [*COMMAND, *command, *pieces], env=slowly(environment, 0.15), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while first.poll() is None and not list(results.glob("leases/*.json")):
        time.sleep(0.01)
    refused = nightread(*command)
    assert refused.code == 75 and "is being written" in refused.answer["error"]["message"]
    seen = []
    while first.poll() is None:
        if (results / "predictions" / "_delta_log").exists() and (now := len(rows_of(results))) not in seen:
            seen.append(now)
        if not seen or seen[-1] < 100:
            time.sleep(0.05)
            continue
        break
    draw(archive, 10, start=250)
    second = nightread(*command, "--wait", "2m")
    out, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors.decode()[-3000:]
    answer = json.loads(out)
    assert len(answer["runs"]) == 3 and answer["scored"] == 250 and answer["remaining"] == 0
    assert 100 in seen, "the first piece was not there before the rest"
    assert second.code == 0, second.err
    assert second.answer["scored"] == 10 and second.answer["waited_seconds"] > 0
    counted = Counter(row["image_uri"] for row in rows_of(results))
    assert len(counted) == len(paths) + 10 and set(counted.values()) == {1}
