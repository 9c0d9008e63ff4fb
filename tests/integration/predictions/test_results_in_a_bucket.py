"""Table, runs, plan and manifest in a bucket."""

from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.archive.manifest import read_manifest
from pipelines.archive.plan import PlanKey, make_plan
from pipelines.errors import LeaseLost, TryLater, UsageError
from pipelines.predictions import commit, runs
from pipelines.predictions.query import run_query
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema
from pipelines.storage.settings import fsspec_filesystem

SCHEMA = prediction_schema(["a", "b"], None)
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def rows_of(run: str, uris: list[str], version: str = "1") -> list[pa.RecordBatch]:
    """Scored rows."""
    fixed = {**dict.fromkeys(SCHEMA.names), "run_id": run, "status": "scored", "scored_date": NOW.date(), "frame": 0}
    fixed |= {"model_id": "m", "preprocessing_id": "p", "precision": "float32", "image_version": version}
    return pa.Table.from_pylist([{**fixed, "image_uri": uri} for uri in uris], SCHEMA).to_batches()


def nothing() -> None:
    """No lease to check."""


def test_a_run_from_plan_to_question(s3: Any, tmp_path: Path) -> None:
    results = f"{s3.uri}/nightly results/ü"
    commit.ensure_table(results)
    commit.ensure_table(results)
    assert run_query(results, "SELECT count(*) AS n FROM rows").to_pylist() == [{"n": 0}]
    assert commit.commit_run(results, "a", SCHEMA, rows_of("a", ["/1", "/2"]), nothing) == 1
    assert commit.commit_run(results, "a", SCHEMA, rows_of("a", ["/1", "/2"]), nothing) == 1
    RunFolder(results, "a").write_record(RunRecord("a", "f", {}, {"scored": 2}, {}, {}, 1, "committed", NOW))
    assert [record.run_id for record in runs.list_runs(results)] == ["a"]
    assert run_query(results, "SELECT image_uri, scored_date FROM latest ORDER BY 1").to_pylist() == [
        {"image_uri": uri, "scored_date": NOW.date()} for uri in ("/1", "/2")
    ]
    assert run_query(results, "SELECT scored FROM runs").to_pylist() == [{"scored": 2}]

    listing = tmp_path / "listing.parquet"
    pq.write_table(pa.table({"image_uri": ["/1", "/2", "/3"], "image_version": ["1", "2", "1"]}), listing)
    files = commit.committed_files(results)
    assert files and all(s3.filesystem.exists(file) for file in files)
    plan = make_plan(
        listing,
        files,
        fsspec_filesystem(results),
        PlanKey("m", "p", "float32", "n"),
        shard_size=2,
        rows_per_group=4,
        limit=None,
        rescore=False,
        retry_failed=False,
        out_folder=tmp_path,
    )
    assert (plan.new, plan.changed, plan.unchanged) == (1, 1, 1)


def test_a_question_does_not_reach_other_objects(s3: Any) -> None:
    results = f"{s3.uri}/results"
    commit.ensure_table(results)
    commit.commit_run(results, "a", SCHEMA, rows_of("a", ["/1"]), nothing)
    pq.write_table(pa.table({"a": [1]}), f"{s3.bucket}/foreign.parquet", filesystem=s3.filesystem)
    for sql in (
        f"FROM read_parquet('{s3.uri}/foreign.parquet')",
        f"FROM glob('{s3.uri}/*')",
        f"COPY rows TO '{s3.uri}/out.parquet'",
        f"FROM read_text('{s3.uri}/results/predictions/_delta_log/00000000000000000000.json')",
    ):
        with pytest.raises(UsageError):
            run_query(results, sql)
    assert not s3.filesystem.exists(f"{s3.bucket}/out.parquet")


def test_commits_and_abandonment_at_once_agree(s3: Any) -> None:
    results = f"{s3.uri}/results"
    commit.ensure_table(results)

    def act(number: int) -> None:
        try:
            if number % 4 == 3:
                commit.abandon_run(results, "a")
            else:
                commit.commit_run(results, "a", SCHEMA, rows_of("a", ["/1", "/2"]), nothing)
        except (LeaseLost, TryLater):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(8)))
    state = commit.transaction_state(results, "a")
    assert run_query(results, "SELECT count(*) AS n FROM rows").to_pylist() == [{"n": 2 if state == 1 else 0}]


def test_places_that_cannot_be_used_are_explained(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((UsageError, TryLater)) as refused:
        commit.ensure_table("s3://no-such-bucket-here/results")
    assert refused.value.cure
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(TryLater, match="does not answer"):
        commit.table_version(f"{s3.uri}/results")


def test_a_manifest_in_a_bucket(s3: Any, tmp_path: Path) -> None:
    names = ["scans/1/a b.jpg", "scans/2/ü%20.jpg"]
    for name in names:
        s3.filesystem.pipe_file(f"{s3.bucket}/{name}", name.encode())
    text = "uri,site\n" + "".join(f"{s3.uri}/{name},x\n" for name in [*names, "scans/gone.jpg"])
    s3.filesystem.pipe_file(f"{s3.bucket}/lists/m.csv", text.encode())
    listing = read_manifest(f"{s3.uri}/lists/m.csv", {}, None, tmp_path / "out.parquet")
    rows = pq.read_table(listing.path).to_pylist()
    tags = [s3.filesystem.info(f"{s3.bucket}/{name}")["ETag"].strip('"') for name in names]
    assert [row["image_version"] for row in rows] == [*tags, ""]
    assert [row["image_uri"] for row in rows] == [f"{s3.uri}/{name}" for name in [*names, "scans/gone.jpg"]]
    assert not listing.versions_from_manifest

    with_versions = "uri,image_version\n1/a b.jpg,mine\n2/x.jpg,\n"
    s3.filesystem.pipe_file(f"{s3.bucket}/lists/v.csv", with_versions.encode())
    listing = read_manifest(f"{s3.uri}/lists/v.csv", {}, f"{s3.uri}/scans", tmp_path / "out.parquet")
    assert listing.versions_from_manifest
    assert [row["image_version"] for row in pq.read_table(listing.path).to_pylist()] == ["mine", ""]
    with pytest.raises(UsageError, match="no manifest"):
        read_manifest(f"{s3.uri}/lists/nothing.csv", {}, None, tmp_path / "out.parquet")
