"""Commit a large run, then ask the table about it: seconds, memory, and the right answer.

`python tests/benchmarks/bench_commit.py [--rows 10000000]` prints one JSON value. Target on two cores at 10,000,000
rows: the commit under 60 s and under 2 GiB resident.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.predictions import commit
from pipelines.predictions.query import run_query
from pipelines.predictions.schema import prediction_schema

TARGET_SECONDS = 60.0
TARGET_BYTES = 2 << 30
BATCH = 1024
SCHEMA = prediction_schema(["benign", "malignant"], pa.schema([("patient_id", pa.string())]))


class Rows:
    """A run's rows in batches as large as a row group of the plan.

    Args:
        rows: How many.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        random = np.random.default_rng(1)
        hashes = pa.array([random.bytes(32).hex() for _ in range(BATCH)])
        day = datetime.date(2026, 1, 1)
        moment = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        fixed: dict[str, object] = {
            "run_id": "bench", "frame": 0, "frames": 1, "width": 1024, "height": 768, "mean_intensity": 0.4,
            "status": "scored", "predicted_class": "malignant", "decision": "positive", "in_training_set": False,
            "model_name": "cells", "model_id": "ab" * 32, "preprocessing_id": "cd" * 32, "precision": "float32",
            "decoder": "simplejpeg", "scored_at": moment, "scored_date": day,
        }  # fmt: skip
        whole = {
            name: pa.array([fixed.get(name)] * BATCH, SCHEMA.field(name).type)
            for name in SCHEMA.names
            if name in fixed or name in ("error_code", "error_message")
        }
        for start in range(0, self._rows, BATCH):
            count = min(BATCH, self._rows - start)
            text = pc.utf8_lpad(pa.array(np.arange(start, start + count)).cast(pa.string()), 10, "0")
            share = pa.array(random.random(count, np.float32))
            columns = {name: column.slice(0, count) for name, column in whole.items()}
            columns["image_uri"] = pc.binary_join_element_wise(
                "/mnt/pacs/images/study-20260101/series", text, ".jpg", "/"
            )
            columns["image_version"] = pc.binary_join_element_wise("180342-1795234687", text, "")
            columns["content_sha256"] = hashes.slice(0, count)
            columns["patient_id"] = text
            columns |= dict.fromkeys(("score", "p_malignant", "p_positive"), share)
            columns["p_benign"] = pc.subtract(pa.scalar(1.0, pa.float32()), share)
            yield pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def seconds_of(results: str, sql: str) -> tuple[float, list[dict[str, Any]]]:
    """A question's time and answer."""
    began = time.monotonic()
    answer = run_query(results, sql).to_pylist()
    return round(time.monotonic() - began, 2), answer


def main() -> None:
    """Commit, ask, check, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="bench-commit-") as folder:
        results = str(Path(folder) / "results")
        commit.ensure_table(results)
        began = time.monotonic()
        for _ in Rows(rows):
            pass
        drawing = time.monotonic() - began
        began = time.monotonic()
        version = commit.commit_run(results, "bench", SCHEMA, Rows(rows), lambda: None)
        seconds = time.monotonic() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        again = time.monotonic()
        assert commit.commit_run(results, "bench", SCHEMA, Rows(rows), lambda: None) == version == 1
        told: dict[str, Any] = {
            "rows": rows,
            "seconds": round(seconds, 1),
            "of_which_drawing_rows": round(drawing, 1),
            "peak_resident_mib": peak >> 20,
            "met": seconds < TARGET_SECONDS and peak < TARGET_BYTES,
            "second_commit_seconds": round(time.monotonic() - again, 2),
        }
        told["count_seconds"], answer = seconds_of(
            results, "SELECT count(*) AS n, count(DISTINCT image_uri) AS images FROM rows"
        )
        assert answer == [{"n": rows, "images": rows}], answer
        told["latest_seconds"], answer = seconds_of(results, "SELECT count(*) AS n FROM latest")
        assert answer == [{"n": rows}], answer
        told["bytes_per_row"] = sum(Path(file).stat().st_size for file in commit.committed_files(results)) // rows
    print(json.dumps(told))


if __name__ == "__main__":
    main()
