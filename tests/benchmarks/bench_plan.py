"""Plan a large listing against an equally large table: seconds, memory, and the right answer.

`python tests/benchmarks/bench_plan.py [--rows 10000000]` prints one JSON value; seconds of the processor, over all
threads, tell on a busy machine what seconds of the clock do not. Of the listing 1 in 1,000 images is
new, 1 in 1,000 has changed, 1 in 10,000 failed for a passing reason, and 1 in 1,000 of the table is gone. The rounds:
an ordinary night without and with the question what is gone; a night of another model, and one of another version of
this model, so that everything is planned; a mount that was moved, so that everything is new and everything gone; a
restored archive in which every file has another time, planned with what was said of its bytes before.
Target on two cores at 10,000,000 rows: under 60 s and under 4 GiB, each round; the last, under 120 s.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.archive.listing import ListingFilter
from pipelines.archive.plan import ArchiveScope, Plan, PlanKey, make_plan
from pipelines.archive.plan_writing import PREVIOUS

TARGET_SECONDS = 60.0
TARGET_SECONDS_SAME_BYTES = 120.0
TARGET_BYTES = 4 << 30
SHARD, GROUP = 64, 1024
CHUNK = 500_000
ROOT = "/mnt/pacs"
KEY = PlanKey("0123456789abcdef" * 4, "fedcba9876543210" * 4, "float32", "tissue")


@dataclass(frozen=True)
class Round:
    """One plan and what must come out.

    Attributes:
        name: Of the round.
        key: The model.
        expected: Fields of the plan.
        scope: The archive's root where it is asked what is gone.
        listing: Which listing: as it was, below another mount, or with other times.
        same_bytes: Whether the plan is to tell of the bytes before.
        seconds: The target.
    """

    name: str
    key: PlanKey
    expected: Mapping[str, int]
    scope: str | None = None
    listing: str = "listing"
    same_bytes: bool = False
    seconds: float = TARGET_SECONDS


def rounds_of(rows: int) -> list[Round]:
    """The rounds and their answers, for a multiple of 10,000 rows."""
    lost = changed = rows // 1000
    new = rows // 1000 + rows // 10_000
    night = {"new": new, "changed": changed, "unchanged": rows - new - changed, "planned": new + changed}
    # The rows that failed for a passing reason are no answer, and so none that could be gone.
    known = rows - rows // 10_000
    promoted = {"new": new, "changed": changed, "rescored_for_model": rows - new - changed, "planned": rows}
    return [
        Round("night", KEY, night),
        Round("night, what is gone", KEY, {**night, "known": known, "gone": lost}, ROOT),
        Round("another model", PlanKey("other", "other", "int8", "other"), {"new": rows - changed, "changed": changed}),
        Round("another version", replace(KEY, model_id="v2"), {**promoted, "known": known, "gone": lost}, ROOT),
        Round("moved mount", KEY, {"new": rows, "known": known, "gone": known}, "/mnt", "moved"),
        Round(
            "other times",
            KEY,
            {"new": new, "changed": rows - new, "known": known, "gone": lost},
            ROOT,
            "restored",
            same_bytes=True,
            seconds=TARGET_SECONDS_SAME_BYTES,
        ),
    ]


def uris_of(numbers: np.ndarray, root: str = ROOT) -> pa.Array:
    """Names of images as hospitals have them, 73 letters each."""
    text = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 10, "0")
    folder = pc.utf8_lpad(pa.array(numbers // 100).cast(pa.string()), 8, "0")
    return pc.binary_join_element_wise(
        f"{root}/images/patient", folder, "/study-20260101/series/image", text, ".jpg", ""
    )


def versions_of(numbers: np.ndarray) -> pa.Array:
    """Size and time, as local files have them."""
    return pc.binary_join_element_wise(
        "180342-17952346874", pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 10, "0"), ""
    )


def write_listing(path: Path, rows: int, root: str = ROOT, others_than: int = 1000) -> None:
    """Every image; number n has another version than in the table where n % others_than is 1 (1: every one)."""
    with pq.ParquetWriter(path, pa.schema([("image_uri", pa.string()), ("image_version", pa.string())])) as out:
        for start in range(0, rows, CHUNK):
            numbers = np.arange(start, min(start + CHUNK, rows))
            versions = versions_of(np.where(numbers % others_than == 1 % others_than, numbers + rows, numbers))
            out.write_table(pa.table({"image_uri": uris_of(numbers, root), "image_version": versions}))


def hashes_of(count: int, seed: int) -> pa.Array:
    """As many SHA-256 in hexadecimal: text that cannot be packed."""
    text = pa.py_buffer(np.random.default_rng(seed).bytes(32 * count).hex().encode())
    return pa.StringArray.from_buffers(count, pa.py_buffer(np.arange(0, 64 * count + 1, 64, np.int32)), text)


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
                "model_name": pa.array([KEY.model_name] * count),
                "model_id": pa.array([KEY.model_id] * count),
                "preprocessing_id": pa.array([KEY.preprocessing_id] * count),
                "precision": pa.array([KEY.precision] * count),
                "content_sha256": hashes_of(count, start),
                "predicted_class": pa.array(["benign"] * count),
                **{
                    name: pa.array(np.random.default_rng(start).random(count, np.float32))
                    for name in ("mean_intensity", "score", "p_benign", "p_malignant", "p_positive")
                },
                "run_id": pa.array(["20260101T000000-01234567"] * count),
                "scored_at": pa.array(numbers, pa.timestamp("us", tz="UTC")),
            }
        )
        files.append(str(folder / f"part-{start:010d}.parquet"))
        pq.write_table(table, files[-1], compression="zstd")
    return files


def measured(folder: Path, files: list[str], planned: Round, answers: Any) -> None:
    """One plan in this process."""
    began = time.monotonic()
    plan = make_plan(
        folder / f"{planned.listing}.parquet",
        files,
        None,
        planned.key,
        shard_size=SHARD,
        rows_per_group=GROUP,
        limit=None,
        rescore=False,
        retry_failed=False,
        same_bytes=planned.same_bytes,
        scope=None if planned.scope is None else ArchiveScope(planned.scope, ListingFilter()),
        out_folder=folder,
    )
    seconds = time.monotonic() - began
    answers.put((plan, seconds, time.process_time(), peak_bytes()))


def peak_bytes() -> int:
    """The most memory that this process has had; getrusage would tell the parent's where that is more."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def in_a_process(*arguments: Any) -> Any:
    """Its memory is then its own."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=measured, args=(*arguments, answers))
    process.start()
    answer = answers.get()
    process.join()
    return answer


def check_file(plan: Plan, same_bytes: bool) -> None:
    """Row groups, shards, order and, where it was asked for, what was said of the bytes before."""
    file = pq.ParquetFile(plan.paths[0])
    assert file.metadata.num_rows == plan.planned
    assert all(file.metadata.row_group(i).num_rows == GROUP for i in range(file.metadata.num_row_groups - 1))
    before, descents, told = 0, 0, 0
    last = ""
    for batch in file.iter_batches(columns=["shard", "image_uri", *([f"{PREVIOUS}.score"] if same_bytes else [])]):
        assert (batch.column(0).to_numpy() == np.arange(before, before + batch.num_rows) // SHARD).all()
        uris = pa.concat_arrays([pa.array([last]), batch.column(1)])
        descents += batch.num_rows - pc.less(uris[:-1], uris[1:]).true_count
        told += batch.num_rows - batch.column(2).null_count if same_bytes else 0
        before, last = before + batch.num_rows, batch.column(1)[-1].as_py()
    # What is new comes first, then, in the same order, what another version has scored.
    assert descents == (1 if plan.backfilled else 0)
    assert told == (plan.changed if same_bytes else 0)


def main() -> None:
    """Draw, plan every round in a process of its own, check, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    assert rows % 10_000 == 0, "a multiple of 10,000 keeps the answer simple"
    told: dict[str, Any] = {"rows": rows}
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as name:
        folder = Path(name)
        write_listing(folder / "listing.parquet", rows)
        write_listing(folder / "moved.parquet", rows, root="/mnt/pac2")
        write_listing(folder / "restored.parquet", rows, others_than=1)
        files = write_table(folder, rows)
        for each in rounds_of(rows):
            plan, seconds, processor, peak = in_a_process(folder, files, each)
            found = {field: getattr(plan, field) for field in each.expected}
            assert found == each.expected, (each.name, found, each.expected)
            check_file(plan, each.same_bytes)
            told[each.name] = figures = {
                "seconds": round(seconds, 1),
                "processor_seconds": round(processor, 1),
                "peak_resident_mib": peak >> 20,
                "planned": plan.planned,
                "met": seconds < each.seconds and peak < TARGET_BYTES,
            }
            print(each.name, figures, file=sys.stderr)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
