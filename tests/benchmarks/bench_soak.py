"""Nights in a loop for hours, most with a fault: what must not grow does not, and the table is right at the end.

    python tests/benchmarks/bench_soak.py [--hours 2] [--images 4000] [--seed N] [--faults A,B]
                                          [--folder DIR] [--out FILE]

Before each night images arrive, are changed, are damaged and are deleted; the archive holds five nights' worth. Each
night has one of the faults below, by a seeded choice, and the same command is repeated until it ends with 0, as a timer
would. After each night the table is read through its log by other means than ours: every version of every image that
ever was there must be there exactly once. Every process of the loop carries a mark in its environment, so that one
that stays behind is found whatever its parent.

Writes one JSON line a night (its fault, exit codes, seconds, the largest resident memory of driver and of an actor in
MB, open files of the driver, processes, and what was left: processes, temporary files, shared memory in MB), then one
of the whole. Ends with an error where rows are lost or doubled, something is left, an exit code is not an honest one,
or memory, open files or processes of the last third of the nights exceed those of the first by more than a tenth. The
driver's memory may grow with the table besides, by what planning and publishing hold for a moment.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]
from soak_world import (  # noqa: E402
    LONGEST_NIGHT,
    Peaks,
    Watch,
    World,
    kill,
    left_behind,
    parts,
    run,
    score_words,
    start,
    wait_for_parts,
    workers,
)  # fmt: skip

from tests.conftest import MAKE_MODEL  # noqa: E402

GROWTH = 1.1
# What a row of the table may add to the driver's largest memory: DuckDB's buffers, which have a limit of their own.
ROW_MB = 1.5e-3

# Each fault is given the running command; it may also say with which variables the command is started.
Fault = Callable[[World, "subprocess.Popen[str]"], None]


def nothing(world: World, process: subprocess.Popen[str]) -> None:
    """A night as it should be."""


def killed(world: World, process: subprocess.Popen[str]) -> None:
    """kill -9 of driver and actors at any moment."""
    time.sleep(world.chance.uniform(0.5, 25))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def driver_killed(world: World, process: subprocess.Popen[str]) -> None:
    """kill -9 of the driver alone, in the middle of the scoring; its Ray has to end by itself."""
    if wait_for_parts(world, process, world.chance.randrange(1, 40)):
        kill(process.pid)


def stopped(world: World, process: subprocess.Popen[str]) -> None:
    """SIGTERM or Ctrl-C in the middle of the scoring."""
    if wait_for_parts(world, process, world.chance.randrange(1, 40)):
        kill(process.pid, world.chance.choice([signal.SIGTERM, signal.SIGINT]))


def actor_killed(world: World, process: subprocess.Popen[str]) -> None:
    """kill -9 of an actor, as the kernel does when memory is short."""
    for count in (2, 20):
        if wait_for_parts(world, process, count):
            for pid in workers(world, b"MapWorker")[:1]:
                kill(pid)


def node_killed(world: World, process: subprocess.Popen[str]) -> None:
    """kill -9 of Ray's daemon of the only node."""
    if wait_for_parts(world, process, 5):
        for pid in workers(world, b"raylet/raylet"):
            kill(pid)


def archive_away(world: World, process: subprocess.Popen[str]) -> None:
    """The share is gone for some seconds."""
    if wait_for_parts(world, process, world.chance.randrange(1, 20)):
        away = world.folder / "away"
        world.archive.rename(away)
        time.sleep(world.chance.uniform(1, 8))
        away.rename(world.archive)


def archive_lost(world: World, process: subprocess.Popen[str]) -> None:
    """The share is gone until the command has given up (its patience is 3 s here instead of five minutes)."""
    if wait_for_parts(world, process, world.chance.randrange(1, 20)):
        away = world.folder / "away"
        world.archive.rename(away)
        world.archive.mkdir()
        while process.poll() is None:
            time.sleep(0.05)
        world.archive.rmdir()
        away.rename(world.archive)


def part_damaged(world: World, process: subprocess.Popen[str]) -> None:
    """A power cut that leaves a part of which half is zeros."""
    if wait_for_parts(world, process, 10):
        os.killpg(process.pid, signal.SIGKILL)
        for path in parts(world)[:1]:
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def two_at_once(world: World, process: subprocess.Popen[str]) -> None:
    """The timer fires twice."""
    if wait_for_parts(world, process, 1):
        other = start(world, *score_words(world))
        _, errors = other.communicate(timeout=LONGEST_NIGHT)
        if other.returncode not in (0, 75):
            raise SystemExit(f"the second command ended with {other.returncode}: {errors[-2000:]}")


FAULTS: dict[str, tuple[Fault, dict[str, str]]] = {
    "none": (nothing, {}),
    "killed": (killed, {}),
    "driver_killed": (driver_killed, {}),
    "stopped": (stopped, {}),
    "actor_killed": (actor_killed, {}),
    "node_killed": (node_killed, {}),
    "archive_away": (archive_away, {}),
    "archive_lost": (archive_lost, {"FAULTS": "hasty", "FAULT_PATIENCE": "3"}),
    "part_damaged": (part_damaged, {}),
    "disk_full": (nothing, {"FAULTS": "full", "FAULT_AFTER": "15"}),
    "two_at_once": (two_at_once, {}),
}
HONEST = {
    "none": {0}, "actor_killed": {0}, "archive_away": {0}, "two_at_once": {0, 75}, "stopped": {0, 130, 143},
    "killed": {0, -9}, "driver_killed": {0, -9}, "part_damaged": {0, -9}, "node_killed": {0, 75},
    "archive_lost": {0, 75}, "disk_full": {0, 2, 75},
}  # fmt: skip


def one_night(world: World, fault: str) -> dict[str, Any]:
    """Cause the fault, then repeat the command until it ends with 0."""
    cause, extra = FAULTS[fault]
    peaks, codes = Peaks(), []
    began = time.monotonic()
    process = start(world, *score_words(world), **extra)
    with Watch(world, process.pid, peaks):
        threading.Thread(target=cause, args=(world, process), daemon=True).start()
        _, errors = process.communicate(timeout=LONGEST_NIGHT)
    codes.append(process.returncode)
    if process.returncode not in HONEST[fault] or "Traceback" in errors:
        raise SystemExit(f"{fault} ended with {process.returncode}: {errors[-3000:]}")
    while world.archive.exists() is False:  # the thread is putting it back
        time.sleep(0.05)
    while codes[-1] != 0:
        time.sleep(1.0)
        process = start(world, *score_words(world))
        with Watch(world, process.pid, peaks):
            _, errors = process.communicate(timeout=LONGEST_NIGHT)
        codes.append(process.returncode)
        if process.returncode not in (0, 75) or len(codes) > 20:
            raise SystemExit(f"after {fault} the same command ended with {codes}: {errors[-3000:]}")
    return {"codes": codes, "seconds": round(time.monotonic() - began, 1), **vars(peaks)}


def keep_house(world: World, night: int) -> str | None:
    """Now and then what a person does: take the last run back and score it again, clean up, verify."""
    if night % 10 == 4:
        runs = json.loads(run(world, "runs", "list", world.results, "--json"))
        last = [one["run_id"] for one in runs if one["status"] == "committed"][-1]
        run(world, "runs", "rollback", world.results, last)
        run(world, *score_words(world))
        return "rollback"
    if night % 10 == 7:
        run(world, "runs", "clean", world.results, "--compact", "--force", "--older-than", "0s")
        return "clean"
    if night % 10 == 9:
        run(world, "runs", "verify", world.results, "--deep")
        return "verify"
    return None


def loop(world: World, faults: list[str], hours: float, images: int, out: Any) -> dict[str, Any]:
    """Nights until the time is over."""
    ends = time.monotonic() + hours * 3600
    nights: list[dict[str, Any]] = []
    order: list[str] = []
    while time.monotonic() < ends:
        night = len(nights)
        if not order:
            order = world.chance.sample(faults, len(faults))
        world.change(night, images)
        fault = "none" if night == 0 else order.pop()
        told = {"night": night, "fault": fault, **one_night(world, fault), "rows": world.check_table()}
        if house := keep_house(world, night):
            told["house"] = house
            world.check_table()
        told |= left_behind(world)
        nights.append(told)
        print(json.dumps(told), file=out, flush=True)
    return _judged(nights)


def _judged(nights: list[dict[str, Any]]) -> dict[str, Any]:
    third = max(1, len(nights) // 3)
    flat = {}
    for name in ("driver_mb", "actor_mb", "driver_files", "processes"):
        first = statistics.median(one[name] for one in nights[:third])
        last = statistics.median(one[name] for one in nights[-third:])
        rows = nights[-1]["rows"] - nights[0]["rows"] if name == "driver_mb" else 0
        met = last <= GROWTH * first + ROW_MB * rows
        flat[name] = {"first_third": round(first, 1), "last_third": round(last, 1), "met": met}
    # A driver that was killed with -9 cannot remove Ray's folder; whatever else is left is ours.
    left = sum(one["left_processes"] + one["left_in_runs"] for one in nights)
    return {
        "nights": len(nights),
        "faults": dict(Counter(one["fault"] for one in nights)),
        "rows": nights[-1]["rows"],
        "commands": sum(len(one["codes"]) for one in nights),
        "flat": flat,
        "left": left,
        "left_files_by_kills": len(nights[-1]["left_files"]),
        "met": left == 0 and all(one["met"] for one in flat.values()),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--faults", default=",".join(FAULTS), help="Which of them, with a comma between.")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir=options.folder))
    world = World(folder, mark=f"{os.getpid()}-{time.time_ns()}", chance=random.Random(options.seed))
    (folder / "tmp").mkdir()
    script = folder / "make.py"
    script.write_text(MAKE_MODEL)
    subprocess.run([sys.executable, str(script), str(folder / "models")], env=world.environment, check=True)
    out = options.out.open("w") if options.out else sys.stdout
    try:
        answer = loop(world, options.faults.split(","), options.hours, options.images, out)
    finally:
        for pid in world.marked():
            kill(pid)
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(answer), file=out, flush=True)
    if not answer["met"]:
        raise SystemExit("something grows, or was left")


if __name__ == "__main__":
    main()
