"""Damage of every kind that results can take is found, and sound results are called so; nothing is written."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from jobs.cli import main
from pipelines.predictions import commit
from pipelines.predictions.cleaning import clean
from pipelines.predictions.leftovers import Ages
from pipelines.predictions.rollback import roll_back
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema
from pipelines.predictions.value_checks import wrong_values
from pipelines.predictions.verifying import UsedModel, Verified, verify
from pipelines.storage.leases import Lease

SCHEMA = prediction_schema(["benign", "malignant"], None)
START = datetime.datetime(2026, 3, 1, 22, tzinfo=datetime.UTC)
WHO = {"user": "it", "host": "pacs"}
SCORED = {
    "run_id": "r1", "image_uri": "/a", "frame": 0, "frames": 1, "image_version": "10-7", "status": "scored",
    "mean_intensity": 0.5, "predicted_class": "benign", "score": 0.75, "p_benign": 0.75, "p_malignant": 0.25,
    "p_positive": 0.25, "decision": "refer", "model_name": "m", "model_id": "ab" * 32, "preprocessing_id": "p",
    "precision": "float32", "scored_at": START, "scored_date": START.date(),
}  # fmt: skip
ANSWER = ("mean_intensity", "predicted_class", "score", "p_benign", "p_malignant", "p_positive", "decision")
FAILED = {**SCORED, **dict.fromkeys(ANSWER), "status": "failed", "error_code": "truncated", "error_message": "Cut."}


def batches(rows: list[dict[str, Any]]) -> list[pa.RecordBatch]:
    whole = [{**dict.fromkeys(SCHEMA.names), **row} for row in rows]
    return list(pa.Table.from_pylist(whole, SCHEMA).to_batches())


def night(results: str, run: str, images: int, failed: int = 0) -> None:
    """Commit a run and its record; each has a day of its own."""
    own = {"run_id": run, "scored_date": START.date() + datetime.timedelta(days=int(run[1:]))}
    rows = [{**SCORED, **own, "image_uri": f"/{run}/{n}"} for n in range(images)]
    rows += [{**FAILED, **own, "image_uri": f"/{run}/bad/{n}"} for n in range(failed)]
    version = commit.commit_run(results, run, SCHEMA, batches(rows), lambda: None)
    counts = {"scored": images, "failed": failed, "failed_by_code": {"truncated": failed} if failed else {}}
    written = RunRecord(run, "f", {"model_id": "ab" * 32}, counts, {}, {}, version, "committed", START)
    RunFolder(results, run).write_record(written)


def rewrite(results: str, run: str, **values: Any) -> None:
    folder = RunFolder(results, run)
    folder.write_record(replace(folder.read_record(), **values))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three nights, one of them rolled back, one run abandoned and one interrupted."""
    place = str(tmp_path_factory.mktemp("made") / "results")
    commit.ensure_table(place)
    night(place, "r1", 5, failed=2)
    night(place, "r2", 3)
    night(place, "r3", 1)
    roll_back(place, "r3", WHO)
    commit.abandon_run(place, "r4")
    for run, status in (("r4", "abandoned"), ("r5", "running")):
        RunFolder(place, run).write_record(RunRecord(run, "f", {}, {}, {}, {}, None, status, START))
    return place


@pytest.fixture
def results(made: str, tmp_path: Path) -> str:
    """A copy of these to be damaged."""
    return str(shutil.copytree(made, tmp_path / "results", ignore=shutil.ignore_patterns("leases")))


def tree(results: str) -> dict[Path, int]:
    """Every file and its time, those of leases apart."""
    own = (path for path in Path(results).rglob("*") if path.is_file() and "leases" not in path.parts)
    return {path: path.stat().st_mtime_ns for path in own}


def test_sound_results_and_nothing_is_written(results: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(results, "runs", "r6").mkdir()
    before = tree(results)
    notes = (
        "Run r6 died before it had a record; it has no rows.",
        "Run r5 is running, or was interrupted.",
    )
    for deep in (False, True):
        with_models = Verified(5, 2, 10, 5, (), notes, (UsedModel("m", "ab" * 32, ()),))
        assert verify(results, deep) == with_models
    with Lease.acquire(results):  # a night that runs is in nobody's way
        assert main(["runs", "verify", results, "--deep"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "  table       version 5: 2 files, 10 rows; every row was read",
        "  runs        5",
        *(f"  note        {note}" for note in notes),
        "  note        The model m abababababab was not looked at: no record tells where it lies.",
        "The results are whole.",
    ]
    assert tree(results) == before


def file_of(results: str, rows: int) -> Path:
    """The table's file with so many rows."""
    uris = map(Path, DeltaTable(f"{results}/predictions").file_uris())
    return next(path for path in uris if pq.read_metadata(path).num_rows == rows)


def cut(results: str) -> None:
    file = file_of(results, 3)
    file.write_bytes(file.read_bytes()[:-1])


def flip(results: str) -> None:
    """Another footer of the same length: no Thrift."""
    file = file_of(results, 3)
    data = file.read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    file.write_bytes(data[: -8 - length] + b"\xff" * length + data[-8:])


def exchange(results: str) -> None:
    """A file with other rows takes the place of one, and the log says that it has its size."""
    file = file_of(results, 3)
    old = file.stat().st_size
    pq.write_table(pq.read_table(file).slice(1), file)
    for entry in Path(results, "predictions", "_delta_log").glob("*.json"):
        entry.write_text(entry.read_text().replace(f'"size":{old}', f'"size":{file.stat().st_size}'))


def append(results: str, *rows: dict[str, Any]) -> None:
    """Rows that came past us."""
    write_deltalake(f"{results}/predictions", pa.Table.from_batches(batches(list(rows))), mode="append")


DAMAGE: dict[str, tuple[Callable[[str], object], list[str]]] = {
    "file gone": (lambda r: file_of(r, 3).unlink(), ["is missing."]),
    "file cut": (cut, ["by the log."]),
    "footer broken": (flip, ["is damaged: "]),
    "rows exchanged": (
        exchange, ["has 2 rows, and 3 by the log.", "Run r2 has 2 scored rows in the table, and 3 by its record."]
    ),
    "image twice": (
        lambda r: append(r, {**SCORED, "run_id": "r2", "image_uri": "/r2/1"}),
        ["Run r2 has 1 images more than once in the table, '/r2/1' among them.", "Run r2 has 4 scored rows"],
    ),
    "rows of nobody": (
        lambda r: append(r, {**SCORED, "run_id": "r9"}), ["Run r9 has 1 rows in the table and no record."]
    ),
    "rows of an abandoned run": (
        lambda r: append(r, {**SCORED, "run_id": "r4"}), ["Run r4 is abandoned, and has 1 rows in the table."]
    ),
    "rows of a run that was rolled back": (
        lambda r: append(r, {**SCORED, "run_id": "r3"}), ["Run r3 is rolled_back, and has 1 rows in the table."]
    ),
    "rows of an interrupted run": (
        lambda r: append(r, {**SCORED, "run_id": "r5"}), ["Run r5 is not committed, and has 1 rows in the table."]
    ),
    "other failures": (
        lambda r: rewrite(r, "r1", counts={"scored": 5, "failed": 2, "failed_by_code": {"storage": 2}}),
        ["Run r1 has 2 truncated failed_by_code rows in the table, and 2 storage by its record."],
    ),
    "record forgets": (
        lambda r: rewrite(r, "r3", status="committed"), ["Run r3 was rolled back, and its record does not say so"]
    ),
    "record invents": (
        lambda r: rewrite(r, "r5", status="committed"), ["Run r5 is committed by its record, and unknown to the table."]
    ),
    "record denies": (
        lambda r: rewrite(r, "r2", status="abandoned"),
        ["Run r2 is abandoned by its record, and committed by the table."],
    ),
    "record damaged": (
        lambda r: Path(r, "runs", "r4", "run.json").write_text("{"), ["run.json' is no record of a run, or damaged."]
    ),
    "record lost": (
        lambda r: Path(r, "runs", "r2", "run.json").unlink(), ["Run r2 has 3 rows in the table and no record."]
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found(results: str, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    cause, sentences = DAMAGE[damage]
    cause(results)
    assert main(["runs", "verify", results, "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["sound"], told["exit_code"]) == (False, 2)
    assert len(told["problems"]) == len(sentences)
    for sentence in sentences:
        assert any(sentence in problem for problem in told["problems"]), told["problems"]


def test_what_becomes_of_results_over_time_is_no_damage(results: str) -> None:
    night(results, "r6", 4)
    clean(results, Ages.of(0.0, force=True), WHO, lambda *_: None, compact=True)
    roll_back(results, "r2", WHO)
    rewrite(results, "r6", status="running")  # its driver died before its last word
    found = verify(results, deep=True)
    assert (found.problems, found.rows) == ((), 11)
    assert "Run r6 is at its end; the next score writes that into its record." in found.notes


WRONG: dict[str, dict[str, Any]] = {
    "are neither scored nor failed": {"status": "done", "error_code": None},
    "have no image_uri": {"image_uri": None},
    "are scored and have an error_code": {"error_code": "storage"},
    "are scored and have no predicted_class": {"predicted_class": None},
    "have a mean_intensity that is not from 0 to 1": {"mean_intensity": 255.0},
    "have a p_positive that is not from 0 to 1": {"p_positive": float("nan")},
    "have an unknown decision": {"decision": "perhaps"},
    "have probabilities that do not add up to 1": {"p_malignant": 0.2},
    "have a score that is not the highest probability": {"score": 0.25},
}


@pytest.mark.parametrize("words", WRONG)
def test_a_value_that_no_model_gives_is_found(words: str) -> None:
    rows = [SCORED, {**SCORED, **WRONG[words]}, FAILED, {**SCORED, **WRONG[words]}]
    assert wrong_values(batches(rows)) == [f"2 rows {words}"]


def test_a_failed_row_with_an_answer_is_found() -> None:
    assert wrong_values(batches([{**FAILED, "score": 0.5}, {**FAILED, "error_code": None}])) == [
        "1 rows are failed and have no error_code",
        "1 rows are failed and have a score",
    ]


@pytest.mark.parametrize(("precision", "good"), [("float32", False), ("int8", True)])
def test_an_8_bit_scorer_may_round(precision: str, good: bool) -> None:
    row = {**SCORED, "precision": precision, "p_malignant": 0.26, "p_positive": 0.26}
    assert (wrong_values(batches([row])) == []) is good


def test_values_are_read_only_when_asked(results: str) -> None:
    append(results, {**SCORED, "run_id": "r5", "image_uri": "/x", "score": 7.0})
    assert len(verify(results).problems) == 1
    assert len(deep := verify(results, deep=True).problems) == 3
    assert sum("1 rows have a score that is not from 0 to 1." in problem for problem in deep) == 1
