"""Listing a bucket by several streams: odd keys, failing and odd servers, and a process that is killed meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from key_server import key_server, tag_of

from pipelines.archive.listing import ListingFilter, list_archive
from pipelines.storage import files, paths
from pipelines.storage.throttle import Throttle

LISTING = """
import sys
from pipelines.archive.listing import ListingFilter, list_archive
from pipelines.storage.throttle import Throttle
list_archive("s3://b/in", ListingFilter(), sys.argv[1], throttle=Throttle(60), kept_in=sys.argv[2])
"""


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Point this process and its children at an endpoint."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    return lambda endpoint: monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)


def odd_keys(count: int) -> dict[str, int]:
    """Keys of all shapes: flat, deep, in many writings, some of which obstore cannot express; a tenth are empty."""
    source = random.Random(4)
    shapes = (
        lambda n: f"in/{n:06d}.jpg",
        lambda n: f"in/{source.getrandbits(60):015x}.jpg",
        lambda n: f"in/2024/{n % 12:02d}/1.2.840.{n // 40}/{n} é漢😀.jpg",
        lambda n: f"in/e\u0301 #%?&+/'\"[{n}]\\.jpg",
    )
    objects = {shapes[n % 4](n): 0 if n % 10 == 0 else n for n in range(count)}
    for n in range(0, count, count // 5):
        objects |= {f"in/two//{n}.jpg": 3, f"in/tab\t{n}.jpg": 3, f"in/{n:06d}/": 0, f"in/2024/x{n}/": 0}
    return objects | {"in/": 0, "in.jpg": 5, "in-side.jpg": 5, "in0.jpg": 5}


def expected(objects: dict[str, int]) -> list[tuple[str, str]]:
    inside = sorted(key for key in objects if key.startswith("in/") and key.endswith(".jpg"))
    return [(f"s3://b/{paths.escape_name(key)}", tag_of(key)) for key in inside]


def rows(path: Path) -> list[tuple[str, str]]:
    table = pq.read_table(path)
    return list(zip(table["image_uri"].to_pylist(), table["image_version"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    "faults", [("--fail-share", "0.2"), ("--ignore-start",), ("--unsorted", "--fail-share", "0.1")]
)
def test_every_key_is_listed_once_whatever_the_server_does(at: Any, tmp_path: Path, faults: tuple[str, ...]) -> None:
    objects = odd_keys(20_000)
    with key_server(tmp_path, objects, "--delay-ms", "5", *faults) as (endpoint, log):
        at(endpoint)
        throttle = Throttle()
        listing = list_archive("s3://b/in", ListingFilter(), tmp_path / "o.parquet", throttle=throttle)
        found = rows(listing.path)
        assert (found if faults[0] == "--fail-share" else sorted(found)) == sorted(expected(objects))
        assert listing.found == len(found)
        assert listing.left_out == {"folder_marker": 10}
        assert listing.requests == throttle.requests >= len(log.read_text().splitlines())
        assert list(tmp_path.glob("segments*")) == []


def test_a_killed_listing_goes_on_and_asks_for_no_page_twice(at: Any, tmp_path: Path) -> None:
    objects = {f"in/patient{n // 700:04d}/{n:07d}.jpg": 9 for n in range(200_000)}
    kept = tmp_path / "kept"
    with key_server(tmp_path, objects, "--delay-ms", "20") as (endpoint, log):
        at(endpoint)
        command = [sys.executable, "-c", LISTING, str(tmp_path / "lost.parquet"), str(kept)]
        with subprocess.Popen(command) as process:
            until = time.monotonic() + 60
            while len(files.list_names(str(kept))) < 10 and time.monotonic() < until:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        there = [pq.read_metadata(path) for path in kept.glob("*.parquet")]
        covered = [json.loads(one.metadata[b"nightread segment"]) for one in there]
        kept_pages = sum(one.num_rows for one in there) // 1000
        assert 10 <= kept_pages < 190
        asked = len(log.read_text().splitlines())
        counts: list[int] = []
        again = list_archive("s3://b/in", ListingFilter(), tmp_path / "o.parquet", counts.append, kept_in=str(kept))
        asked_again = [json.loads(line) for line in log.read_text().splitlines()[asked:]]
    assert rows(again.path) == expected(objects)
    assert counts[0] >= 1000 * kept_pages
    for begin in asked_again:
        assert not any(one["after"] <= begin < (one["until"] or "~") for one in covered), begin
    # Ranges end within a page, and where one could be cut has to be found out.
    assert len(asked_again) < (200 - kept_pages) * 1.3 + 60
    with key_server(tmp_path, objects, "--fail-share", "1") as (endpoint, _):
        at(endpoint)
        whole = list_archive("s3://b/in", ListingFilter(), tmp_path / "p.parquet", kept_in=str(kept))
        assert (whole.requests, rows(whole.path)) == (0, expected(objects))


def test_what_is_kept_in_a_bucket_is_taken_over_and_no_request_is_sent(s3: Any, tmp_path: Path) -> None:
    keys = [f"in/{number % 3}/{number:02d}.jpg" for number in range(12)]
    for key in keys:
        files.write_atomic(f"{s3.uri}/{key}", key.encode())
    kept = f"{s3.uri}/results/listings/abc"
    options: dict[str, Any] = {"kept_in": kept, "min_age_seconds": 0.001}
    first = list_archive(f"{s3.uri}/in", ListingFilter(), tmp_path / "o.parquet", **options)
    again = list_archive(f"{s3.uri}/in/", ListingFilter(), tmp_path / "p.parquet", **options)
    assert rows(first.path) == rows(again.path)
    assert [uri for uri, _ in rows(first.path)] == [f"{s3.uri}/{key}" for key in sorted(keys)]
    assert (first.requests, again.requests) == (1, 0)
    files.write_atomic(f"{s3.uri}/in/new.jpg", b"x")
    others = list_archive(f"{s3.uri}/in", ListingFilter(), tmp_path / "q.parquet", kept_in=kept, min_age_seconds=3600)
    assert (others.found, others.requests, others.left_out) == (0, 1, {"too_young": 13})
    assert others.young is not None
    assert pq.read_metadata(others.young).num_rows == 13
