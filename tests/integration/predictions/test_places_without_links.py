"""A file system without hard links: commits go by a rename, and only for the owner of the lease."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

INJECTOR = Path(__file__).resolve().parents[2] / "end_to_end" / "injector"
WRITER = """
import datetime, os, sys
import pyarrow as pa
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pipelines.errors import LeaseLost, NightreadError
from pipelines.predictions import commit
from pipelines.predictions.schema import prediction_schema
from pipelines.storage.leases import Lease
from pipelines.storage.preflight import prove_place
from pipelines.storage.processes import Identity

place = sys.argv[1]
schema = prediction_schema(["a", "b"], None)
fixed = {**dict.fromkeys(schema.names), "scored_date": datetime.date(2026, 1, 1), "status": "scored"}

def rows(run):
    images = [{**fixed, "run_id": run, "image_uri": run + str(number)} for number in range(3)]
    return pa.Table.from_pylist(images, schema).to_batches()

def refused(action):
    try:
        action()
    except NightreadError as error:
        return type(error).__name__
    return "allowed"

assert not prove_place(place).hard_links
os.environ["MOUNT_ALLOW_UNSAFE_RENAME"] = "true"  # the library's own way past the lease
print("create without:", refused(lambda: commit.ensure_table(place)))
with Lease.acquire(place) as lease:
    commit.ensure_table(place, lease)
    print("commit with:", commit.commit_run(place, "a", schema, rows("a"), lease.check, lease))
    print("commit without:", refused(lambda: commit.commit_run(place, "b", schema, rows("b"), lease.check)))
    print("abandon without:", refused(lambda: commit.abandon_run(place, "b")))
    print("abandon with:", commit.abandon_run(place, "b", lease))

    def slept():
        yield from rows("d")
        with ThreadPoolExecutor(1) as other:  # another writer is faster, between the rows and the commit
            assert other.submit(commit.abandon_run, place, "d", lease).result()

    print("commit behind:", refused(lambda: commit.commit_run(place, "d", schema, slept(), lease.check, lease)))
    for number in range(25):  # past a checkpoint of the log
        commit.commit_run(place, f"many{number}", schema, rows(f"many{number}"), lease.check, lease)
    elsewhere = replace(Identity.of_this_process(), host="elsewhere", boot_id="other")
    assert Lease._create(lease.results, lease.number + 1, elsewhere)
    print("commit after:", refused(lambda: commit.commit_run(place, "c", schema, rows("c"), lambda: None, lease)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="system calls are filtered by Linux")
def test_only_the_owner_of_the_lease_commits(checkout: Path, tmp_path: Path) -> None:
    place = tmp_path / "results"
    environment = {**os.environ, "PYTHONPATH": f"{INJECTOR}{os.pathsep}{checkout}", "FAULTS": "nolinks"}
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(place)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "create without: UsageError",
        "commit with: 1",
        "commit without: UsageError",
        "abandon without: UsageError",
        "abandon with: True",
        "commit behind: LeaseLost",
        "commit after: LeaseLost",
    ]
    table = DeltaTable(str(place / "predictions"))
    assert table.version() == 28
    runs = [uri for file in table.file_uris() for uri in pq.read_table(file, columns=["run_id"])["run_id"].to_pylist()]
    assert Counter(runs) == {run: 3 for run in ("a", *(f"many{number}" for number in range(25)))}
    assert [path.name for path in place.iterdir()] in (["predictions", "leases"], ["leases", "predictions"])
