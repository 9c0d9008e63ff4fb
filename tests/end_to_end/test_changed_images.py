"""A night of changed images after stable ones: its rows are committed, and who asked for it gets exit code 5."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from pipelines.predictions import commit
from pipelines.predictions.schema import prediction_schema

SCHEMA = prediction_schema(["benign", "malignant"], None)


def test_darker_images_end_a_night_with_5_and_are_committed(
    tmp_path: Path,
    tiny_models: Path,
    nightread: Callable[..., Any],
    draw: Callable[..., Any],
    rows_of: Callable[..., Any],
) -> None:
    archive, results = tmp_path / "archive", tmp_path / "results"
    draw(archive, 120)
    command = ["score", archive, "--model", f"{tiny_models}/cells", "--results", results, "--fail-on-drift", "--json"]
    first = nightread(*command)
    assert (first.code, first.answer["drift"]["verdict"]) == (0, "unknown"), first.err
    assert "nobody can tell" in first.err

    # Eight nights before, made of what the first one scored.
    known = [row for row in rows_of(results)]
    for night in range(8):
        day = datetime.date(2026, 1, 1) + datetime.timedelta(days=night)
        chosen = np.random.default_rng(night).choice(len(known), 50, replace=False)
        rows = [
            {**known[at], "run_id": f"before{night}", "scored_date": day, "image_uri": f"/before/{night}/{at}.jpg"}
            for at in chosen
        ]
        batches = pa.Table.from_pylist(rows, SCHEMA).to_batches()
        commit.commit_run(str(results), f"before{night}", SCHEMA, batches, lambda: None)

    draw(archive, 60, start=1000)
    stable = nightread(*command)
    assert stable.code == 0, stable.err
    assert (stable.answer["scored"], stable.answer["drift"]["verdict"]) == (60, "none"), stable.out

    for path in draw(archive, 60, start=2000):
        picture = cv2.imread(str(path))
        assert picture is not None
        path.write_bytes(cv2.imencode(".jpg", (picture // 2).astype(np.uint8))[1].tobytes())
    dark = nightread(*command)
    assert dark.code == 5, dark.err
    told = dark.answer
    assert (told["exit_code"], told["scored"]) == (5, 60)
    assert len(rows_of(results)) == 120 + 8 * 50 + 60 + 60
    assert told["drift"]["verdict"] == "drift" and "images have become darker" in told["drift"]["sentence"]
    kept = json.loads((results / "runs" / told["run_id"] / "drift.json").read_text())
    assert kept == told["drift"]

    shown = nightread("runs", "show", results)
    assert shown.code == 0 and "images have become darker" in shown.out
    checked = nightread("runs", "check", results)
    assert checked.code == 1 and "drift" in checked.out
