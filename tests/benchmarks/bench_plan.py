"""Plan a large listing against an equally large table: seconds, memory, and the right answer.

`python tests/benchmarks/bench_plan.py [--rows 10000000]` prints one JSON value. Of the listing 1 in 1,000 images is
new, 1 in 1,000 has changed, 1 in 10,000 failed for a passing reason; a second round plans everything (another model).
Target on two cores at 10,000,000 rows: under 60 s and under 4 GiB, each round.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.archive.plan import PlanKey, make_plan

TARGET_SECONDS = 60.0
TARGET_BYTES = 4 << 30
SHARD, GROUP = 64, 1024
CHUNK = 500_000
KEY = PlanKey("0123456789abcdef" * 4, "fedcba9876543210" * 4, "float32")


def uris_of(numbers: np.ndarray) -> pa.Array:
    """Names of images as hospitals have them, 73 letters each."""
    text = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 10, "0")
    folder = pc.utf8_lpad(pa.array(numbers // 100).cast(pa.string()), 8, "0")
    return pc.binary_join_element_wise(
        "/mnt/pacs/images/patient", folder, "/study-20260101/series/image", text, ".jpg", ""
    )


def versions_of(numbers: np.ndarray) -> pa.Array:
    """Size and time, as local files have them."""
    return pc.binary_join_element_wise(
        "180342-17952346874", pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 10, "0"), ""
    )


def write_listing(path: Path, rows: int) -> None:
    """Every image; number n has changed where n % 1000 is 1."""
    with pq.ParquetWriter(path, pa.schema([("image_uri", pa.string()), ("image_version", pa.string())])) as out:
        for start in range(0, rows, CHUNK):
            numbers = np.arange(start, min(start + CHUNK, rows))
            versions = versions_of(np.where(numbers % 1000 == 1, numbers + rows, numbers))
            out.write_table(pa.table({"image_uri": uris_of(numbers), "image_version": versions}))


def write_table(folder: Path, rows: int) -> list[str]:
    """As many rows, number n % 1000 == 0 being of images that are gone; n % 10000 == 2 failed for want of access."""
    files = []
    for start in range(0, rows, CHUNK):
        numbers = np.arange(start, min(start + CHUNK, rows))
        failed = pa.array(numbers % 10_000 == 2)
        count = len(numbers)
        table = pa.table(
            {
                "image_uri": uris_of(np.where(numbers % 1000 == 0, numbers + rows, numbers)),
                "image_version": versions_of(numbers),
                "status": pc.if_else(failed, "failed", "scored"),
                "error_code": pc.if_else(failed, "permission", pa.scalar(None, pa.string())),
                "model_id": pa.array([KEY.model_id] * count).dictionary_encode().cast(pa.string()),
                "preprocessing_id": pa.array([KEY.preprocessing_id] * count),
                "precision": pa.array([KEY.precision] * count),
                "score": pa.array(np.random.default_rng(start).random(count, np.float32)),
            }
        )
        files.append(str(folder / f"part-{start:010d}.parquet"))
        pq.write_table(table, files[-1], compression="zstd")
    return files


def measured(listing: Path, files: list[str], out: Path, key: PlanKey, answers: Any) -> None:
    """One plan in this process."""
    began = time.monotonic()
    plan = make_plan(
        listing,
        files,
        None,
        key,
        shard_size=SHARD,
        rows_per_group=GROUP,
        limit=None,
        rescore=False,
        retry_failed=False,
        out_path=out,
    )
    seconds = time.monotonic() - began
    answers.put((plan, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def in_a_process(*arguments: Any) -> Any:
    """Its memory is then its own."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=measured, args=(*arguments, answers))
    process.start()
    answer = answers.get()
    process.join()
    return answer


def check_file(out: Path, planned: int) -> None:
    """Row groups, shards and order of a plan."""
    file = pq.ParquetFile(out)
    assert file.metadata.num_rows == planned
    assert all(file.metadata.row_group(i).num_rows == GROUP for i in range(file.metadata.num_row_groups - 1))
    shards = pq.read_table(out, columns=["shard"]).column("shard").to_numpy()
    assert (shards == np.arange(planned) // SHARD).all()
    last = ""
    for batch in file.iter_batches(columns=["image_uri"]):
        uris = batch.column(0)
        assert last < uris[0].as_py()
        assert pc.all(pc.less(uris[:-1], uris[1:])).as_py()
        last = uris[-1].as_py()


def main() -> None:
    """Draw, plan twice, check, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    assert rows % 10_000 == 0, "a multiple of 10,000 keeps the answer simple"
    told: dict[str, Any] = {"rows": rows}
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as name:
        folder = Path(name)
        listing, out = folder / "listing.parquet", folder / "plan.parquet"
        write_listing(listing, rows)
        files = write_table(folder, rows)
        new, changed = rows // 1000 + rows // 10_000, rows // 1000
        for round_name, key, expected in (
            ("night", KEY, (rows, new, changed, rows - new - changed, new + changed)),
            ("another model", PlanKey("other", "other", "int8"), (rows, rows - changed, changed, 0, rows)),
        ):
            plan, seconds, peak = in_a_process(listing, files, out, key)
            found = (plan.found, plan.new, plan.changed, plan.unchanged, plan.planned)
            assert found == expected, (found, expected)
            check_file(out, plan.planned)
            told[round_name] = {
                "seconds": round(seconds, 1),
                "peak_resident_mib": peak >> 20,
                "planned": plan.planned,
                "met": seconds < TARGET_SECONDS and peak < TARGET_BYTES,
            }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
