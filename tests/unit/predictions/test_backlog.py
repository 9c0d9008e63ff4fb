"""What a promotion makes to be scored again: against plain Python, and against the plan of the night that follows."""

from __future__ import annotations

import datetime
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.archive.plan import PlanKey, make_plan
from pipelines.errors import IMAGE_ERRORS, UsageError
from pipelines.predictions import commit
from pipelines.predictions.backlog import count_to_rescore
from pipelines.predictions.schema import prediction_schema

SCHEMA = prediction_schema(["a", "b"], None)
START = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
LIES_IN_IMAGE = {"not_an_image", "unsupported", "truncated", "too_large", "decoder_crashed", "timed_out"}


def drawn_rows(count: int) -> list[dict[str, Any]]:
    """Rows of 60 images in three states, of three versions of one model and one of another, scored and failed."""
    chance = random.Random(3)
    fixed = {**dict.fromkeys(SCHEMA.names), "frame": 0, "preprocessing_id": "p", "precision": "float32"}
    rows = []
    for minute in range(count):
        name, version = chance.choice([("cells", "v1"), ("cells", "v1"), ("cells", "v2"), ("cells", "v3"), ("x", "v9")])
        code = chance.choice([None, None, None, *IMAGE_ERRORS])
        row = {"image_uri": f"/{chance.randrange(60)}", "image_version": chance.choice("123"), "model_name": name}
        row |= {"model_id": version, "status": "failed" if code else "scored", "error_code": code}
        row |= {"scored_at": START + datetime.timedelta(minutes=minute), "scored_date": START.date()}
        rows.append({**fixed, **row})
    return rows


def expected(rows: list[dict[str, Any]], version: str) -> tuple[int, dict[str, str]]:
    """The count, and the state that each image was seen in last."""
    answers = [
        row for row in rows if row["model_name"] == "cells" and row["error_code"] in {None, *LIES_IN_IMAGE}
    ]  # fmt: skip
    newest = {row["image_uri"]: row["image_version"] for row in answers}
    done = {(row["image_uri"], row["image_version"]) for row in answers if row["model_id"] == version}
    return sum(image not in done for image in newest.items()), newest


def test_what_is_counted_is_what_the_next_night_plans(tmp_path: Path) -> None:
    results, rows = str(tmp_path / "results"), drawn_rows(240)
    commit.ensure_table(results)
    assert count_to_rescore(results, "cells", "v1") == 0
    for part in range(3):
        run_id = f"run{part}"
        table = pa.Table.from_pylist([{**row, "run_id": run_id} for row in rows[80 * part : 80 * part + 80]], SCHEMA)
        commit.commit_run(results, run_id, SCHEMA, table.to_batches(), lambda: None)
    for version in ("v1", "v3", "never scored"):
        count, newest = expected(rows, version)
        assert count_to_rescore(results, "cells", version) == count > 0
        listing = pa.table({"image_uri": list(newest), "image_version": list(newest.values())})
        pq.write_table(listing, tmp_path / "listing.parquet")
        plan = make_plan(
            tmp_path / "listing.parquet", commit.committed_files(results), None,
            PlanKey(version, "p", "float32", "cells"), shard_size=8, rows_per_group=8, limit=None, rescore=False,
            retry_failed=False, out_folder=tmp_path,
        )  # fmt: skip
        assert (plan.rescored_for_model, plan.unchanged) == (count, len(newest) - count)
    assert count_to_rescore(results, "nobody", "v1") == 0


def test_results_that_are_not_there_are_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no predictions"):
        count_to_rescore(str(tmp_path), "cells", "v1")
