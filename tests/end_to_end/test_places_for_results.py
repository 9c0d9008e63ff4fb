"""Results on a file system without hard links, and on one that keeps no promise: whole nights of the command itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

COMMAND = [sys.executable, "-m", "jobs"]
INJECTOR = Path(__file__).parent / "injector"


@pytest.fixture
def faulty(environment: dict[str, str]) -> Callable[[str], dict[str, str]]:
    """The environment in which a fault is injected."""
    path = f"{INJECTOR}{os.pathsep}{environment['PYTHONPATH']}"
    return lambda fault: {**environment, "PYTHONPATH": path, "FAULTS": fault}


def kill_with_some_parts(arguments: list[str], env: dict[str, str], results: Path) -> None:
    """Start a command and kill it and its workers once some shards are finished."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while process.poll() is None and len(list(results.glob("runs/*/parts/*.parquet"))) < 2:
        time.sleep(0.005)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()[-3000:]


def test_nights_on_a_file_system_without_hard_links(
    tmp_path: Path,
    tiny_models: Path,
    nightread: Callable,
    draw: Callable,
    rows_of: Callable,
    faulty: Callable[[str], dict[str, str]],
) -> None:
    """Killed, abandoned for another configuration, committed, asked, moved: the kernel refuses link() to all of it."""
    archive, results, env = tmp_path / "archive", tmp_path / "results", faulty("nolinks")
    paths = draw(archive, 150)
    model = ["--model", f"{tiny_models}/cells", "--results", str(results), "--json"]
    kill_with_some_parts(["score", str(archive), *model, "--shard-size", "4"], env, results)
    assert rows_of(results) == []

    other = ["--exclude", "no-such-name*", "--publish", str(tmp_path / "published")]
    done = nightread("score", archive, *model, *other, env=env)
    assert (done.code, done.answer["scored"]) == (0, 150), done.err
    assert done.answer["by_rename"] is True
    assert Counter(row["image_uri"] for row in rows_of(results)) == {str(path): 1 for path in paths}
    assert sorted(path.parent.name for path in results.glob("predictions/_delta_log/*.json")) == ["_delta_log"] * 3
    listed = nightread("runs", "list", results, "--json", env=env).answer
    assert [run["status"] for run in listed] == ["abandoned", "committed"]
    published = pq.read_table(tmp_path / "published" / "latest.parquet").column("image_uri").to_pylist()
    assert sorted(published) == sorted(str(path) for path in paths)

    # The mount moves: told so, the next night has nothing to do and does not start Ray.
    moved = archive.rename(tmp_path / "moved")
    told = nightread("runs", "rebase", results, archive, moved, "--json", env=env)
    assert (told.code, told.answer["images"]) == (0, 150), told.err
    again = nightread("score", moved, *model, *other, env=env)
    assert (again.code, again.answer["new"], again.answer["unchanged"]) == (0, 0, 150), again.err
    asked = nightread("query", results, "SELECT count(DISTINCT image_uri) AS n FROM latest", "--json", env=env)
    assert asked.answer == [{"n": 150}]
    assert {row["image_uri"] for row in rows_of(results)} == {str(moved / path.name) for path in paths}


def test_a_file_system_without_exclusive_creation_is_refused_before_anything_is_written(
    tmp_path: Path, tiny_models: Path, nightread: Callable, draw: Callable, faulty: Callable[[str], dict[str, str]]
) -> None:
    draw(tmp_path / "archive", 2)
    place = tmp_path / "results"
    model = ["--model", f"{tiny_models}/cells", "--results", place, "--json"]
    done = nightread("score", tmp_path / "archive", *model, env=faulty("lax"))
    assert done.code == 2, done.err
    assert "no place for results" in done.answer["error"]["message"]
    assert done.answer["error"]["cure"] == "Keep results on a disk or on a store with conditional writes."
    assert not place.exists()
