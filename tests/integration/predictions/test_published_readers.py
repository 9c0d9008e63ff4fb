"""The published folder, read by other tools in a loop while the table beside it changes: each image once, always.

DuckDB and Polars open a file several times for one reading. When it is replaced in between, such a reading fails;
it never gives rows of both files.
"""

from __future__ import annotations

import datetime
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipelines.errors import LeaseLost
from pipelines.predictions import commit
from pipelines.predictions import publish as publishing
from pipelines.predictions.publish import publish
from pipelines.predictions.schema import prediction_schema

SCHEMAS = [prediction_schema(["a", "b"], None), prediction_schema(["c"], pa.schema([("site", pa.string())]))]
START = datetime.datetime(2026, 3, 1, 22, tzinfo=datetime.UTC)
IMAGES = 2000

READERS: dict[str, Callable[[Path], list[str]]] = {
    "pandas": lambda folder: pd.read_parquet(folder)["image_uri"].to_list(),
    "pyarrow": lambda folder: ds.dataset(folder).to_table(columns=["image_uri"]).column(0).to_pylist(),
    "duckdb": lambda folder: [
        row[0] for row in duckdb.connect().sql(f"SELECT image_uri FROM '{folder}/*.parquet'").fetchall()
    ],
    "polars": lambda folder: pl.read_parquet(folder)["image_uri"].to_list(),
}


def night(results: str, number: int, first: int, count: int) -> int:
    """Commit a run over some of the images."""
    when = START + datetime.timedelta(days=number)
    schema = SCHEMAS[number % 2]
    fixed = {"run_id": f"r{number}", "frame": 0, "status": "scored", "model_name": "m", "scored_at": when}
    whole = {**dict.fromkeys(schema.names), **fixed, "scored_date": when.date()}
    rows = [{**whole, "image_uri": f"/archive/{image:05d}"} for image in range(first, first + count)]
    return commit.commit_run(
        results, f"r{number}", schema, pa.Table.from_pylist(rows, schema).to_batches(), lambda: None
    )


class Reader(threading.Thread):
    """Reads a folder again and again.

    Attributes:
        counts: How many images each reading found.
        wrong: What went wrong, in words.
    """

    def __init__(self, folder: Path, read: Callable[[Path], list[str]]) -> None:
        super().__init__(daemon=True)
        self.counts: list[int] = []
        self.wrong: list[str] = []
        self._folder, self._read = folder, read
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Read until it is stopped, and once more after that."""
        while True:
            last = self._stop_asked.is_set()
            before = (self._folder / "latest.parquet").stat().st_ino
            try:
                found = self._read(self._folder)
            except Exception as error:
                if (self._folder / "latest.parquet").stat().st_ino == before:
                    self.wrong.append(f"{type(error).__name__}: {error}")
            else:
                repeated = [uri for uri, times in Counter(found).items() if times > 1]
                if repeated:
                    self.wrong.append(f"{len(repeated)} images several times")
                self.counts.append(len(found))
            if last:
                return

    def finish(self) -> None:
        """Let it read once more and wait for it."""
        self._stop_asked.set()
        self.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "published"


@pytest.fixture
def readers(folder: Path) -> Iterator[Callable[[], list[Reader]]]:
    """Starts one reader of each kind."""
    started: list[Reader] = []

    def start() -> list[Reader]:
        for read in READERS.values():
            started.append(Reader(folder, read))
            started[-1].start()
        return started

    yield start
    for reader in started:
        reader.finish()


def test_each_image_once_at_every_reading(tmp_path: Path, folder: Path, readers: Callable[[], list[Reader]]) -> None:
    """During commits, and after compaction, a roll-back and the removal of the old files."""
    results = str(tmp_path / "results")
    commit.ensure_table(results)
    publish(results, str(folder), night(results, 0, 0, IMAGES))
    running = readers()
    expected = [IMAGES]
    for number in range(1, 5):  # each night scores half of what is there again, and as much that is new
        publish(results, str(folder), night(results, number, number * IMAGES // 2, IMAGES))
        expected.append(IMAGES + number * IMAGES // 2)
    table = DeltaTable(f"{results}/predictions")
    table.optimize.compact()
    publish(results, str(folder), table.version())
    table.delete("run_id = 'r4'")
    publish(results, str(folder), table.version())
    expected.append(IMAGES + 3 * IMAGES // 2)
    table.vacuum(0, dry_run=False, enforce_retention_duration=False)
    publish(results, str(folder), DeltaTable(f"{results}/predictions").version())
    for reader in running:
        reader.finish()
        assert not reader.wrong
        assert set(reader.counts) <= set(expected) and reader.counts[-1] == expected[-1], reader.counts
    newest = Counter(pq.read_table(folder / "latest.parquet").column("run_id").to_pylist())
    assert newest == {"r0": 1000, "r1": 1000, "r2": 1000, "r3": 2000}


def test_in_a_bucket_the_object_is_replaced_whole(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    results, place = f"{s3.uri}/results", f"{s3.uri}/open data/ü"
    commit.ensure_table(results)
    for number in range(2):
        done = publish(results, place, night(results, number, number * 10, 20))
        assert (done.path, done.skipped) == (f"{place}/latest.parquet", False)
        found = pq.read_table(place.removeprefix("s3://"), filesystem=s3.filesystem).column("image_uri").to_pylist()
        assert len(found) == len(set(found)) == done.rows == 20 + 10 * number
    assert publish(results, place, 2).skipped
    write = publishing._write

    def slow(*arguments: Any) -> int:
        monkeypatch.setattr(publishing, "_write", write)
        rows = write(*arguments)
        publish(results, place, night(results, 2, 20, 20))
        return rows

    # Another process publishes the third night while this one is still writing the second anew.
    s3.filesystem.rm(f"{place}/latest.parquet")
    monkeypatch.setattr(publishing, "_write", slow)
    assert publish(results, place, 2).skipped

    def lost() -> None:
        raise LeaseLost("Another process has taken over.")

    with pytest.raises(LeaseLost):
        publish(results, place, night(results, 3, 30, 20), check=lost)
    s3.filesystem.invalidate_cache()
    found = pq.read_metadata(f"{place}/latest.parquet".removeprefix("s3://"), filesystem=s3.filesystem)
    assert (found.metadata[b"nightread_table_version"], found.num_rows) == (b"3", 40)
    assert s3.filesystem.find(place) == [f"{place}/latest.parquet".removeprefix("s3://")]
