"""The morning after a thousand nights: `runs show`, `runs list` and `runs check` as whole commands, and their answers.

`python tests/benchmarks/bench_morning.py [--rows 10000000] [--runs 1000]` makes results in a temporary folder (about
1 GB at 10,000,000 rows), one night a day up to now, the last of a million images, and prints one JSON value. Target on
two cores: each command under 3 s from its start to its end.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.predictions import commit
from pipelines.predictions.nights import NightRecord, write_night
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema

TARGET_SECONDS = 3.0
REPEATS = 3
BATCH = 10_000
SHARD = 64
SCHEMA = prediction_schema(["benign", "malignant"], None)
HASHES = pa.array([np.random.default_rng(1).bytes(32).hex() for _ in range(BATCH)])
WHO = {"user": "nightread", "host": "pacs", "command_line": ["nightread", "score"], "versions": {"ray": "2"}}
STAGES = {"read": 1.0, "decode": 4.0, "score": 5.0, "write": 0.1, "wait": 0.0}


class Night:
    """One night: its rows are drawn when they are asked for.

    Args:
        number: From 0.
        rows: Images.
        ended: UTC.
    """

    def __init__(self, number: int, rows: int, ended: datetime.datetime) -> None:
        self.started = ended - datetime.timedelta(hours=2)
        self.ended = ended
        self.run_id = f"{self.started:%Y%m%dT%H%M%S}-{number:08x}"
        self.rows = rows

    def names(self, start: int, count: int) -> pa.Array:
        """Names of some images."""
        text = pc.utf8_lpad(pa.array(np.arange(start, start + count)).cast(pa.string()), 8, "0")
        return pc.binary_join_element_wise(f"/mnt/pacs/images/{self.run_id}/series", text, "/")

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        fixed: dict[str, object] = {
            "run_id": self.run_id, "frame": 0, "frames": 1, "width": 1024, "height": 768, "mean_intensity": 0.4,
            "status": "scored", "predicted_class": "malignant", "decision": "positive", "model_name": "cells",
            "model_id": "ab" * 32, "preprocessing_id": "cd" * 32, "precision": "float32", "decoder": "simplejpeg",
            "scored_at": self.ended, "scored_date": self.started.date(),
        }  # fmt: skip
        for start in range(0, self.rows, BATCH):
            count = min(BATCH, self.rows - start)
            columns = {name: pa.array([fixed.get(name)] * count, SCHEMA.field(name).type) for name in SCHEMA.names}
            columns["image_uri"] = self.names(start, count)
            columns["content_sha256"] = HASHES.slice(0, count)
            columns["p_malignant"] = pa.array(np.random.default_rng(start).random(count, np.float32))
            numbers = np.arange(start, start + count)
            # Every hundredth is truncated, and the very last one of the night fails for a reason of its own.
            codes = np.where(numbers % 100 == 99, "truncated", "")
            codes = np.where(numbers == self.rows - 1, "decoder_crashed", codes)
            failed = pa.array(codes != "")
            columns["error_code"] = pc.if_else(failed, pa.array(codes.tolist()), pa.scalar(None, pa.string()))
            columns["status"] = pc.if_else(failed, "failed", "scored")
            yield pa.RecordBatch.from_pydict(columns, schema=SCHEMA)

    def keep(self, results: str) -> None:
        """Commit the night and write down what `score` writes."""
        version = commit.commit_run(results, self.run_id, SCHEMA, self, lambda: None)
        by_code = {"truncated": self.rows // 100 - (self.rows % 100 == 0), "decoder_crashed": 1}
        failed = sum(by_code.values())
        shards = -(-self.rows // SHARD)
        counts = {"found": self.rows, "new": self.rows, "planned": self.rows, "shards": shards}
        counts |= {"scored": self.rows - failed, "failed": failed}
        slowest = [
            {"shard": shard, "row": 3, "seconds": 9.0 - shard % 20 / 10} for shard in range(0, shards, shards // 20)
        ]
        timings = {
            "listing_seconds": 60.0, "planning_seconds": 9.0, "starting_seconds": 3.0, "scoring_seconds": 7000.0,
            "committing_seconds": 5.0, "seconds": 7100.0, "images_per_second": self.rows / 7000, "images_before": 0,
            "stages": {stage: 1000 * seconds for stage, seconds in STAGES.items()}, "slowest": slowest[:20], "nodes": 1,
            "cores": 2, "node_hours": 2.0, "core_hours": 3.0,
            "rate_over_time": [[58.0 * step, 1.5] for step in range(1, 121)],
        }  # fmt: skip
        configuration = {"archive": "/mnt/pacs", "model_name": "cells", "fail_threshold": "5%"}
        told = {**counts, "failed_by_code": by_code}
        folder = RunFolder(results, self.run_id)
        folder.write_record(
            RunRecord(self.run_id, "f", configuration, told, timings, WHO, version, "committed", self.started)
        )
        plan = pa.table(
            {
                "shard": pa.array(np.arange(self.rows) // SHARD, pa.int32()),
                "image_uri": self.names(0, self.rows),
                "image_version": pa.array(["180342-1795234687"] * self.rows),
            }
        )
        pq.write_table(plan, folder.plan, row_group_size=16 * SHARD, compression="zstd")
        night = NightRecord(
            self.started, self.ended, 0, "/mnt/pacs", "cells", None, (self.run_id,), counts, 1.5, version, None, WHO
        )
        write_night(results, night)


def make(results: str, rows: int, runs: int) -> list[Night]:
    """The nights, committed one after the other; the last one has a tenth of all images."""
    commit.ensure_table(results)
    last = rows // 10
    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    each, more = divmod(rows - last, runs - 1)
    nights = []
    for number in range(runs):
        size = last if number == runs - 1 else each + (number < more)
        nights.append(Night(number, size, now - datetime.timedelta(days=runs - 1 - number)))
        nights[-1].keep(results)
        if number % 100 == 99:
            print(f"{number + 1} nights", file=sys.stderr, flush=True)
    return nights


def run(*arguments: str) -> str:
    """What a whole command prints."""
    return subprocess.run([sys.executable, "-m", "jobs", *arguments], capture_output=True, text=True, check=True).stdout


def seconds_of(*arguments: str) -> tuple[float, float]:
    """A whole command's seconds by the clock and of the processor, each the median of some."""
    clock, processor = [], []
    for _ in range(REPEATS):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        run(*arguments)
        clock.append(time.monotonic() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return round(statistics.median(clock), 2), round(statistics.median(processor), 2)


def check(results: str, nights: list[Night], rows: int) -> None:
    """The answers are right."""
    last, middle = nights[-1], nights[len(nights) // 2]
    for night, arguments in ((last, ()), (middle, (middle.run_id,))):
        shown = json.loads(run("runs", "show", results, *arguments, "--json"))
        assert shown["run_id"] == night.run_id and shown["state"] == "committed"
        examples = {code: [one["image_uri"] for one in found] for code, found in shown["failure_examples"].items()}
        truncated = set(night.names(0, night.rows).to_pylist()[99:-1:100])
        assert len(set(examples["truncated"])) == 3 and truncated.issuperset(examples["truncated"]), examples
        assert examples["decoder_crashed"] == [night.names(night.rows - 1, 1)[0].as_py()], examples
        assert len(shown["slowest_images"]) == 20 and all(one["image_uri"] for one in shown["slowest_images"])
    listed = json.loads(run("runs", "list", results, "--json"))
    assert sum(record["counts"]["scored"] + record["counts"]["failed"] for record in listed) == rows
    assert [record["run_id"] for record in listed] == [night.run_id for night in nights]
    assert run("runs", "check", results, "--max-age", "26h").startswith("NIGHTREAD OK")


def main() -> None:
    """Make, check, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-morning-") as folder:
        results = str(Path(folder) / "results")
        began = time.monotonic()
        nights = make(results, given.rows, given.runs)
        told: dict[str, Any] = {"rows": given.rows, "runs": given.runs, "making": round(time.monotonic() - began, 1)}
        check(results, nights, given.rows)
        commands = {
            "show": ("show", results),
            "show_earlier": ("show", results, nights[len(nights) // 2].run_id),
            "show_html": ("show", results, "--html", str(Path(folder) / "night.html")),
            "list": ("list", results),
            "check": ("check", results, "--max-age", "26h"),
        }
        for name, arguments in commands.items():
            told[name], told[f"{name}_processor"] = seconds_of("runs", *arguments)
        told["met"] = max(told["show"], told["show_earlier"], told["check"]) < TARGET_SECONDS
    print(json.dumps(told))


if __name__ == "__main__":
    main()
