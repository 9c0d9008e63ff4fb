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
def test_machines_that_die_and_join_and_a_lost_head_lose_and_double_nothing(
    tmp_path: Path, tiny_models: Path, slowed: dict[str, str], nightread: Callable, draw: Callable, rows_of: Callable
) -> None:
    archive, results = tmp_path / "archive", tmp_path / "results"
    paths = draw(archive, 240)
    hungry = paths[200]
    hungry.write_bytes(hungry.read_bytes() + b"HUNGRY-HERE")
    skew = skewed_clock(tmp_path)
    with ray_nodes(slowed) as nodes:
        head = nodes.head(cpus=1)
        dies = nodes.add(env=skew)
        night = begin(nodes, archive, tiny_models, results, "--actors", "2:2")
        until = time.monotonic() + 120
        while not dies.actors() and time.monotonic() < until:
            time.sleep(0.1)
        night.await_parts(8)
        dies.kill()
        joins = nodes.add()
        code, answer, errors = night.end()
        assert code == 0, errors
        assert "Traceback" not in errors and answer["scored"] == len(paths) - 1

        paths += draw(archive, 80, start=240)
        night = begin(nodes, archive, tiny_models, results)
        night.await_parts(4)
        head.send(signal.SIGSTOP, "ray.scripts.scripts")  # else it ends the daemon, on which the command depends too
        assert head.send(signal.SIGKILL, "gcs_server")
        code, answer, errors = night.end()
        assert joins.processes()
    assert code == answer["exit_code"] == 75, errors
    assert "Traceback" not in errors
    told = answer["error"]
    assert told["message"].startswith("The head of the Ray cluster at ")
    assert told["message"].endswith(f"{nodes.address.rpartition(':')[2]} has not answered for 8 seconds.")
    assert "goes on from the finished shards" in told["cure"]

    arguments = ["score", archive, "--model", f"{tiny_models}/cells", "--results", results, "--shard-size", SHARD_SIZE]
    done = nightread(*arguments, "--json")
    assert done.code == 0, done.err
    assert done.answer["resumed"] and done.answer["scored"] == 80
    rows = rows_of(results)
    assert Counter(row["image_uri"] for row in rows) == {str(path): 1 for path in paths}
    assert {row["image_uri"]: row["error_code"] for row in rows if row["error_code"]} == {
        str(hungry): "decoder_crashed"
    }
    ahead = {round((row["scored_at"].timestamp() - time.time()) / 3600) for row in rows}
    assert ahead == ({0, 1} if skew else {0})


@pytest.mark.slow
def test_a_ray_that_is_stopped_cleanly_ends_its_night_with_a_word(
    tmp_path: Path, tiny_models: Path, slowed: dict[str, str], draw: Callable
) -> None:
    """Ray gives a node half a minute, and then ends the drivers on it with a code that means a defect."""
    archive, results = tmp_path / "archive", tmp_path / "results"
    draw(archive, 400)
    with ray_nodes(slowed) as nodes:
        head = nodes.head(cpus=1)
        night = begin(nodes, archive, tiny_models, results)
        night.await_parts(2)
        assert head.send(signal.SIGTERM, "ray.scripts.scripts")
        code, answer, errors = night.end()
    assert code == answer["exit_code"] == 75, errors
    assert answer["error"]["message"] == "Ray is being stopped on this machine."
    assert len(list(results.glob("nights/*.json"))) == 1
