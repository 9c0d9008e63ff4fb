"""`nightread query` and `nightread runs` as a user meets them."""

from __future__ import annotations

import csv
import datetime
import json
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from pipelines.predictions import commit
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema

SCHEMA = prediction_schema(["benign", "malignant"], None)
WHEN = datetime.datetime(2026, 3, 1, 22, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A table of two rows and the record of their run."""
    place = str(tmp_path_factory.mktemp("results"))
    commit.ensure_table(place)
    fixed = {**dict.fromkeys(SCHEMA.names), "run_id": "r1", "status": "scored", "scored_at": WHEN}
    rows = [
        {**fixed, "image_uri": "/a", "p_malignant": 0.25, "scored_date": WHEN.date()},
        {**fixed, "image_uri": "/b", "p_malignant": float("nan"), "scored_date": WHEN.date()},
    ]
    version = commit.commit_run(place, "r1", SCHEMA, pa.Table.from_pylist(rows, SCHEMA).to_batches(), lambda: None)
    counts = {"found": 2, "planned": 2, "scored": 2, "failed": 0, "failed_by_code": {}}
    who = {"user": "it", "host": "pacs", "command_line": ["nightread", "score"], "versions": {"ray": "2"}}
    RunFolder(place, "r1").write_record(
        RunRecord("r1", "f", {"model_name": "cells"}, counts, {"seconds": 3.0}, who, version, "committed", WHEN)
    )
    return place


def test_an_aligned_table(results: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", results, "SELECT image_uri, p_malignant FROM rows ORDER BY 1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image_uri", "p_malignant"]
    assert lines[2].split() == ["/a", "0.25"]


def test_json_is_a_list_of_rows(results: str, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT image_uri, p_malignant, scored_at, sum(frames) AS n, 1 AS x, 2 AS x FROM rows GROUP BY ALL ORDER BY 1"
    assert main(["query", results, sql, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == {
        "image_uri": "/a", "p_malignant": 0.25, "scored_at": "2026-03-01T22:00:00+00:00", "n": None, "x": 1, "x_2": 2,
    }  # fmt: skip
    assert second["p_malignant"] is None


def test_an_empty_answer(results: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", results, "FROM failures", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["query", results, "SELECT run_id FROM failures"]) == 0
    assert capsys.readouterr().out.startswith("run_id")


def test_a_long_answer_is_cut_on_the_screen_only(
    results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["query", results, "FROM range(1500)"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1002 and "--output" in shown.err
    assert main(["query", results, "FROM range(1500)", "--output", str(tmp_path / "x.parquet")]) == 0
    assert pq.read_table(tmp_path / "x.parquet").num_rows == 1500


def test_csv_guards_what_a_spreadsheet_would_run(results: str, tmp_path: Path) -> None:
    sql = """SELECT '=1+1' AS "=name", '+1' AS b, '-1' AS c, '@x' AS d, chr(9) || 'x' AS e, chr(13) || 'x' AS f,
        -1 AS g, 'a=b' AS h, '5' AS i, NULL AS j, ['=x'] AS k, max(scored_at) AS l, 'x\n=y' AS m FROM rows"""
    assert main(["query", results, sql, "--output", str(tmp_path / "out.csv")]) == 0
    with open(tmp_path / "out.csv", newline="") as handle:
        header, row = csv.reader(handle)
    assert header[0] == "'=name"
    assert row == [
        "'=1+1", "'+1", "'-1", "'@x", "'\tx", "'\rx", "-1", "a=b", "5", "", '["=x"]', "2026-03-01T22:00:00.000000Z",
        "x\n=y",
    ]  # fmt: skip


def test_a_file_is_told_in_json(results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "o.csv")
    assert main(["query", results, "FROM rows", "--output", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": out, "rows": 2}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["COPY rows TO 'x'"], "COPY"),
        (["FROM rows", "--output", "x.txt"], ".csv"),
        (["FROM nothing"], "nothing"),
    ],
)
def test_a_refused_question_is_exit_2(
    results: str, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["query", results, *arguments]) == 2
    assert says in capsys.readouterr().err
    assert main(["query", results, *arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["cure"]


def test_the_answer_is_not_written_into_the_results(results: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(results) / "predictions" / "x.parquet"
    assert main(["query", results, "FROM rows", "--output", str(out)]) == 2
    assert not out.exists()


def test_runs_are_listed_and_shown(results: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", results]) == 0
    assert "committed" in capsys.readouterr().out
    assert main(["runs", "list", results, "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["run_id"], record["counts"]["scored"], record["table_version"]) == ("r1", 2, 1)
    for arguments in ([], ["r1"]):
        assert main(["runs", "show", results, *arguments]) == 0
        shown = capsys.readouterr().out
        assert "it on pacs" in shown and "2026-03-01 22:00:00 UTC" in shown
    assert main(["runs", "show", results, "--json"]) == 0
    assert json.loads(capsys.readouterr().out).items() >= record.items()


def test_a_run_or_results_that_are_not_there_are_exit_2(
    results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "show", results, "../x"]) == 2
    assert "r1" in capsys.readouterr().err
    assert main(["runs", "list", str(tmp_path / "nothing")]) == 2
    commit.ensure_table(str(tmp_path))
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert main(["runs", "list", str(tmp_path), "--json"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "[]"
    assert main(["runs", "show", str(tmp_path)]) == 2


def test_a_moved_archive_is_told_and_the_answer_says_how_to_take_it_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "the results")
    commit.ensure_table(place)
    fixed = {**dict.fromkeys(SCHEMA.names), "run_id": "r1", "status": "scored", "scored_date": WHEN.date()}
    rows = [{**fixed, "image_uri": f"/old/{number}"} for number in range(3)]
    commit.commit_run(place, "r1", SCHEMA, pa.Table.from_pylist(rows, SCHEMA).to_batches(), lambda: None)

    assert main(["runs", "rebase", place, "/old", "/new place", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "nothing was written" in shown and "3 rows of 3 images" in shown and "taken back" not in shown
    assert main(["runs", "rebase", place, "/old", "/new place", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["rows"], answer["images"], answer["table_version"], answer["dry_run"]) == (3, 3, 2, False)
    words = shlex.split(answer["taken_back_by"])
    assert words[-5:] == ["runs", "rebase", place, "/new place", "/old"]
    assert main(["query", place, "SELECT image_uri FROM rows ORDER BY 1 LIMIT 1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"image_uri": "/new place/0"}]
    assert main(words[-5:]) == 0
    assert "taken back by" in capsys.readouterr().out
    assert main(["runs", "rebase", place, "/ol", "/new"]) == 2
    assert "No image of the table" in capsys.readouterr().err
