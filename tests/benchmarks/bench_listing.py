"""How fast an archive is listed into its Parquet file, and whether memory stays flat.

`python tests/benchmarks/bench_listing.py [--files 100000] [--keys 1000000]` prints one JSON value.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from s3_stand_in import key_of, stand_in, tag_of

from pipelines.archive.listing import ListingFilter, list_archive

TARGETS = {"local": 100_000, "bucket": 200_000}


def draw_files(folder: Path, files: int, in_a_folder: int) -> None:
    """Make empty image files."""
    for start in range(0, files, in_a_folder):
        inner = folder / f"patient{start // in_a_folder:06d}" / "study"
        inner.mkdir(parents=True)
        for number in range(start, min(start + in_a_folder, files)):
            os.close(os.open(inner / f"image{number:08d}.jpg", os.O_CREAT | os.O_WRONLY))


def measure(root: str, expected: int) -> dict[str, float]:
    """List once in this process and check the answer's size."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "listing.parquet"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        listing = list_archive(root, ListingFilter(), out)
        seconds = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        uris = pq.read_table(out, columns=["image_uri"])["image_uri"]
        assert listing.found == len(uris) == expected, (listing, len(uris))
        assert pc.count_distinct(uris).as_py() == expected
        if root.startswith("s3://"):
            table = pq.read_table(out)
            for number in (0, expected // 2, expected - 1):
                row = table.slice(number, 1).to_pylist()[0]
                assert row == {"image_uri": f"{root}/{key_of(number)}", "image_version": tag_of(number)}, row
    return {"rows": expected, "rows_per_second": round(expected / seconds), "grown_mb": (after - before) // 1024}


def in_a_process(root: str, expected: int, environment: dict[str, str]) -> dict[str, float]:
    """Measure in a fresh process, so that its highest memory is this listing's."""
    command = [sys.executable, __file__, "--measure", root, "--expected", str(expected)]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure small and large archives and compare with the targets."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--files", type=int, default=100_000)
    arguments.add_argument("--keys", type=int, default=1_000_000)
    arguments.add_argument("--measure")
    arguments.add_argument("--expected", type=int, default=0)
    given = arguments.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.expected)))
        return
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, in_a_folder in (("local_many_folders", 500), ("local_one_folder", given.files)):
            draw_files(Path(folder) / name, given.files, in_a_folder)
            results[name] = in_a_process(str(Path(folder) / name), given.files, {})
    for name, keys in (("bucket_tenth", given.keys // 10), ("bucket", given.keys)):
        with stand_in(keys) as endpoint:
            environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
            results[name] = in_a_process("s3://bench", keys, environment)
    reached = {
        "local": min(results["local_many_folders"]["rows_per_second"], results["local_one_folder"]["rows_per_second"]),
        "bucket": results["bucket"]["rows_per_second"],
    }
    passed = all(reached[kind] >= target for kind, target in TARGETS.items())
    print(json.dumps({"results": results, "targets": TARGETS, "passed": passed}, indent=1))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
