"""Kill -9 wherever it hurts: afterwards each image is in the table exactly once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "jobs"]
SHARD_SIZE, IMAGES_A_NIGHT = 4, 48
# A benchmark asks for more nights and other moments.
NIGHTS, SEED = int(os.environ.get("KILL_NIGHTS", "20")), int(os.environ.get("KILL_SEED", "2026"))
EVENTS = ("nothing", "lease", "plan", "part", "parts", "commit")
# One run, several runs, and runs whose time is over somewhere in the middle; none of it is part of the fingerprint, so
# that each night goes on with what any other one left.
OPTIONS = ([], ["--commit-every", "20"], ["--max-time", "5s"], ["--commit-every", "12", "--max-time", "6s"])


def happened(event: str, results: Path, before: dict[str, int]) -> bool:
    """Whether the event has happened since `before` was counted."""
    now = count(results)
    return {
        "nothing": True,
        "lease": now["leases"] > before["leases"],
        "plan": now["plans"] > before["plans"] or now["parts"] > 0,
        "part": now["parts"] >= 2,
        "parts": now["parts"] >= IMAGES_A_NIGHT // SHARD_SIZE,
        "commit": now["log"] > before["log"],
    }[event]


def count(results: Path) -> dict[str, int]:
    leases = [int(path.stem) for path in results.glob("leases/*.json") if path.stem.isdigit()]
    return {
        "leases": max(leases, default=0),
        "plans": len(list(results.glob("runs/*/plan.parquet"))),
        "parts": len(list(results.glob("runs/*/parts/*.parquet"))),
        "log": len(list(results.glob("predictions/_delta_log/*.json"))),
    }


def kill_group_at(event: str, delay: float, arguments: list[str], env: dict[str, str], results: Path) -> bool:
    """Start a command and kill its whole process group `delay` seconds after the event; False if it ended before."""
    before = count(results)
    process = subprocess.Popen(
        [*COMMAND, *arguments], env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while process.poll() is None and not happened(event, results, before):
        time.sleep(0.002)
    time.sleep(delay)
    ended = process.poll() is not None
    if not ended:
        os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert not ended or process.returncode == 0, errors.decode()[-3000:]
    return not ended


@pytest.mark.slow
def test_killed_at_twenty_seeded_moments(
    tmp_path: Path,
    tiny_models: Path,
    environment: dict[str, str],
    shared_ray: Callable[[], dict[str, str]],
    nightread: Callable,
    draw: Callable,
    rows_of: Callable,
) -> None:
    """Each event comes with a Ray of the night's own once in four times, else with one that outlives the night."""
    archive, results = tmp_path / "archive", tmp_path / "results"
    arguments = ["score", str(archive), "--model", f"{tiny_models}/cells", "--results", str(results)]
    arguments += ["--shard-size", str(SHARD_SIZE), "--json"]
    moments = random.Random(SEED)
    killed = 0
    for night in range(NIGHTS):
        draw(archive, IMAGES_A_NIGHT, start=night * IMAGES_A_NIGHT)
        event = EVENTS[night % len(EVENTS)]
        delay = moments.uniform(0, 4.0 if event == "nothing" else 0.25)
        joins = night // len(EVENTS) % 4 > 0
        env = {**environment, **(shared_ray() if joins else {})}
        killed += kill_group_at(event, delay, arguments + OPTIONS[night % len(OPTIONS)], env, results)
        if (results / "predictions" / "_delta_log").exists():
            seen = Counter(row["image_uri"] for row in rows_of(results))
            assert not seen or max(seen.values()) == 1, f"doubled after a kill at {event} + {delay:.3f} s"
    assert killed >= NIGHTS // 2  # those whose time is over in time need no kill
    last = nightread(*arguments)
    assert last.code == 0, last.err
    expected = {str(path): 1 for path in archive.iterdir()}
    assert len(expected) == NIGHTS * IMAGES_A_NIGHT
    rows = rows_of(results)
    assert Counter(row["image_uri"] for row in rows) == expected
    assert {row["status"] for row in rows} == {"scored"}
    again = nightread(*arguments)
    assert again.code == 0
    assert (again.answer["new"], again.answer["changed"], again.answer["scored"]) == (0, 0, 0)
    assert not list(results.glob("runs/*/parts/*.parquet"))


def children_of(pid: int) -> list[int]:
    """All descendants of a process."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                parents.setdefault(int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]), []).append(
                    int(entry.name)
                )
        except OSError:
            continue
    found, waiting = [], [pid]
    while waiting:
        below = parents.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def actors_of(pid: int) -> list[int]:
    found = []
    for child in children_of(pid):
        try:
            if b"MapWorker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
        except OSError:
            continue
    return found


def test_a_killed_actor_costs_no_image(
    tmp_path: Path, tiny_models: Path, environment: dict[str, str], draw: Callable, rows_of: Callable
) -> None:
    archive, results = tmp_path / "archive", tmp_path / "results"
    paths = draw(archive, 320)
    arguments = ["score", str(archive), "--model", f"{tiny_models}/cells", "--results", str(results)]
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--shard-size", "8", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    for parts in (2, 20):
        while process.poll() is None and len(list(results.glob("runs/*/parts/*.parquet"))) < parts:
            time.sleep(0.005)
        actors = actors_of(process.pid)
        assert actors, "no actor was found to be killed"
        os.kill(actors[0], signal.SIGKILL)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()[-3000:]
    rows = rows_of(results)
    assert Counter(row["image_uri"] for row in rows) == {str(path): 1 for path in paths}
    assert {row["status"] for row in rows} == {"scored"}, out


@pytest.mark.parametrize(("number", "code", "joins"), [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, True)])
def test_stopped_by_a_signal_and_continued(
    number: int,
    code: int,
    joins: bool,
    tmp_path: Path,
    tiny_models: Path,
    environment: dict[str, str],
    shared_ray: Callable[[], dict[str, str]],
    nightread: Callable,
    draw: Callable,
    rows_of: Callable,
) -> None:
    archive, results = tmp_path / "archive", tmp_path / "results"
    paths = draw(archive, 240)
    arguments = [
        "score",
        str(archive),
        "--model",
        f"{tiny_models}/cells",
        "--results",
        str(results),
        "--shard-size",
        "8",
    ]
    env = {**environment, **(shared_ray() if joins else {})}
    process = subprocess.Popen(
        [*COMMAND, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list(results.glob("runs/*/parts/*.parquet")):
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert "goes on from there" in errors
    finished = len(list(results.glob("runs/*/parts/*.parquet")))
    assert finished, "nothing was kept"
    left = nightread("runs", "show", results, "--json").answer
    assert left["state"] == "interrupted" and left["progress"]["total"] == len(paths)
    assert 0 <= left["progress"]["done"] <= 8 * finished  # it is written down every few seconds only
    done = nightread(*arguments, "--json")
    assert done.code == 0, done.err
    assert done.answer["resumed"] and done.answer["scored"] == len(paths)
    (record,) = (json.loads(path.read_bytes()) for path in results.glob("runs/*/run.json"))
    assert record["timings"]["images_before"] == 8 * finished
    assert not list(results.glob("runs/*/progress.json"))
    assert Counter(row["image_uri"] for row in rows_of(results)) == {str(path): 1 for path in paths}
