"""`score --same-bytes` over files that were touched, against `sha256sum` over the same files in the same run.

    python tests/benchmarks/bench_same_bytes.py [--images 100000] [--bytes 20000] [--folder DIR]

Makes files of random bytes, which nothing here decodes, and a table that knows each of them with these very bytes and
another time. Then the command reads them all; every row must be the old answer with the new version. `sha256sum` runs
as many at a time as there are cores, 500 files each, before and after. Target: 0.8 of its rate, both without their
start.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from bench_score import ENVIRONMENT, MAKE_BUNDLE, draw_images, run_script

from pipelines.models.bundle import Bundle
from pipelines.models.registry import resolve
from pipelines.predictions import commit
from pipelines.predictions.query import run_query
from pipelines.predictions.schema import prediction_schema

TARGET = 0.8
BATCH = 10_000


def make_files(folder: Path, count: int, size: int) -> list[Path]:
    """Files of random bytes, a thousand in a folder; those that are there stay."""
    random = np.random.default_rng(3)
    paths = []
    for number in range(count):
        path = folder / f"{number // 1000:04d}" / f"{number:07d}.jpg"
        if not number % 1000:
            path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(random.bytes(size))
        paths.append(path)
    return paths


def old_rows(paths: list[Path], bundle: Bundle) -> Iterator[pa.RecordBatch]:
    """What the table knows of the files."""
    schema = prediction_schema(bundle.classes, None)
    now = datetime.datetime.now(datetime.UTC)
    fixed = {
        "run_id": "old", "frame": 0, "frames": 1, "width": 9, "height": 9, "mean_intensity": 0.5, "status": "scored",
        "predicted_class": "benign", "decision": "negative", "in_training_set": False, "model_name": bundle.name,
        "model_id": bundle.model_id, "preprocessing_id": bundle.preprocessing_id, "precision": "float32",
        "decoder": "simplejpeg", "scored_at": now, "scored_date": now.date(), "image_version": "1-1",
    }  # fmt: skip
    for start in range(0, len(paths), BATCH):
        some = paths[start : start + BATCH]
        share = pa.array(np.linspace(0, 1, len(some), dtype=np.float32))
        columns = {name: pa.array([fixed.get(name)] * len(some), schema.field(name).type) for name in schema.names}
        columns["image_uri"] = pa.array([str(path) for path in some])
        columns["content_sha256"] = pa.array([hashlib.sha256(path.read_bytes()).hexdigest() for path in some])
        columns |= dict.fromkeys(("score", "p_benign", "p_malignant", "p_positive"), share)
        yield pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def hash_rate(folder: Path, count: int) -> float:
    """Files a second of `sha256sum` on every core."""
    cores = len(os.sched_getaffinity(0))
    began = time.perf_counter()
    done = subprocess.run(
        f"find . -name '*.jpg' -print0 | xargs -0 -P {cores} -n 500 sha256sum | wc -l",
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    if int(done.stdout) != count:
        raise SystemExit("sha256sum did not read every file")
    return count / (time.perf_counter() - began)


def main() -> None:
    """Measure, check the answers and print one JSON value."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--bytes", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nightread-bench")
    options = parser.parse_args()
    models = options.folder / "models"
    draw_images(options.folder / "images-32", 32)
    models.mkdir(parents=True, exist_ok=True)
    if not (models / "bench").exists():
        run_script(MAKE_BUNDLE, str(models), str(options.folder / "images-32" / "00000.jpg"))
    archive = options.folder / f"bytes-{options.bytes}-{options.images}"
    paths = make_files(archive, options.images, options.bytes)
    with tempfile.TemporaryDirectory() as folder:
        results = f"{folder}/results"
        commit.ensure_table(results)
        bundle = resolve(f"{models}/bench")
        schema = prediction_schema(bundle.classes, None)
        commit.commit_run(results, "old", schema, old_rows(paths, bundle), lambda: None)
        before = hash_rate(archive, len(paths))
        command = [sys.executable, "-m", "jobs", "score", str(archive), "--model", f"{models}/bench"]
        done = subprocess.run(
            [*command, "--results", results, "--same-bytes", "--json"],
            env=ENVIRONMENT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        answer = json.loads(done.stdout)
        after = hash_rate(archive, len(paths))
        same = run_query(
            results,
            "SELECT count(*) AS n FROM rows a JOIN rows b USING (image_uri, content_sha256, score, p_positive) "
            f"WHERE a.run_id = 'old' AND b.run_id = '{answer['run_id']}' AND b.image_version <> a.image_version",
        )["n"][0].as_py()
    ratio = answer["images_per_second"] / ((before + after) / 2)
    print(
        json.dumps(
            {
                "images": len(paths),
                "bytes": options.bytes,
                "kept": answer["kept"],
                "images_per_second": answer["images_per_second"],
                "seconds": answer["seconds"],
                "sha256sum_per_second": [before, after],
                "of_sha256sum": ratio,
            }
        )
    )
    if same != len(paths) or answer["kept"] != len(paths) or answer["failed"]:
        raise SystemExit(f"{len(paths) - same} answers were not kept")
    if ratio < TARGET:
        raise SystemExit(f"{ratio:.2f} of sha256sum's rate, not {TARGET}")


if __name__ == "__main__":
    main()
