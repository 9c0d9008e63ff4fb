from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.cli import main
from pipelines.images.preprocess import Preprocessing
from pipelines.predictions import commit
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema

MakeTflite = Callable[..., bytes]


@pytest.fixture
def theirs(make_tflite: MakeTflite, tmp_path: Path) -> str:
    (tmp_path / "theirs.tflite").write_bytes(make_tflite(side=32))
    return str(tmp_path / "theirs.tflite")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["models", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def imported(theirs: str, models: str, *further: str) -> list[str]:
    declared = [
        "--classes",
        "normal, malignant,other",
        "--input-size",
        "32",
        "--scaling",
        "-1..1",
        "--outputs",
        "logits",
    ]
    return ["import", theirs, "--models", models, "--name", "cells", *declared, *further]


def test_import_list_show_and_promote(theirs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, loaded_before = str(tmp_path / "MODELS"), "tensorflow" in sys.modules
    code, first = run(capsys, *imported(theirs, models))
    assert code == 0 and first["version"] == "v1" and first["champion"] is True
    assert first["classes"] == ["normal", "malignant", "other"] and first["positive_classes"] == ["malignant"]
    assert first["preprocessing_id"] == Preprocessing(32).id and first["thresholds"] is None
    _, second = run(capsys, *imported(theirs, models, "--positive", "other,malignant"))
    assert second["champion"] is False and second["positive_classes"] == ["malignant", "other"]

    _, listed = run(capsys, "list", models)
    assert [(entry["version"], entry["champion"]) for entry in listed] == [("v1", True), ("v2", False)]
    code, promoted = run(capsys, "promote", f"{models}/cells@v2")
    assert (code, promoted["champion"], promoted["previous"]) == (0, "v2", "v1")
    _, shown = run(capsys, "show", f"{models}/cells")
    assert shown["model_id"] == second["model_id"] and [entry["version"] for entry in shown["history"]] == ["v1", "v2"]
    assert ("tensorflow" in sys.modules) is loaded_before


def test_the_same_for_people(theirs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = str(tmp_path / "MODELS")
    assert main(["models", "list", models]) == 2
    assert "There is no folder" in capsys.readouterr().err
    (tmp_path / "MODELS").mkdir()
    assert main(["models", "list", models]) == 0
    assert "There are no models" in capsys.readouterr().out
    assert main(["models"]) == 2
    assert "The commands are: list, show, promote, import, calibrate." in capsys.readouterr().err
    assert main(["models", *imported(theirs, models)]) == 0
    told = capsys.readouterr().out
    assert "cells@v1" in told and "the champion" in told and "positive: malignant" in told
    assert main(["models", "list", models]) == 0
    assert "normal, malignant, other" in capsys.readouterr().out
    assert main(["models", "show", f"{models}/cells"]) == 0
    assert re.search(r"^ +scaling: +-1\.\.1$", capsys.readouterr().out, re.M)
    for ref, said in ((models, "is a folder of models"), (f"{models}/cells@", "no version behind the @")):
        assert main(["models", "show", ref]) != 0
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("classes", ["other,negative,positive", "A-B,A_B,c"])
def test_classes_that_could_never_be_scored_are_refused(
    classes: str, theirs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "MODELS"
    code, answer = run(capsys, *imported(theirs, str(models), "--classes", classes))
    assert code == 2 and "--classes" in answer["error"]["cure"]
    assert not models.exists()


def scored(results: str, run_id: str, model_id: str, names: list[str], rate: float | None) -> None:
    """A committed night of one version, and its record."""
    schema = prediction_schema(["a", "b"], None)
    now = datetime.datetime.now(datetime.UTC)
    fixed = {**dict.fromkeys(schema.names), "run_id": run_id, "frame": 0, "image_version": "1", "status": "scored"}
    fixed |= {"model_name": "cells", "model_id": model_id, "precision": "float32", "scored_at": now}
    rows = [{**fixed, "image_uri": name, "scored_date": now.date()} for name in names]
    commit.commit_run(results, run_id, schema, pa.Table.from_pylist(rows, schema).to_batches(), lambda: None)
    timings = {"images_per_second": rate}
    record = RunRecord(run_id, "f", {}, {"scored": len(names)}, timings, {}, 1, "committed", now)
    RunFolder(results, run_id).write_record(record)


def test_a_promotion_tells_how_many_images_it_makes_to_be_scored_again(
    theirs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, results = str(tmp_path / "MODELS"), str(tmp_path / "results")
    versions = [run(capsys, *imported(theirs, models, *more))[1] for more in ([], ["--positive", "other"])]
    promotion = ["promote", f"{models}/cells@v2", "--results", results]
    code, answer = run(capsys, *promotion)
    assert code == 2 and "no predictions" in answer["error"]["message"]
    assert [entry["champion"] for entry in run(capsys, "list", models)[1]] == [True, False]

    commit.ensure_table(results)
    scored(results, "run1", versions[0]["model_id"], [f"/{number}" for number in range(5)], None)
    code, answer = run(capsys, *promotion)
    assert (code, answer["champion"], answer["to_rescore"], answer["seconds_estimated"]) == (0, "v2", 5, None)
    scored(results, "run2", versions[1]["model_id"], ["/3", "/4"], 1.5)
    assert run(capsys, *promotion)[1]["seconds_estimated"] == 2.0
    assert main(["models", *promotion]) == 0
    told = capsys.readouterr().out
    assert "3 images" in told and "about 0:02" in told and "--backfill" in told
    _, answer = run(capsys, "promote", f"{models}/cells@v1", "--results", results)
    assert (answer["champion"], answer["to_rescore"]) == ("v1", 0)
    assert "to_rescore" not in run(capsys, "promote", f"{models}/cells@v2")[1]


def test_failures_have_their_codes(theirs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = str(tmp_path / "MODELS")
    assert run(capsys, "show", f"{models}/cells")[0] == 4
    assert run(capsys, *imported(theirs, models, "--scaling", "0-1"))[0] == 2
    assert run(capsys, *imported(theirs, models, "--input-size", "33"))[0] == 2
    assert run(capsys, *imported(theirs, models, "--positive", "benign"))[0] == 2
    assert run(capsys, *imported(theirs, models))[0] == 0
    Path(models, "cells", "v1", "scorer.tflite").write_bytes(b"x")
    code, answer = run(capsys, "show", f"{models}/cells")
    assert code == 4 and "altered" in answer["error"]["message"]
