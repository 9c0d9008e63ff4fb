"""How fast an archive is listed into its Parquet file, and whether memory stays flat.

`python tests/benchmarks/bench_listing.py [--files 100000] [--keys 1000000]` prints one JSON value. A bucket is listed
at 30 ms a page: by one stream, by several, by several with ten times the keys, and once killed in its middle and begun
again. Each listing is compared with the keys that there are, by number and by a hash of all of them in their order.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from s3_stand_in import key_of, stand_in, tag_of

from pipelines.archive.listing import ListingFilter, list_archive
from pipelines.storage import bucket_listing

TARGETS = {"local": 100_000, "bucket": 100_000, "memory": 1.25}
DELAY_MS = 30
ROOT = "s3://bench"


def draw_files(folder: Path, files: int, in_a_folder: int) -> None:
    """Make empty image files."""
    for start in range(0, files, in_a_folder):
        inner = folder / f"patient{start // in_a_folder:06d}" / "study"
        inner.mkdir(parents=True)
        for number in range(start, min(start + in_a_folder, files)):
            os.close(os.open(inner / f"image{number:08d}.jpg", os.O_CREAT | os.O_WRONLY))


def measure(root: str, out: Path, kept_in: str | None) -> dict[str, float]:
    """List once in this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.perf_counter(), time.process_time()
    listing = list_archive(root, ListingFilter(), out, kept_in=kept_in)
    seconds = time.perf_counter() - began
    return {
        "rows": listing.found,
        "rows_per_second": round(listing.found / seconds),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "requests": listing.requests,
        "resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "grown_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
    }


def hash_of(rows: Iterable[tuple[str, str]]) -> str:
    """One hash of URIs and versions in their order."""
    found = hashlib.sha256()
    for uri, version in rows:
        found.update(f"{uri} {version}\n".encode())
    return found.hexdigest()


def rows_of(path: Path) -> Iterable[tuple[str, str]]:
    """A listing's rows, a few at a time."""
    for batch in pq.ParquetFile(path).iter_batches(65_536, columns=["image_uri", "image_version"]):
        yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)


def command_of(root: str, out: Path, streams: int, kept_in: str | None = None) -> list[str]:
    """The command line of a process that lists once."""
    command = [sys.executable, __file__, "--measure", root, "--out", str(out), "--streams", str(streams)]
    return [*command, "--kept-in", kept_in] if kept_in else command


def in_a_process(root: str, out: Path, streams: int = 8, kept_in: str | None = None) -> dict[str, float]:
    """Measure in a fresh process, so that its highest memory is this listing's."""
    done = subprocess.run(command_of(root, out, streams, kept_in), stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def local(folder: Path, files: int, in_a_folder: int) -> dict[str, float]:
    """List local files."""
    draw_files(folder / "archive", files, in_a_folder)
    found = in_a_process(str(folder / "archive"), folder / "o.parquet")
    uris = pq.read_table(folder / "o.parquet", columns=["image_uri"])["image_uri"]
    assert found["rows"] == len(uris) == pc.count_distinct(uris).as_py() == files
    return found


def bucket(folder: Path, keys: int, streams: int) -> dict[str, float]:
    """List a bucket."""
    with at_a_bucket(keys) as endpoint:
        found = in_a_process(ROOT, folder / "o.parquet", streams)
        cost = json.loads(urllib.request.urlopen(f"{endpoint}/cost").read())
    check(folder / "o.parquet", keys)
    return found | {"stand_in_pages": cost["pages"], "stand_in_cpu_seconds": round(cost["cpu_seconds"], 2)}


def killed_and_begun_again(folder: Path, keys: int) -> dict[str, float]:
    """Kill a listing when half of the pages were asked for, and list again."""
    kept = str(folder / "kept")
    with at_a_bucket(keys) as endpoint:

        def pages() -> int:
            return int(json.loads(urllib.request.urlopen(f"{endpoint}/cost").read())["pages"])

        with subprocess.Popen(command_of(ROOT, folder / "o.parquet", 8, kept), stdout=subprocess.DEVNULL) as process:
            while pages() < keys // 2000:
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        asked_before = pages()
        found = in_a_process(ROOT, folder / "o.parquet", 8, kept)
    check(folder / "o.parquet", keys)
    return found | {"pages_before_the_kill": asked_before}


@contextlib.contextmanager
def at_a_bucket(keys: int) -> Iterator[str]:
    """Point child processes at a stand-in; gives its address."""
    with stand_in(keys, DELAY_MS) as endpoint:
        os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        yield endpoint


def check(path: Path, keys: int) -> None:
    """Compare a listing with the keys that there are."""
    assert pq.read_metadata(path).num_rows == keys
    assert hash_of(rows_of(path)) == hash_of((f"{ROOT}/{key_of(n)}", tag_of(n)) for n in range(keys))


def main() -> None:
    """Measure small and large archives and compare with the targets."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--files", type=int, default=100_000)
    arguments.add_argument("--keys", type=int, default=1_000_000)
    arguments.add_argument("--measure")
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--streams", type=int, default=8)
    arguments.add_argument("--kept-in")
    given = arguments.parse_args()
    if given.measure:
        bucket_listing.STREAMS = given.streams
        print(json.dumps(measure(given.measure, given.out, given.kept_in)))
        return
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        measures: dict[str, Callable[[Path], dict[str, float]]] = {
            "local_many_folders": lambda folder: local(folder, given.files, 500),
            "local_one_folder": lambda folder: local(folder, given.files, given.files),
            "bucket_one_stream": lambda folder: bucket(folder, given.keys, 1),
            "bucket": lambda folder: bucket(folder, given.keys, 8),
            "bucket_ten_times": lambda folder: bucket(folder, given.keys * 10, 8),
            "bucket_killed": lambda folder: killed_and_begun_again(folder, given.keys),
        }
        for what, make in measures.items():
            (Path(name) / what).mkdir()
            results[what] = make(Path(name) / what)
            print(what, results[what], file=sys.stderr)
    reached = {
        "local": min(results["local_many_folders"]["rows_per_second"], results["local_one_folder"]["rows_per_second"]),
        "bucket": results["bucket"]["rows_per_second"],
        "memory": results["bucket_ten_times"]["resident_mb"] / results["bucket"]["resident_mb"],
    }
    passed = reached["memory"] <= TARGETS["memory"] and all(reached[n] >= TARGETS[n] for n in ("local", "bucket"))
    print(json.dumps({"results": results, "reached": reached, "targets": TARGETS, "passed": passed}, indent=1))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
