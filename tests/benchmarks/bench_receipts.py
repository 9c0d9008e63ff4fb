"""How many receipts one driver takes: many actors that score nothing, on the driver's real path, and its memory.

    python tests/benchmarks/bench_receipts.py [--actors 200] [--images 4000000] [--offered 26000]

A manifest of images that are not there is planned and staged as ever, and `Finisher.finish` scores the run on a joined
Ray of four nodes: the real graph, blocks, pool, plan, tally, timings and progress file. Only the actors' `ShardScorer`
is a stand-in: it waits as long as a kernel of this speed would take for the shard, then gives its receipt; no part is
written, and the run ends before its gate. All actors together offer `--offered` images a second; a driver that keeps up
takes as many. Prints one JSON line; the steady rate is `score`'s own, from the receipt after which every actor has
answered to the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests/integration"), str(CHECKOUT / "tests/benchmarks")]
from fault_lab import make_models  # noqa: E402
from ray_nodes import ray_nodes  # noqa: E402

TARGET_RATE = 20_000
TARGET_GROWTH = 100 * 1024**2
NODES = 4
SHARD_SIZE = 64


class Scored(Exception):
    """All receipts have come: the run would be committed now."""


class Driver:
    """Follows one run from the driver: images, memory, processor time."""

    def __init__(self) -> None:
        self.course: list[tuple[float, int, int, float]] = []
        self._done = 0
        self._left = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def tell(self, progress: Any) -> None:
        """Take what the command tells."""
        self._done = progress.done
        if progress.phase == "committing":
            self._left.set()
            raise Scored

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._left.wait(0.5):
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
            used = resource.getrusage(resource.RUSAGE_SELF)
            self.course.append((time.monotonic(), self._done, resident, used.ru_utime + used.ru_stime))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--actors", type=int, default=200)
    parser.add_argument("--images", type=int, default=4_000_000)
    parser.add_argument("--offered", type=float, default=26_000.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="receipts-") as name:
        answer = run(Path(name), options)
    print(json.dumps({"what": "receipts"} | answer))
    if answer["images_per_second"] < TARGET_RATE or answer["grown_bytes"] > TARGET_GROWTH:
        raise SystemExit("the driver does not keep up, or its memory grows")


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Plan, stage and score the run; its figures."""
    from cluster.session import start_or_join
    from pipelines.predictions import commit
    from pipelines.scoring.config import PoolSize, ScoreConfig
    from pipelines.scoring.finish import Finisher
    from pipelines.scoring.hours import Closing
    from pipelines.scoring.night import open_night, planned_work
    from pipelines.scoring.staging import stage_runs
    from pipelines.storage.leases import Lease

    manifest = folder / "worklist.parquet"
    write_manifest(manifest, options.images)
    config = ScoreConfig(
        archive=str(manifest),
        model=f"{make_models(folder)}/cells",
        results=str(folder / "results"),
        pool=PoolSize(options.actors, options.actors),
        commit_every=options.images,
        shard_size=SHARD_SIZE,
        engine="direct",
    )
    driver = Driver()
    night = open_night(config, driver.tell)
    with Lease.acquire(night.results) as lease, nodes_of(options) as nodes:
        commit.ensure_table(night.results, lease)
        with planned_work(night, None, None) as planned:
            ((run_folder, record),) = stage_runs(night, planned, lease)
        os.environ.update({name: nodes.environment[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")})
        began = time.monotonic()
        with Finisher(night, lease, lambda: start_or_join(nodes.address), Closing(None), None) as finisher:
            try:
                finisher.finish(run_folder, record)
            except Scored:
                ended = time.monotonic()
    return figures(driver, began, ended, options)


def nodes_of(options: argparse.Namespace) -> Any:
    """Nodes that have cores enough for the actors, as Ray sees them."""
    import contextlib

    injector = CHECKOUT / "tests/end_to_end/injector"
    seconds = options.actors * SHARD_SIZE / options.offered
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTREAD_", "RAY_"))}
    # Two hundred processes that do nothing take 26 GB; what is never touched may be swapped out, and nobody is killed.
    faults = {"FAULTS": "receipts", "FAULT_SECONDS": str(seconds), "RAY_memory_monitor_refresh_ms": "0"}

    @contextlib.contextmanager
    def started() -> Any:
        with ray_nodes({**kept, "PYTHONPATH": f"{injector}{os.pathsep}{CHECKOUT}", **faults}) as nodes:
            nodes.head()
            for _ in range(NODES):
                nodes.add(cpus=-(-options.actors // NODES))
            yield nodes

    return started()


def write_manifest(place: Path, images: int) -> None:
    """A worklist with versions of its own: nothing is listed, and nothing is looked at."""
    schema = pa.schema([("uri", pa.string()), ("image_version", pa.string())])
    with pq.ParquetWriter(place, schema) as writer:
        for start in range(0, images, 100_000):
            numbers = range(start, min(start + 100_000, images))
            uris = [f"folder{number // 1000:05d}/image{number:08d}.jpg" for number in numbers]
            writer.write_table(pa.table([uris, ["1-1"] * len(uris)], schema=schema))


def figures(driver: Driver, began: float, ended: float, options: argparse.Namespace) -> dict[str, Any]:
    """The rate and what it costs, from the middle of what was told: the pool is whole and work is left."""
    scoring = [point for point in driver.course if began < point[0] < ended and point[1]]
    # From when the rate reaches nine tenths of its best until the last twentieth, where actors run out of work.
    best, window = 0.0, 20
    for first, last in zip(scoring, scoring[window:], strict=False):
        best = max(best, (last[1] - first[1]) / (last[0] - first[0]))
    steady = next(
        place
        for place, (first, last) in enumerate(zip(scoring, scoring[window:], strict=False))
        if (last[1] - first[1]) / (last[0] - first[0]) >= 0.9 * best
    )
    kept = [point for point in scoring[steady:] if point[1] <= 0.95 * options.images]
    first, last = kept[0], kept[-1]
    images, seconds = last[1] - first[1], last[0] - first[0]
    return {
        "actors": options.actors,
        "images": options.images,
        "offered_per_second": options.offered,
        "images_per_second": round(images / seconds),
        "steady_seconds": round(seconds, 1),
        "whole_seconds": round(ended - began, 1),
        "driver_cores": round((last[3] - first[3]) / seconds, 2),
        "driver_microseconds_an_image": round((last[3] - first[3]) / images * 1e6, 1),
        "resident_bytes": [point[2] for point in kept[:: max(1, len(kept) // 10)]],
        "grown_bytes": last[2] - first[2],
    }


if __name__ == "__main__":
    main()
