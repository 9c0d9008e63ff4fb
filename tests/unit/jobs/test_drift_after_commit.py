"""Drift after the commit: what is compared, what is kept, and that nothing of it changes how a night ends."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.drift import compare_night, exit_code, summary_lines
from pipelines.models.bundle import VALIDATION_FILE, Bundle, write_bundle
from pipelines.models.decision import decide
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import ScorerIO
from pipelines.predictions import commit
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema
from pipelines.scoring.report import RunCounts, ScoreReport
from pipelines.training.records import validation_file

CLASSES = ("benign", "malignant")
SCHEMA = prediction_schema(CLASSES, None)
FITTED = {"threshold": 0.5, "refer_low": 0.4, "refer_high": 0.6, "target_sensitivity": 0.95}
START = datetime.datetime(2026, 3, 1, 22, tzinfo=datetime.UTC)
IMAGES = 150


def images_of(seed: int, darker: float = 0.0) -> dict[str, Any]:
    """What is known of a night's images."""
    random = np.random.default_rng(seed)
    return {
        "score": random.beta(2, 5, IMAGES).astype(np.float32),
        "mean_intensity": np.clip(random.normal(0.5 - darker, 0.1, IMAGES), 0, 1).astype(np.float32),
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model with a validation set as training writes it."""
    known = images_of(77)
    images = pa.table(
        {
            "image_uri": [f"/train/{at}.JPG" for at in range(IMAGES)],
            "content_sha256": [f"{at:064x}" for at in range(IMAGES)],
            "mean_intensity": known["mean_intensity"],
            "width": pa.array([1024] * IMAGES, pa.int32()),
            "height": pa.array([768] * IMAGES, pa.int32()),
        }
    )
    answers = np.stack([1 - known["score"], known["score"]], axis=1)
    groups = [f"patient {at}" for at in range(IMAGES)]
    spec = BundleSpec(
        CLASSES, ("malignant",), 8, "p", {"float32": ScorerEntry("scorer.tflite", ScorerIO(8, 2))},
        thresholds={"image": FITTED},
    )  # fmt: skip
    kept = validation_file(images, groups, ["benign"] * IMAGES, CLASSES, answers)
    models = str(tmp_path_factory.mktemp("models"))
    return write_bundle(models, "cells", spec, {"scorer.tflite": b"scorer", VALIDATION_FILE: kept})


def commit_night(results: str, bundle: Bundle, number: int, darker: float = 0.0) -> ScoreReport:
    """Commit a night as `score` does; its report."""
    run, known = f"run{number:02d}", images_of(number, darker)
    when = START + datetime.timedelta(days=number)
    decisions = decide(known["score"], FITTED)
    rows = []
    for at in range(IMAGES):
        row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
        row |= {
            "run_id": run, "image_uri": f"/a/{number}/{at}.jpg", "width": 1024, "height": 768, "status": "scored",
            "mean_intensity": known["mean_intensity"][at], "p_positive": known["score"][at],
            "decision": str(decisions[at]), "model_name": "cells", "model_id": bundle.model_id,
            "precision": "float32", "scored_date": when.date(),
        }  # fmt: skip
        rows.append(row)
    batches = pa.Table.from_pylist(rows, SCHEMA).to_batches()
    version = commit.commit_run(results, run, SCHEMA, batches, lambda: None)
    asked = {"model_id": bundle.model_id, "model_name": "cells", "precision": "float32"}
    record = RunRecord(run, "f", asked, {}, {}, {}, version, "committed", when)
    RunFolder(results, run).write_record(record)
    return ScoreReport(results, run_id=run, runs=(run,), counts=RunCounts(IMAGES), table_version=version)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> str:
    """Eight stable nights."""
    place = str(tmp_path_factory.mktemp("drift") / "results")
    commit.ensure_table(place)
    for number in range(8):
        commit_night(place, bundle, number)
    return place


def test_a_stable_night_and_a_dark_one(results: str, bundle: Bundle) -> None:
    stable = compare_night(commit_night(results, bundle, 8), bundle.uri)
    assert stable is not None
    assert (stable["verdict"], stable["reference"], stable["notes"]) == ("none", "nights", [])
    assert stable["nights"] == {"count": 8, "images": 8 * IMAGES, "from": "2026-03-01", "to": "2026-03-08"}
    assert stable["validation"] == {"images": IMAGES, "groups": IMAGES}
    assert {offset["figure"]: offset["verdict"] for offset in stable["offsets"]} == dict.fromkeys(
        ("score", "decision", "intensity", "size", "suffix"), "none"
    )
    assert exit_code(0, stable, True) == 0 and summary_lines(stable, 0)[0].startswith("  drift       none: The night")

    dark = compare_night(commit_night(results, bundle, 9, darker=0.15), f"{Path(bundle.uri).parent}")
    assert dark is not None
    assert (dark["verdict"], [own["figure"] for own in dark["figures"] if own["verdict"] != "none"]) == (
        "drift", ["intensity"]
    )  # fmt: skip
    assert "against 0.498 in the last 9 nights" in dark["sentence"] and "images have become darker" in dark["sentence"]
    assert json.loads(Path(RunFolder(results, "run09").drift).read_text()) == dark
    assert (exit_code(0, dark, True), exit_code(0, dark, False), exit_code(3, dark, True)) == (5, 0, 3)
    assert "exit code 5" in summary_lines(dark, 5)[1]


def test_the_first_nights_are_compared_with_validation(tmp_path: Path, bundle: Bundle) -> None:
    place = str(tmp_path / "results")
    commit.ensure_table(place)
    for number, (darker, verdict) in enumerate(((0.0, "none"), (0.2, "drift"))):
        found = compare_night(commit_night(place, bundle, number, darker), bundle.uri)
        assert found is not None and (found["reference"], found["verdict"]) == ("validation", verdict)
        assert "failures" not in {own["figure"] for own in found["figures"]}
        assert ("in the model's validation set: images have become darker" in found["sentence"]) == bool(darker)


def test_what_cannot_be_compared_is_unknown_and_costs_nothing(tmp_path: Path, bundle: Bundle) -> None:
    place = str(tmp_path / "results")
    commit.ensure_table(place)
    report = commit_night(place, bundle, 0)
    away = compare_night(report, f"{bundle.uri}-gone")
    assert away is not None and away["verdict"] == "unknown" and exit_code(0, away, True) == 0
    assert (
        "validation set could not be read" in away["notes"][0] and "Only 0 of the 7 earlier nights" in away["sentence"]
    )

    rows = next(Path(place).glob("predictions/*/*.parquet"))
    rows.write_bytes(rows.read_bytes()[:100])
    damaged = compare_night(report, bundle.uri)
    assert damaged is not None and damaged["verdict"] == "unknown"
    assert damaged["sentence"].startswith("The night could not be compared: ")
    assert compare_night(ScoreReport(place), bundle.uri) is None

    few = ScoreReport(place, run_id="run00", runs=("run00",), counts=RunCounts(3))
    told = compare_night(few, bundle.uri)
    assert told is not None and "fewer than 5 are not compared" in told["sentence"]


def test_an_altered_validation_set_leaves_the_nights_to_decide(results: str, bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "cells" / "v1"
    copy.mkdir(parents=True)
    for file in Path(bundle.uri).iterdir():
        (copy / file.name).write_bytes(file.read_bytes()[:-1] if file.name == VALIDATION_FILE else file.read_bytes())
    found = compare_night(commit_night(results, bundle, 10), str(copy))
    assert found is not None and (found["verdict"], found["reference"]) == ("none", "nights")
    assert "was altered" in found["notes"][0] and found["validation"] is None
