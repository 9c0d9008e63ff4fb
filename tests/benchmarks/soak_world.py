"""The world of `bench_soak.py`: its archive, what its table must hold, its processes and what they hold on to."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.dataset as ds
from deltalake import DeltaTable

CHECKOUT = Path(__file__).resolve().parents[2]
INJECTOR = CHECKOUT / "tests" / "end_to_end" / "injector"
COMMAND = [sys.executable, "-m", "jobs"]
MARK = "NIGHTREAD_SOAK_MARK"
NIGHTS_KEPT = 5
PAUSE = 0.2
# After a command has ended: where it was killed, Ray's agents may ask for their dead head for a minute, and then end.
SECONDS_TO_END = 75.0
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
    began: float = field(default_factory=time.time)

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
    mine = [path for path in Path("/dev/shm").glob("plasma*") if path.stat().st_ctime > world.began]
    return {
        "left_processes": len(pids),
        "left_files": temporary,
        "shared_mb": round(sum(path.stat().st_size for path in mine) / 1e6, 1),
        "left_in_runs": len(parts(world)),
    }
