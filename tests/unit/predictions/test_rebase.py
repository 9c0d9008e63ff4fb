"""Names of a moved archive: every row of the old folder and no other, nothing doubled, and the way back."""

from __future__ import annotations

import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import TryLater, UsageError
from pipelines.predictions import commit
from pipelines.predictions.query import run_query
from pipelines.predictions.rebase import rebase
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema
from pipelines.storage.leases import Lease

SCHEMA = prediction_schema(["benign"], None)
OTHER = prediction_schema(["normal"], pa.schema([("patient_id", pa.string())]))
START = datetime.datetime(2026, 3, 1, 22, tzinfo=datetime.UTC)
WHO = {"user": "it", "host": "pacs", "command_line": ["not", "for", "the", "log"]}
Row = dict[str, Any]


def night(results: str, run: str, uris: list[str], schema: pa.Schema = SCHEMA, **values: object) -> None:
    """Commit a run of scored rows."""
    day = START + datetime.timedelta(days=int(run[1:]))
    fixed = {"run_id": run, "frame": 0, "status": "scored", "model_name": "m", "model_id": "1", "scored_at": day}
    fixed |= {"image_version": "10-7", "preprocessing_id": "p", "precision": "float32", "scored_date": day.date()}
    rows = [{**dict.fromkeys(schema.names), **fixed, "image_uri": uri, **values} for uri in uris]
    commit.commit_run(results, run, schema, pa.Table.from_pylist(rows, schema).to_batches(), lambda: None)


def rows_of(results: str) -> list[Row]:
    """All rows, read from the table's log by PyArrow, in a fixed order."""
    table = DeltaTable(f"{results}/predictions")
    day = ds.partitioning(pa.schema([("scored_date", pa.date32())]), flavor="hive")
    whole = ds.dataset(table.file_uris(), schema=pa.schema(table.schema().to_arrow()), partitioning=day).to_table()
    return sorted(whole.to_pylist(), key=lambda row: (row["run_id"], row["image_uri"]))


@pytest.fixture
def results(tmp_path: Path) -> str:
    place = str(tmp_path / "results")
    commit.ensure_table(place)
    return place


def moved(rows: list[Row], old: str, new: str) -> list[Row]:
    """What a rebase is to make of rows, by another way."""
    named = [
        {**row, "image_uri": "/".join([new, row["image_uri"].removeprefix(old + "/")])}
        if row["image_uri"].startswith(old + "/")
        else row
        for row in rows
    ]
    return sorted(named, key=lambda row: (row["run_id"], row["image_uri"]))


part = st.sampled_from(["a", "b", "a b", "a_b", "a%b", "axb", "é", "e\u0301", "o'k", '"q"', "#1", "x?", "\n", "😀"])
uris = st.lists(
    st.lists(part, min_size=2, max_size=4).map(lambda parts: "/" + "/".join(parts)), max_size=8, unique=True
)


@settings(max_examples=6)
@given(uris, st.lists(part, min_size=1, max_size=2), st.lists(part, min_size=1, max_size=2))
def test_every_row_of_the_folder_and_no_other_and_back(names: list[str], old_parts: list[str], new: list[str]) -> None:
    old = "/" + "/".join(old_parts)
    target = "/".join(["/new", *new])
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder) / "results")
        commit.ensure_table(place)
        night(place, "r1", [*names, f"{old}/always"])
        night(place, "r2", [f"{old}/always", "/else/where"], OTHER, model_id="2", patient_id="007")
        before = rows_of(place)
        there = rebase(place, old, target, WHO)
        assert rows_of(place) == moved(before, old, target)
        inside = [row["image_uri"] for row in before if row["image_uri"].startswith(old + "/")]
        assert (there.rows, there.images, there.there_before) == (len(inside), len(set(inside)), 0)
        assert there.table_version == 3
        back = rebase(place, target, old, WHO)
        assert (back.rows, back.images, back.table_version) == (there.rows, there.images, 4)
        assert rows_of(place) == before


@pytest.mark.parametrize(
    ("old", "new", "names", "expected"),
    [
        ("/mnt/a", "/mnt/ab", ["/mnt/a/1", "/mnt/ab/2", "/mnt/a"], ["/mnt/a", "/mnt/ab/1", "/mnt/ab/2"]),
        ("/mnt/a", "/mnt/a/sub", ["/mnt/a/1", "/mnt/a/sub/1"], ["/mnt/a/sub/1", "/mnt/a/sub/sub/1"]),
        ("/", "/mnt", ["/1", "/x/2"], ["/mnt/1", "/mnt/x/2"]),
        ("/mnt/", "/", ["/mnt/1", "/mnt/x/2"], ["/1", "/x/2"]),
        ("/mnt/../mnt//a/.", "s3://bucket/p/", ["/mnt/a/1"], ["s3://bucket/p/1"]),
        ("s3://bucket", "s3://other", ["s3://bucket/k//x", "s3://bucket2/k"], ["s3://bucket2/k", "s3://other/k//x"]),
        ("/m\\x", "/m\udcff", ["/m\\\\x/1", "/m\\x41/2"], ["/m\\x41/2", "/m\\xff/1"]),
    ],
)
def test_prefixes_are_whole_parts_of_canonical_names(
    results: str, old: str, new: str, names: list[str], expected: list[str]
) -> None:
    night(results, "r1", names)
    rebase(results, old, new, WHO)
    assert sorted(row["image_uri"] for row in rows_of(results)) == expected


def test_a_name_that_would_be_there_twice_is_refused_and_nothing_changes(results: str) -> None:
    night(results, "r1", ["/old/1", "/old/2"])
    night(results, "r2", ["/new/1"])
    before, version = rows_of(results), commit.table_version(results)
    for dry_run in (True, False):
        with pytest.raises(UsageError, match="1 images are in the table"):
            rebase(results, "/old", "/new", WHO, dry_run=dry_run)
    assert (rows_of(results), commit.table_version(results)) == (before, version)


@pytest.mark.parametrize("other", [{"image_version": "11-7"}, {"model_id": "2"}, {"precision": "int8"}])
def test_another_version_or_model_is_no_double_but_there_is_no_exact_way_back(
    results: str, other: dict[str, str]
) -> None:
    night(results, "r1", ["/old/1", "/old/2"])
    night(results, "r2", ["/new/1"], **other)
    done = rebase(results, "/old", "/new", WHO)
    assert (done.rows, done.there_before) == (2, 1)
    assert run_query(results, "SELECT image_uri, run_id FROM latest ORDER BY 1").to_pylist() == [
        {"image_uri": "/new/1", "run_id": "r2"},
        {"image_uri": "/new/2", "run_id": "r1"},
    ]


def test_what_was_not_there_in_either_place_is_no_double(results: str) -> None:
    gone = {"status": "failed", "error_code": "not_found", "image_version": ""}
    night(results, "r1", ["/old/1"], **gone)
    night(results, "r2", ["/new/1"], **gone)
    assert rebase(results, "/old", "/new", WHO).rows == 1


def test_a_dry_run_counts_and_changes_nothing(results: str, tmp_path: Path) -> None:
    night(results, "r1", ["/old/1", "/old/2"])
    night(results, "r2", ["/old/1"], image_version="11-7")
    done = rebase(results, "/old", "/new", WHO, dry_run=True)
    assert (done.rows, done.images, done.table_version) == (3, 2, None)
    assert commit.table_version(results) == 2
    assert not (tmp_path / "results" / "leases").exists()


def test_prefixes_that_match_nothing_or_are_the_same_are_refused(results: str, tmp_path: Path) -> None:
    night(results, "r1", ["/old/1"])
    for old in ("/ol", "/old/1", "/Old", "s3://old"):
        with pytest.raises(UsageError, match="No image of the table"):
            rebase(results, old, "/new", WHO)
    with pytest.raises(UsageError, match="Both prefixes"):
        rebase(results, "/old/", "/x/../old", WHO)
    with pytest.raises(UsageError, match="no predictions"):
        rebase(str(tmp_path / "nothing"), "/old", "/new", WHO)
    assert not (tmp_path / "nothing").exists()


def test_the_log_says_who_from_where_to_where_and_when(results: str) -> None:
    night(results, "r1", ["/old/1"])
    rebase(results, "/old", "/new", WHO)
    entry = DeltaTable(f"{results}/predictions").history(1)[0]
    told = json.loads(entry["nightread_rebase"])
    assert {name: told[name] for name in ("from", "to", "user", "host")} == {
        "from": "/old", "to": "/new", "user": "it", "host": "pacs",
    }  # fmt: skip
    assert datetime.datetime.fromisoformat(told["at"]).tzinfo is not None
    assert commit.transaction_state(results, "r1") == 1


def test_an_interrupted_run_is_given_up_and_a_committed_one_is_not(results: str) -> None:
    night(results, "r1", ["/old/1"])
    for run in ("r1", "r2"):
        RunFolder(results, run).write_record(RunRecord(run, "f", {}, {}, {}, {}, None, "running", START))
    (Path(RunFolder(results, "r2").root) / "parts").mkdir()
    assert rebase(results, "/old", "/new", WHO, dry_run=True).abandoned == ("r1", "r2")
    assert rebase(results, "/old", "/new", WHO).abandoned == ("r2",)
    assert (commit.transaction_state(results, "r1"), commit.transaction_state(results, "r2")) == (1, 0)
    assert RunFolder(results, "r2").read_record().status == "abandoned"
    assert not (Path(RunFolder(results, "r2").root) / "parts").exists()


def test_while_another_writes_it_is_try_later(results: str) -> None:
    night(results, "r1", ["/old/1"])
    with Lease.acquire(results), pytest.raises(TryLater, match="being written"):
        rebase(results, "/old", "/new", WHO)
    assert rebase(results, "/old", "/new", WHO).rows == 1
