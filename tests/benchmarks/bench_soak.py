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
import contextlib
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.dataset as ds
from deltalake import DeltaTable

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))
from tests.conftest import MAKE_MODEL  # noqa: E402

INJECTOR = CHECKOUT / "tests" / "end_to_end" / "injector"
COMMAND = [sys.executable, "-m", "jobs"]
MARK = "NIGHTREAD_SOAK_MARK"
NIGHTS_KEPT = 5
PAUSE = 0.2
GROWTH = 1.1
# What a row of the table may add to the driver's largest memory: DuckDB's buffers, which have a limit of their own.
ROW_MB = 1.5e-3
# After a command has ended: Ray's last processes see that its head is gone, and end.
SECONDS_TO_END = 20.0
LONGEST_NIGHT = 1200.0


@dataclass
class Peaks:
    """The most that was seen of one night."""

    driver_mb: float = 0.0
    actor_mb: float = 0.0
    driver_files: int = 0
    processes: int = 0


@dataclass
class World:
    """The archive, and all that its table must hold."""

    folder: Path
    mark: str
    chance: random.Random
    drawn: int = 0
    alive: list[list[Path]] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)

    @property
    def archive(self) -> Path:
        return self.folder / "archive"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("NIGHTREAD_", "RAY_", "AWS_"))}
        return {
            **kept, MARK: self.mark, "PYTHONPATH": str(CHECKOUT), "TF_CPP_MIN_LOG_LEVEL": "3",
            "TMPDIR": str(self.folder / "tmp"),
        }  # fmt: skip

    def write(self, path: Path, damaged: bool = False) -> None:
        """Draw an image that never was; one in two of the damaged ends too soon, the other is text."""
        self.drawn += 1
        coarse = np.random.default_rng(self.drawn).integers(0, 255, (9, 12, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC)
        data = cv2.imencode(".jpg", picture)[1].tobytes()
        if damaged:
            data = data[: len(data) // 2] if self.drawn % 2 else b"no image"
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.stat().st_mtime_ns if path.exists() else 0
        path.write_bytes(data)
        if path.stat().st_mtime_ns == before:
            os.utime(path, ns=(before + 1_000_000, before + 1_000_000))
        self.versions[str(path)] += 1

    def change(self, night: int, images: int) -> None:
        """One day: the oldest one goes, a twentieth of `images` is changed, the rest is new, one in 200 is damaged."""
        if len(self.alive) == NIGHTS_KEPT:
            shutil.rmtree(self.alive.pop(0)[0].parent)
        known = [path for day in self.alive for path in day]
        changed = self.chance.sample(known, min(len(known), images // 20))
        for path in changed:
            self.write(path)
        day = [self.archive / f"{night:05d}" / f"b{number:05d}.jpg" for number in range(images - len(changed))]
        for number, path in enumerate(day):
            self.write(path, damaged=number % 200 == 7)
        self.alive.append(day)

    def check_table(self) -> int:
        """Read the table's log and files; the number of rows, each of which must be one version of one image.

        Raises:
            SystemExit: If a row is missing, doubled or nobody's.
        """
        files = DeltaTable(str(self.results / "predictions")).file_uris()
        rows = ds.dataset(files).to_table(columns=["image_uri", "image_version"])
        pairs = rows.group_by(["image_uri", "image_version"]).aggregate([])
        counted = rows.group_by("image_uri").aggregate([([], "count_all")])
        found = dict(zip(counted["image_uri"].to_pylist(), counted["count_all"].to_pylist(), strict=True))
        wrong = {uri for uri in found.keys() | self.versions.keys() if found.get(uri, 0) != self.versions.get(uri, 0)}
        if wrong or pairs.num_rows != rows.num_rows:
            some = [(uri, found.get(uri, 0), self.versions.get(uri, 0)) for uri in sorted(wrong)[:3]]
            raise SystemExit(
                f"{rows.num_rows - pairs.num_rows} rows are there twice; {len(wrong)} images are not there as often as "
                f"they should, among them (image, rows, versions): {some}"
            )
        return rows.num_rows

    def marked(self) -> list[int]:
        """Processes of this loop that live."""
        found = []
        wanted = f"{MARK}={self.mark}".encode()
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or wanted not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                if (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                    found.append(int(entry.name))
            except OSError:
                continue
        return found


class Watch:
    """Looks at all marked processes, several times a second, while a command runs."""

    def __init__(self, world: World, driver: int, peaks: Peaks) -> None:
        self._world, self._driver, self._peaks = world, driver, peaks
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        peaks = self._peaks
        while not self._over.wait(PAUSE):
            pids = self._world.marked()
            peaks.processes = max(peaks.processes, len(pids))
            for pid in pids:
                try:
                    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
                    if pid == self._driver:
                        peaks.driver_mb = max(peaks.driver_mb, resident)
                        peaks.driver_files = max(peaks.driver_files, len(os.listdir(f"/proc/{pid}/fd")))
                    elif b"MapWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        peaks.actor_mb = max(peaks.actor_mb, resident)
                except OSError:
                    continue


def start(world: World, *arguments: object, **extra: str) -> subprocess.Popen[str]:
    environment = {**world.environment, **extra}
    if "FAULTS" in extra:
        environment["PYTHONPATH"] = os.pathsep.join([str(INJECTOR), environment["PYTHONPATH"]])
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=environment, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def score_words(world: World) -> list[object]:
    return [
        "score", world.archive, "--model", world.folder / "models" / "cells", "--results", world.results,
        "--max-changed", "100%", "--publish", world.folder / "published", "--json",
    ]  # fmt: skip


def parts(world: World) -> list[Path]:
    return list(world.results.glob("runs/*/parts/*.parquet"))


def wait_for_parts(world: World, process: subprocess.Popen[str], count: int) -> bool:
    while process.poll() is None and len(parts(world)) < count:
        time.sleep(0.01)
    return process.poll() is None


def workers(world: World, kind: bytes) -> list[int]:
    found = []
    for pid in world.marked():
        try:
            if kind in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


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


def run(world: World, *arguments: object) -> str:
    process = start(world, *arguments)
    out, errors = process.communicate(timeout=LONGEST_NIGHT)
    if process.returncode != 0:
        raise SystemExit(f"{arguments[:2]} ended with {process.returncode}: {out[-1000:]} {errors[-2000:]}")
    return out


def left_behind(world: World) -> dict[str, Any]:
    """What outlives a night: processes, temporary files, shared memory."""
    deadline = time.monotonic() + SECONDS_TO_END
    while (pids := world.marked()) and time.monotonic() < deadline:
        time.sleep(0.2)
    temporary = sorted(path.name for path in (world.folder / "tmp").iterdir())
    mine = [path for path in Path("/dev/shm").glob("plasma*") if path.stat().st_ctime > world_began]
    return {
        "left_processes": len(pids),
        "left_files": temporary,
        "shared_mb": round(sum(path.stat().st_size for path in mine) / 1e6, 1),
        "left_in_runs": len(parts(world)),
    }


world_began = time.time()


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
