"""The view `patients`: one answer for each patient and model, by the limits that belong to those answers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import UsageError
from pipelines.models.decision import decide
from pipelines.predictions import commit
from pipelines.predictions.query import run_query
from pipelines.predictions.runs import RunFolder, RunRecord

sys.path.insert(0, str(Path(__file__).parent))
from committed_nights import OTHER, SCHEMA, START, night


def test_patients_are_what_pandas_finds_in_the_rows(tmp_path: Path) -> None:
    """Several nights, models and patients; one night's run recorded limits without a band, one none at all."""
    place, random = str(tmp_path), np.random.default_rng(8)
    commit.ensure_table(place)
    limits = {
        "run0": {"image": {"threshold": 0.1}, "patient_max": {"threshold": 0.4, "refer_low": 0.3, "refer_high": 0.7}},
        "run1": {"patient_max_int8": {"threshold": 0.6, "refer_low": None, "refer_high": None}},
        "run2": {},
    }
    for number in range(3):
        rows: list[dict[str, object]] = []
        for image in random.choice(60, 25, replace=False).tolist():
            p = float(np.float32(random.random()))
            said = [None, "negative", "refer", "positive"][int(random.integers(0 if number == 2 else 1, 4))]
            patient = None if image % 24 == 5 else f"00{image % 24}"
            known = {"patient_id": patient, "model_name": f"m{image % 2}"}
            failed = {"image_uri": f"/{image}", **known, "status": "failed", "error_code": "storage"}
            scored = {"image_uri": f"/{image}", **known, "p_positive": p, "decision": said}
            rows.append(failed if random.random() < 0.2 else scored)
        night(place, number, SCHEMA, rows)
        record = RunRecord(f"run{number}", "f", {}, {}, {}, {}, number + 1, "committed", START)
        model = {"classes": ["benign", "malignant"], "thresholds": limits[record.run_id]}
        RunFolder(place, record.run_id).write_record(replace(record, model=model) if number != 2 else record)
    frame = run_query(place, "SELECT * FROM rows").to_pandas()
    scored_rows = frame[frame["status"] == "scored"].sort_values("scored_at")
    newest = scored_rows.drop_duplicates(["image_uri", "model_name"], keep="last").dropna(subset="patient_id")
    wanted = {}
    for (patient, model), own in newest.groupby(["patient_id", "model_name"]):
        fitted = {unit[:11]: values for unit, values in limits[own["run_id"].iloc[-1]].items()}.get("patient_max")
        p = float(own["p_positive"].max())
        if fitted is not None:
            said = str(decide(p, fitted))
        else:
            words = [word for word in ("positive", "refer", "negative") if (own["decision"] == word).any()]
            said = words[0] if words else None
        wanted[patient, model] = (len(own), p, said)
    answer = run_query(place, "FROM patients").to_pylist()
    assert {(row["patient_id"], row["model_name"]): tuple(row.values())[2:] for row in answer} == wanted
    assert {row["decision"] for row in answer} == {"negative", "refer", "positive"}
    assert [row["p_positive"] for row in answer] == sorted((row["p_positive"] for row in answer), reverse=True)
    nowhere = str(tmp_path / "nowhere")
    commit.ensure_table(nowhere)
    night(nowhere, 0, OTHER, [{"image_uri": "/a"}])
    with pytest.raises(UsageError) as caught:
        run_query(nowhere, "FROM patients")
    assert "patients (where rows have patient_id)" in caught.value.cure


def test_a_patient_whose_images_have_no_decision_has_none(tmp_path: Path) -> None:
    place = str(tmp_path)
    commit.ensure_table(place)
    night(place, 0, SCHEMA, [{"image_uri": name, "patient_id": "1", "p_positive": 0.5} for name in ("/a", "/b")])
    assert run_query(place, "FROM patients").to_pylist() == [
        {"patient_id": "1", "model_name": "m", "images": 2, "p_positive": 0.5, "decision": None}
    ]


def test_the_limits_of_one_version_do_not_decide_on_answers_of_another(tmp_path: Path) -> None:
    place = str(tmp_path)
    commit.ensure_table(place)
    limits = {"patient_max": {"threshold": 0.95, "refer_low": None, "refer_high": None}}
    for number, (uri, decision) in enumerate((("/a", "positive"), ("/b", "negative"))):
        known = {"patient_id": "1", "model_id": f"id{number}", "p_positive": 0.9 - number / 2, "decision": decision}
        night(place, number, SCHEMA, [{"image_uri": uri, **known}, {**known, "image_uri": "/c", "patient_id": "2"}])
        record = RunRecord(f"run{number}", "f", {}, {}, {}, {}, number + 1, "committed", START)
        RunFolder(place, record.run_id).write_record(replace(record, model={"thresholds": limits}))
    answer = run_query(place, "SELECT patient_id, decision FROM patients").to_pylist()
    assert {row["patient_id"]: row["decision"] for row in answer} == {"1": "positive", "2": "negative"}


def test_images_whose_patient_is_an_empty_cell_are_no_patient(tmp_path: Path) -> None:
    place = str(tmp_path)
    commit.ensure_table(place)
    named = {"/a": "", "/b": " ", "/c": None, "/d": "1"}
    night(place, 0, SCHEMA, [{"image_uri": uri, "patient_id": own, "p_positive": 0.9} for uri, own in named.items()])
    assert run_query(place, "SELECT patient_id FROM patients").to_pylist() == [{"patient_id": "1"}]
