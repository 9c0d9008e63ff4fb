"""Publish a large table as one Parquet file, then tell it that its archive has moved: seconds and memory of each.

`python tests/benchmarks/bench_publish.py [--rows 10000000] [--nights 1]` prints one JSON value. With two nights every
image has two rows, of which the newer is published. Target on two cores at 10,000,000 rows: the publication under 60 s
and under 2 GiB resident.
"""

from __future__ import annotations

import argparse
import datetime
import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_commit import SCHEMA, Rows

from pipelines.predictions import commit

TARGET_SECONDS = 60.0
TARGET_BYTES = 2 << 30
CHECKOUT = Path(__file__).resolve().parents[2]

# In a process of its own, so that its memory is its own.
MEASURED = """
import json, resource, sys, time
from pipelines.predictions.publish import publish
from pipelines.predictions.rebase import rebase
what, *places = sys.argv[1:]
began = time.monotonic()
done = publish(*places[:2], int(places[2])) if what == "publish" else rebase(*places, {})
seconds = time.monotonic() - began
used = resource.getrusage(resource.RUSAGE_SELF)
cpu = round(used.ru_utime + used.ru_stime, 1)
told = {"rows": done.rows, "seconds": round(seconds, 1), "cpu_seconds": cpu, "peak_resident_mib": used.ru_maxrss >> 10}
print(json.dumps(told))
"""


class Night(Rows):
    """Rows of one night with a hash of its own for each file: as wide on the disk as real ones.

    Args:
        rows: How many.
        number: Which night.
    """

    def __init__(self, rows: int, number: int) -> None:
        super().__init__(rows)
        self.run_id = f"night-{number}"
        self._moment = datetime.datetime(2026, 1, 1 + number, tzinfo=datetime.UTC)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in super().__iter__():
            count = batch.num_rows
            columns = dict(zip(SCHEMA.names, batch.columns, strict=True))
            hashes = np.frombuffer(secrets.token_hex(32 * count).encode(), "S64")
            columns["content_sha256"] = pa.array(hashes).cast(pa.string())
            columns["run_id"] = pa.array([self.run_id] * count)
            columns["scored_at"] = pa.array([self._moment] * count, SCHEMA.field("scored_at").type)
            columns["scored_date"] = pa.array([self._moment.date()] * count)
            yield pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def measured(*arguments: object) -> dict[str, Any]:
    """Figures of one action."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Commit, publish, check, rebase, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--nights", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-publish-") as folder:
        results, out = str(Path(folder) / "results"), Path(folder) / "out"
        commit.ensure_table(results)
        for number in range(asked.nights):
            night = Night(asked.rows, number)
            commit.commit_run(results, night.run_id, SCHEMA, night, lambda: None)
        published = measured("publish", results, out, asked.nights)
        file = pq.ParquetFile(out / "latest.parquet")
        assert file.metadata.num_rows == published["rows"] == asked.rows
        newest = pq.read_table(out / "latest.parquet", columns=["run_id"]).column(0).unique().to_pylist()
        assert newest == [f"night-{asked.nights - 1}"], newest
        published["bytes_per_row"] = (out / "latest.parquet").stat().st_size // asked.rows
        peak = published["peak_resident_mib"] << 20
        told = {
            "rows": asked.rows * asked.nights,
            "publish": published,
            "met": published["seconds"] < TARGET_SECONDS and peak < TARGET_BYTES,
            "rebase": measured("rebase", results, "/mnt/pacs", "/mnt/moved"),
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
