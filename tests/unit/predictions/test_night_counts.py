"""Nights counted by the database, against the same counts by NumPy."""

from __future__ import annotations

import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import UsageError
from pipelines.evaluation.drift_profile import ORDERED, profile_of, profiles_of
from pipelines.predictions import commit, night_counts
from pipelines.predictions.night_counts import count_nights
from pipelines.predictions.schema import prediction_schema

SCHEMA = prediction_schema(["benign", "malignant"], None)
CODES = [None, None, None, None, "truncated", "storage", "worker_lost"]
SUFFIXES = [".jpg", ".PNG", "", ".tiff", ".1234567", ".jpeg"]


def rows_of(number: int, images: int, model: str = "m1", precision: str = "float32") -> list[dict[str, Any]]:
    """Random rows of one run, failures among them."""
    generator = np.random.default_rng(number)
    rows = []
    for image in range(images):
        code = CODES[generator.integers(len(CODES))]
        row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
        row |= {
            "run_id": f"run{number:02d}",
            "image_uri": f"/a.b/{image}{SUFFIXES[generator.integers(len(SUFFIXES))]}",
            "status": "failed" if code else "scored",
            "error_code": code,
            "model_id": model,
            "precision": precision,
            "scored_date": datetime.date(2026, 3, 1) + datetime.timedelta(days=number),
        }
        if code is None:
            row["p_positive"] = float(np.float32(generator.choice([0.0, 1.0, generator.random()])))
            row["mean_intensity"] = float(np.float32(generator.random()))
            row["width"], row["height"] = (int(side) for side in generator.integers(1, 5000, 2))
            row["decision"] = ["negative", "refer", "positive"][generator.integers(3)]
        rows.append(row)
    return rows


def commit_rows(results: str, rows: list[dict[str, Any]]) -> None:
    """As `score` commits them."""
    batches = pa.Table.from_pylist(rows, SCHEMA).to_batches()
    commit.commit_run(results, rows[0]["run_id"], SCHEMA, batches, lambda: None)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four nights of one model, one of another model, one of the first in other arithmetic."""
    place = str(tmp_path_factory.mktemp("counts"))
    commit.ensure_table(place)
    for number in range(4):
        commit_rows(place, rows_of(number, 60 + number))
    commit_rows(place, rows_of(4, 20, model="m2"))
    commit_rows(place, rows_of(5, 20, precision="int8"))
    return place


def test_counts_are_those_of_numpy(results: str) -> None:
    profiles = profiles_of(count_nights(results, ["run03"], "m1", "float32"))
    assert list(profiles) == ["run00", "run01", "run02", "run03"]
    for number, profile in enumerate(profiles.values()):
        rows = rows_of(number, 60 + number)
        scored = [row for row in rows if row["status"] == "scored"]
        expected = profile_of(
            {
                "score": np.array([row["p_positive"] for row in scored]),
                "intensity": np.array([row["mean_intensity"] for row in scored]),
                "size": np.sqrt([row["width"] * row["height"] for row in scored]),
            },
            {"decision": [row["decision"] for row in scored]},
            list(range(len(scored))),
        )
        for figure in ORDERED:
            assert profile.ordered[figure].tolist() == expected.ordered[figure].tolist()
            assert profile.means[figure] == pytest.approx(expected.means[figure])
        assert profile.shares["decision"] == expected.shares["decision"]
        # What stands behind the dot of a name like a.1234567 is no kind of file.
        suffixes = [PurePosixPath(row["image_uri"]).suffix.lower().replace(".1234567", "") for row in rows]
        assert profile.shares["suffix"] == {suffix: suffixes.count(suffix) for suffix in set(suffixes)}
        blamed = [{None: "scored", "truncated": "image"}.get(row["error_code"], "storage") for row in rows]
        assert profile.shares["failures"] == {kind: blamed.count(kind) for kind in set(blamed)}
        assert profile.images == len(rows)
        assert profile.day == rows[0]["scored_date"]


def test_other_models_and_other_arithmetic_are_no_trailing_nights(results: str) -> None:
    assert list(profiles_of(count_nights(results, ["run05"], "m1", "int8"))) == ["run05"]
    assert list(profiles_of(count_nights(results, ["run04"], "nobody", "float32"))) == ["run04"]


def test_old_days_and_too_many_rows_are_not_opened(results: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night_counts, "NIGHT_DAYS", 4)
    assert list(profiles_of(count_nights(results, ["run05"], "m1", "float32"))) == ["run02", "run03", "run05"]
    monkeypatch.setattr(night_counts, "MOST_ROWS", 100)  # of the newest days: 20, 20 and 63 rows
    assert list(profiles_of(count_nights(results, ["run05"], "m1", "float32"))) == ["run05"]


def test_without_results_a_person_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no predictions"):
        count_nights(str(tmp_path), [], "m", "float32")
