"""Nights at the scale of an archive: nothing new among 100,000 rows, and a driver whose memory stays flat.

    python tests/benchmarks/bench_night.py [--rows 100000] [--planned 1000000] [--skip-planned]

nothing_new   100,000 files on disk, all in the table: seconds of `nightread score`, and whether Ray was started
planned       a manifest of 10,000 and one of 1,000,000 images that are not there, each of which becomes a committed
              row: the driver's largest private memory in both, and the rows that the table then holds
help          seconds of `nightread --help`, the median of five

Prints one JSON line each; ends with an error where an answer is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT), "TF_CPP_MIN_LOG_LEVEL": "3"}
NIGHTREAD = [sys.executable, "-m", "jobs"]

MAKE_TABLE = """
import datetime, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
from pipelines.archive.listing import ListingFilter, list_archive
from pipelines.models.registry import resolve
from pipelines.predictions.commit import commit_run, ensure_table
from pipelines.predictions.schema import prediction_schema
archive, model, results, temporary = sys.argv[1:5]
bundle = resolve(model)
listing = list_archive(archive, ListingFilter(), temporary + "/listing.parquet")
rows = pq.read_table(listing.path)
schema = prediction_schema(bundle.classes, None)
n = rows.num_rows
given = {"run_id": "20260101T000000-made", "frame": 0, "frames": 1, "status": "scored", "predicted_class": "benign",
    "model_id": bundle.model_id, "model_name": bundle.name, "preprocessing_id": bundle.preprocessing_id,
    "precision": "float32", "scored_date": datetime.date(2026, 1, 1),
    "scored_at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)}
columns = [rows[f.name] if f.name in rows.column_names else
    pa.repeat(pa.scalar(given[f.name], f.type), n) if f.name in given else pa.nulls(n, f.type) for f in schema]
ensure_table(results)
commit_run(results, "20260101T000000-made", schema, pa.table(columns, schema=schema).to_batches(), lambda: None)
"""


def score(*arguments: object) -> tuple[dict, float, float]:
    """Run `nightread score --json`; returns its answer, seconds, and its process's largest private memory in MB."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as notes:
        process = subprocess.Popen(
            [*NIGHTREAD, "score", *map(str, arguments), "--json"], env=ENVIRONMENT, stdout=answer, stderr=notes
        )
        largest = 0.0
        while process.poll() is None:
            largest = max(largest, private_mb(process.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        answer.seek(0)
        notes.seek(0)
        text = answer.read()
        if not text:
            raise SystemExit(notes.read().decode()[-3000:])
    return json.loads(text), seconds, largest


def private_mb(pid: int) -> float:
    """Private (anonymous) memory of a process in MB; 0 where it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def nothing_new(folder: Path, models: Path, rows: int) -> dict:
    """A night on an archive of which every image is in the table."""
    archive, results = folder / "archive", folder / "results"
    for number in range(rows):
        path = archive / f"{number // 1000:04d}" / f"{number:07d}.jpg"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    script = folder / "make_table.py"
    script.write_text(MAKE_TABLE)
    subprocess.run(
        [sys.executable, str(script), str(archive), f"{models}/bench", str(results), str(folder)],
        env=ENVIRONMENT,
        check=True,
    )
    found = []
    for _ in range(3):
        answer, seconds, _ = score(archive, "--model", f"{models}/bench", "--results", results)
        if (answer["found"], answer["new"], answer["changed"], answer["unchanged"]) != (rows, 0, 0, rows):
            raise SystemExit(f"wrong answer: {answer}")
        found.append(seconds)
    return {"what": "nothing_new", "rows": rows, "seconds": statistics.median(found)}


def planned(folder: Path, models: Path, rows: int) -> dict:
    """A night of images that are listed and not there: each becomes a row, none costs a kernel."""
    manifest, results = folder / f"list-{rows}.csv", folder / f"results-{rows}"
    with manifest.open("w") as file:
        file.write("uri\n")
        file.writelines(f"nowhere/{number // 1000:04d}/{number:07d}.jpg\n" for number in range(rows))
    arguments = (manifest, "--model", f"{models}/bench", "--results", results, "--fail-threshold", "100%")
    answer, seconds, largest = score(*arguments)
    if (answer["failed_by_code"], answer["exit_code"]) != ({"not_found": rows}, 0):
        raise SystemExit(f"wrong answer: {answer}")
    query = [
        *NIGHTREAD,
        "query",
        str(results),
        "SELECT count(*) AS n, count(DISTINCT image_uri) AS d FROM rows",
        "--json",
    ]
    counted = json.loads(subprocess.run(query, env=ENVIRONMENT, capture_output=True, check=True).stdout)
    if counted != [{"n": rows, "d": rows}]:
        raise SystemExit(f"wrong rows: {counted}")
    return {"what": "planned", "rows": rows, "seconds": seconds, "driver_private_mb": largest}


def help_seconds() -> dict:
    """How long `nightread --help` takes."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([*NIGHTREAD, "--help"], env=ENVIRONMENT, capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    return {"what": "help", "seconds": statistics.median(times)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--planned", type=int, default=1_000_000)
    parser.add_argument("--skip-planned", action="store_true")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "nightread-bench" / "models")
    options = parser.parse_args()
    if not (options.models / "bench").exists():
        raise SystemExit("Run bench_score.py first: it makes the model.")
    print(json.dumps(help_seconds()), flush=True)
    with tempfile.TemporaryDirectory(prefix="nightread-night-") as folder:
        print(json.dumps(nothing_new(Path(folder), options.models, options.rows)), flush=True)
        if not options.skip_planned:
            few = planned(Path(folder), options.models, 10_000)
            many = planned(Path(folder), options.models, options.planned)
            many["more_than_10000_mb"] = many["driver_private_mb"] - few["driver_private_mb"]
            print(json.dumps(few), flush=True)
            print(json.dumps(many), flush=True)


if __name__ == "__main__":
    main()
