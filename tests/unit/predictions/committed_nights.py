"""Tables of nights whose rows are given, for the questions that are asked of them."""

from __future__ import annotations

import datetime

import pyarrow as pa

from pipelines.predictions import commit
from pipelines.predictions.schema import prediction_schema

SCHEMA = prediction_schema(["benign", "malignant"], pa.schema([("patient_id", pa.string())]))
OTHER = prediction_schema(["normal"], None)
START = datetime.datetime(2026, 3, 1, 22, tzinfo=datetime.UTC)


def nothing() -> None:
    """No lease to check."""


def night(results: str, number: int, schema: pa.Schema, rows: list[dict[str, object]]) -> None:
    """Commit a run of the given rows, an hour after the one before, on its own day."""
    when = START + datetime.timedelta(days=number)
    fixed = {"run_id": f"run{number}", "frame": 0, "status": "scored", "model_name": "m", "scored_at": when}
    whole = [{**dict.fromkeys(schema.names), **fixed, "scored_date": when.date(), **row} for row in rows]
    commit.commit_run(results, f"run{number}", schema, pa.Table.from_pylist(whole, schema).to_batches(), nothing)
