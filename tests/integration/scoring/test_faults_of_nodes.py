"""A night on a Ray of nodes that come, leave and die: each image once, and an honest exit code."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from ray_nodes import CLOCK, Night, Nodes, ray_nodes

INJECTOR = Path(__file__).parents[2] / "end_to_end" / "injector"
SHARD_SIZE = 4


@pytest.fixture
def slowed(environment: dict[str, str]) -> dict[str, str]:
    """Environment of a cluster whose actors take their time, and of commands that do not wait long for a lost head."""
    path = f"{INJECTOR}{os.pathsep}{environment['PYTHONPATH']}"
    faults = {"FAULTS": "slow,hungry,hasty", "FAULT_SECONDS": "0.4", "FAULT_PATIENCE": "8"}
    return {**environment, **faults, "PYTHONPATH": path}


def begin(nodes: Nodes, archive: Path, models: Path, results: Path, *more: object) -> Night:
    arguments = ["score", archive, "--model", f"{models}/cells", "--results", results, "--address", nodes.address]
    return Night([*arguments, "--shard-size", SHARD_SIZE, *more], results, nodes.environment)


def skewed_clock(folder: Path) -> dict[str, str]:
    """Variables of a node whose clock is an hour ahead; none where nothing compiles."""
    if shutil.which("cc") is None:
        return {}
    library = folder / "clock.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-x", "c", "-o", library, "-", "-ldl"], input=CLOCK, text=True, check=True
    )
    return {"LD_PRELOAD": str(library), "CLOCK_SKEW": "3600"}


@pytest.mark.slow
def test_machines_that_die_join_and_leave_lose_and_double_nothing(
    tmp_path: Path, tiny_models: Path, slowed: dict[str, str], draw: Callable, rows_of: Callable
) -> None:
    archive, results = tmp_path / "archive", tmp_path / "results"
    paths = draw(archive, 320)
    hungry = paths[200]
    hungry.write_bytes(hungry.read_bytes() + b"HUNGRY-HERE")
    skew = skewed_clock(tmp_path)
    with ray_nodes(slowed) as nodes:
        nodes.head()
        dies, notified = nodes.add(), nodes.add(env=skew)
        night = begin(nodes, archive, tiny_models, results, "--actors", "2:3")
        night.await_parts(4)
        dies.kill()
        joins = nodes.add()
        until = time.monotonic() + 120
        while not joins.actors() and time.monotonic() < until:
            time.sleep(0.1)
        assert joins.actors(), "the node that joined got no work"
        nodes.drain(notified, 3)
        time.sleep(3)
        notified.terminate()
        code, answer, errors = night.end()
    assert code == 0, errors
    assert "Traceback" not in errors and answer["scored"] == len(paths) - 1
    rows = rows_of(results)
    assert Counter(row["image_uri"] for row in rows) == {str(path): 1 for path in paths}
    assert {row["image_uri"]: row["error_code"] for row in rows if row["error_code"]} == {
        str(hungry): "decoder_crashed"
    }
    ahead = {round((row["scored_at"].timestamp() - time.time()) / 3600) for row in rows}
    assert ahead == ({0, 1} if skew else {0})


@pytest.mark.slow
def test_a_lost_head_ends_the_night_in_words_and_another_ray_goes_on(
    tmp_path: Path, tiny_models: Path, slowed: dict[str, str], nightread: Callable, draw: Callable, rows_of: Callable
) -> None:
    archive, results = tmp_path / "archive", tmp_path / "results"
    paths = draw(archive, 120)
    with ray_nodes(slowed) as nodes:
        head = nodes.head(cpus=1)
        night = begin(nodes, archive, tiny_models, results)
        night.await_parts(4)
        head.send(signal.SIGSTOP, "ray.scripts.scripts")  # else it ends the daemon, on which the command depends too
        assert head.send(signal.SIGKILL, "gcs_server")
        code, answer, errors = night.end()
        address = nodes.address
    assert code == answer["exit_code"] == 75, errors
    assert "Traceback" not in errors
    assert answer["error"]["message"].startswith("The head of the Ray cluster at ")
    assert answer["error"]["message"].endswith(f"{address.rpartition(':')[2]} has not answered for 8 seconds.")
    assert "goes on from the finished shards" in answer["error"]["cure"]
    finished = len(list(results.glob("runs/*/parts/*.parquet")))
    arguments = ["score", archive, "--model", f"{tiny_models}/cells", "--results", results, "--shard-size", SHARD_SIZE]
    done = nightread(*arguments, "--json")
    assert done.code == 0, done.err
    assert done.answer["resumed"] and done.answer["scored"] == len(paths) and finished >= 4
    assert Counter(row["image_uri"] for row in rows_of(results)) == {str(path): 1 for path in paths}
