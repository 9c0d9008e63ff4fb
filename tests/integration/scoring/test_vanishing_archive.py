"""Actors whose archive is taken away while they score it, and actors that are told to start no further shard."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SCRIPT = """
import os, sys, threading, time
from collections import Counter
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from cluster.session import start_or_join
from pipelines.errors import IMAGE_ERRORS
from pipelines.predictions.runs import RunFolder
from pipelines.scoring import graph, parts
from pipelines.scoring.features import CacheKernel, CacheModel
from pipelines.scoring.scorer import FeatureMaker, ShardWork
from pipelines.scoring.vanished import ArchiveLost
from pipelines.storage import files
from pipelines.storage.reading import local_version

archive, results = Path(sys.argv[1]), sys.argv[2]
PIXELS, SIZE = CacheModel(None, None, 48, "uint8"), 4
paths = sorted(archive.iterdir())
paths[60].unlink()  # after the plan: a row, whatever else happens

class Slow:
    def __call__(self, model):
        kernel = CacheKernel(PIXELS, None)(model)
        def slow(prepared):
            time.sleep(0.01)
            return kernel(prepared)
        return slow

def run(name, patience, meanwhile, may_close=False):
    folder = RunFolder(results, name)
    Path(folder.root).mkdir(parents=True)
    shards = pa.array(np.arange(len(paths), dtype=np.int32) // 8)
    plan = pa.table({"shard": shards, "image_uri": [str(p) for p in paths], "image_version": ["1-1"] * len(paths)})
    pq.write_table(plan, folder.plan, row_group_size=8 * 16)
    work = ShardWork(folder, 1, SIZE, Slow(), FeatureMaker(48), str(archive), patience_seconds=patience,
                     may_close=may_close)
    receipts, error = [], None
    def on_receipt(receipt):
        receipts.append(receipt)
        if len(receipts) == 6:
            threading.Thread(target=meanwhile, args=(folder,)).start()
    with parts.open_plan(folder) as plan:
        try:
            graph.score_shards(work, b"", list(range(plan.shards)), plan, graph.Pool(2, 2), on_receipt)
        except ArchiveLost as lost:
            error = lost
    rows = [row for shard in sorted(folder.finished_shards()) for row in parts.read_part(folder, shard).to_pylist()]
    return receipts, error, Counter(row["error_code"] for row in rows), rows

away = archive.with_name("away")
def unmount(folder):
    archive.rename(away)
    archive.mkdir()

def unmount_for_a_while(folder):
    unmount(folder)
    time.sleep(1.5)
    archive.rmdir()
    away.rename(archive)

with start_or_join(os.environ["NIGHTREAD_SCORE_ADDRESS"]) as cluster:
    receipts, error, codes, rows = run("back", 60.0, unmount_for_a_while)
    assert error is None and codes == {None: len(paths) - 1, "not_found": 1}, (error, codes)
    assert [row["image_uri"] for row in rows] == [str(p) for p in paths]
    assert sum(receipt.storage_failed for receipt in receipts) == 1

    receipts, error, codes, rows = run("closing", 60.0, lambda folder: files.write_atomic(folder.closing, b""), True)
    assert error is None and codes[None] >= 8 * 6 - 1 and len(rows) < len(paths) // 2, codes
    # What was begun is finished, and every part has its receipt.
    assert len(rows) == sum(receipt.images for receipt in receipts)

    began = time.monotonic()
    receipts, error, codes, rows = run("lost", 1.0, unmount)
    assert time.monotonic() - began < 60
    assert error is not None and error.exit_code == 75 and "gone or empty" in error.message, error
    assert len(rows) >= 8 * 6 and len(rows) < len(paths) and set(codes) <= {None, "not_found"}
    assert codes["not_found"] <= 1
    assert {row["image_uri"] for row in rows if row["error_code"]} <= {str(paths[60])}
print("nothing lost")
"""


def test_an_archive_that_disappears_in_mid_run(
    tmp_path: Path, draw: Callable, environment: dict[str, str], shared_ray: Callable[[], dict[str, str]]
) -> None:
    draw(tmp_path / "archive", 240)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "archive"), str(tmp_path / "results")],
        env={**environment, **shared_ray()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nothing lost" in done.stdout
