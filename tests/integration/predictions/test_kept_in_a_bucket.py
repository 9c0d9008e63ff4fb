"""Rolled back, compacted, cleaned and verified in a bucket, and one night after the other asked of it meanwhile."""

from __future__ import annotations

import datetime
from typing import Any

import pyarrow as pa

from pipelines.predictions import commit
from pipelines.predictions.cleaning import Compaction, clean
from pipelines.predictions.leftovers import Ages
from pipelines.predictions.query import run_query
from pipelines.predictions.rollback import roll_back
from pipelines.predictions.runs import RunFolder, RunRecord, new_run_id
from pipelines.predictions.schema import prediction_schema
from pipelines.predictions.verifying import verify
from pipelines.storage import files

SCHEMA = prediction_schema(["a", "b"], None)
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
WHO = {"user": "it", "host": "pacs"}


def night(results: str, run: str) -> None:
    """Commit two rows, and leave what a driver that died behind its commit leaves."""
    own = {**dict.fromkeys(SCHEMA.names), "run_id": run, "status": "scored", "scored_date": NOW.date(), "frame": 0}
    rows = pa.Table.from_pylist([{**own, "image_uri": f"/{run}/{n}"} for n in range(2)], SCHEMA)
    version = commit.commit_run(results, run, SCHEMA, rows.to_batches(), lambda: None)
    folder = RunFolder(results, run)
    folder.write_record(RunRecord(run, "f", {}, {"scored": 2, "failed": 0}, {}, {}, version, "committed", NOW))
    files.write_atomic(folder.plan, b"plan")
    files.write_atomic(folder.part(0), b"part")


def test_kept_in_order(s3: Any) -> None:
    results = f"{s3.uri}/nightly results/ü"
    commit.ensure_table(results)
    runs = ["r1", "r10", "r2"]
    for run in runs:
        night(results, run)
    died, fragment = RunFolder(results, new_run_id()), f"{results}/listings/aaaa/0.parquet"
    for uri in (died.plan, fragment, f"{results}/predictions/scored_date=2026-01-01/killed.parquet"):
        files.write_atomic(uri, b"0123456789")

    done = roll_back(results, "r1", WHO)
    assert (done.rows, done.table_version) == (2, 4)
    assert verify(results, deep=False).problems == ()
    assert files.exists(RunFolder(results, "r10").part(0)) and not files.exists(RunFolder(results, "r1").part(0))
    young = clean(results, Ages.of(None, force=False), WHO, lambda *_: None, dry_run=True)
    assert [len(pile.files) for pile in young.leftovers.piles] == [5]  # plans and parts of runs that are over

    night(results, "r3")
    forced = clean(results, Ages.of(0.0, force=True), WHO, lambda *_: None, compact=True)
    assert forced.compaction == Compaction(1, 2, 1)
    assert forced.leftovers.unreadable == ((1, 5),)
    assert files.exists(fragment) and not files.exists(died.plan)
    left = [key for key in s3.filesystem.find(results) if "/leases/" not in key and "/_delta_log/" not in key]
    assert sorted(key.removeprefix(results.removeprefix("s3://")).partition("part-")[0] for key in left) == [
        "/listings/aaaa/0.parquet",
        "/predictions/scored_date=2026-01-01/",
        *(f"/runs/{run}/run.json" for run in ["r1", "r10", "r2", "r3"]),
    ]
    whole = verify(results, deep=False)
    assert (whole.problems, whole.files, whole.rows, whole.runs) == ((), 1, 6, 4)
    asked = run_query(results, "SELECT DISTINCT run_id FROM rows ORDER BY 1").column("run_id").to_pylist()
    assert asked == ["r10", "r2", "r3"]
