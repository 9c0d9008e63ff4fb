"""Who changed what: the lines that commands leave, and that a dry run and a refusal leave none."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.cli import main
from pipelines.predictions import commit
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema

SCHEMA = prediction_schema(["benign", "malignant"], None)
WHEN = datetime.datetime(2026, 3, 1, 22, tzinfo=datetime.UTC)
FIRST_RELEASE = Path(__file__).parents[2] / "fixtures" / "first_release"


def lines(folder: Path) -> list[dict[str, Any]]:
    """The audit as any other tool reads it: JSON, line by line."""
    file = folder / "audit.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table with one run of two rows; the user is called anna."""
    monkeypatch.setenv("LOGNAME", "anna")
    place = tmp_path / "results"
    commit.ensure_table(str(place))
    fixed = {**dict.fromkeys(SCHEMA.names), "run_id": "r1", "status": "scored", "scored_date": WHEN.date()}
    rows = [{**fixed, "image_uri": f"/old/{number}", "scored_at": WHEN} for number in range(2)]
    version = commit.commit_run(str(place), "r1", SCHEMA, pa.Table.from_pylist(rows, SCHEMA).to_batches(), lambda: None)
    counts = {"scored": 2, "failed": 0, "failed_by_code": {}}
    RunFolder(str(place), "r1").write_record(RunRecord("r1", "f", {}, counts, {}, {}, version, "committed", WHEN))
    return place


def test_what_changes_results(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(results)
    assert main(["runs", "rebase", place, "/old", "/new", "--dry-run"]) == 0
    assert main(["runs", "clean", place, "--dry-run"]) == 0
    assert main(["runs", "rollback", place, "r2", "--reason", "typed wrongly"]) == 2
    assert main(["runs", "rebase", place, "/nothing", "/new"]) == 2
    assert lines(results) == []

    assert main(["runs", "rebase", place, "/old", "/new", "--reason", "PACS moved\nto the new mount"]) == 0
    assert main(["runs", "rollback", place, "r1"]) == 0
    assert main(["runs", "rollback", place, "r1"]) == 2
    assert main(["runs", "clean", place, "--compact", "--reason", "monthly"]) == 0
    capsys.readouterr()
    moved, back, clean = lines(results)
    for line in (moved, back, clean):
        assert line["user"] == "anna" and line["host"] and line["nightread"] and line["format"] == 1
        at = datetime.datetime.fromisoformat(line["at"])
        assert abs((datetime.datetime.now(datetime.UTC) - at).total_seconds()) < 60
    told = [(line["action"], line["what"], line["from"], line["to"], line["table_version"]) for line in (moved, back)]
    assert told == [("rebase", "archive", "/old", "/new", 2), ("rollback", "r1", "committed", "rolled_back", 3)]
    assert [line["reason"] for line in (moved, back, clean)] == ["PACS moved\nto the new mount", None, "monthly"]
    assert (moved["rows"], moved["images"], back["rows"]) == (2, 2, 2)
    assert (clean["action"], clean["table_version"]) == ("clean", 3) and "deleted" in clean


def test_verify_notes_a_damaged_line(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "clean", str(results)]) == 0
    with open(results / "audit.jsonl", "a") as file:
        file.write('{"at": "2026-03-')
    capsys.readouterr()
    assert main(["runs", "verify", str(results), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert [note for note in notes if "audit.jsonl" in note and note.endswith(" 1.")]


def test_nothing_is_done_where_its_line_could_not_be_written(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "audit.jsonl").mkdir()
    for command in (
        ["rollback", str(results), "r1"],
        ["rebase", str(results), "/old", "/new"],
        ["clean", str(results)],
    ):
        assert main(["runs", *command]) == 2
        assert "audit.jsonl" in capsys.readouterr().err
    assert commit.table_version(str(results)) == 1


def test_a_promotion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = tmp_path / "MODELS"
    shutil.copytree(FIRST_RELEASE / "MODELS", models)
    assert main(["models", "promote", f"{models}/tiny@v2", "--reason", "better on our own images"]) == 0
    assert main(["models", "promote", f"{models}/tiny@v9"]) == 4
    assert main(["models", "list", str(models), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    (line,) = lines(models)
    assert (line["action"], line["what"], line["from"], line["to"]) == ("promote", "tiny", "v1", "v2")
    assert line["reason"] == "better on our own images" and line["table_version"] is None
    assert line["model_id"] == answer[1]["model_id"] and len(answer) == 2
