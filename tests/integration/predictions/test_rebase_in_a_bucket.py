"""New names for the images of an archive that moved to another bucket, in a table that lies in one."""

from __future__ import annotations

import datetime
from typing import Any

import pyarrow as pa

from pipelines.predictions import commit
from pipelines.predictions.query import run_query
from pipelines.predictions.rebase import rebase
from pipelines.predictions.schema import prediction_schema

SCHEMA = prediction_schema(["a", "b"], None)
OTHER = prediction_schema(["c"], pa.schema([("site", pa.string())]))


def test_there_and_back(s3: Any) -> None:
    results = f"{s3.uri}/results"
    commit.ensure_table(results)
    for number, schema in enumerate((SCHEMA, OTHER, SCHEMA)):
        day = datetime.date(2026, 1, 1 + number)
        fixed = {**dict.fromkeys(schema.names), "run_id": f"r{number}", "status": "scored", "scored_date": day}
        uris = ["/mnt/elsewhere/1"] if number == 2 else ["/mnt/pacs/ü 1", "/mnt/pacs/a/2", "/mnt/pacs2/3"]
        rows = pa.Table.from_pylist([{**fixed, "image_uri": uri, "site": "x"} for uri in uris], schema)
        commit.commit_run(results, f"r{number}", schema, rows.to_batches(), lambda: None)
    before = run_query(results, "FROM rows ORDER BY ALL").to_pylist()
    kept = [file for file in commit.committed_files(results) if "2026-01-03" in file]
    done = rebase(results, "/mnt/pacs", "s3://new bucket/pacs", {"user": "it", "host": "pacs"})
    assert (done.rows, done.images, done.table_version) == (4, 2, 4)
    assert {row["image_uri"] for row in run_query(results, "FROM rows").to_pylist()} == {
        "s3://new bucket/pacs/ü 1", "s3://new bucket/pacs/a/2", "/mnt/pacs2/3", "/mnt/elsewhere/1",
    }  # fmt: skip
    # Days without such an image are left as they are.
    assert kept == [file for file in commit.committed_files(results) if "2026-01-03" in file]
    assert rebase(results, "s3://new bucket/pacs", "/mnt/pacs", {}).rows == 4
    assert run_query(results, "FROM rows ORDER BY ALL").to_pylist() == before
