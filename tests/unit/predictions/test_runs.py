"""Run folders and records."""

from __future__ import annotations

import datetime
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.predictions import commit, runs
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.storage import files

RECORD = RunRecord(
    run_id="20260101T010203-aabbccdd",
    fingerprint="f00d",
    configuration={"archive": "/data/é", "limit": None},
    counts={"found": 3},
    timings={"seconds": 1.5},
    who={"user": "u"},
    table_version=None,
    status="running",
    started_at=datetime.datetime(2026, 1, 1, 1, 2, 3, tzinfo=datetime.UTC),
)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), RECORD.run_id)
    folder.write_record(RECORD)
    assert folder.read_record() == RECORD
    known = replace(RECORD, model={"classes": ["a", "b"], "thresholds": {"image": {"threshold": 0.5}}})
    assert RunRecord.from_json(known.to_json(), "run.json") == known
    earlier = {name: value for name, value in RECORD.as_json().items() if name != "model"}
    assert RunRecord.from_json(json.dumps(earlier).encode(), "run.json") == RECORD
    folder.write_record(replace(RECORD, status="committed", table_version=4))
    assert [record.table_version for record in runs.list_runs(str(tmp_path))] == [4]


def test_a_record_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "r")
    folder.write_record(replace(RECORD, format=2))
    with pytest.raises(UsageError, match="format 2"):
        runs.list_runs(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"format": 1}', b"\xff"])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(str(tmp_path), "r")
    files.write_atomic(folder.run_json, content)
    with pytest.raises(UsageError, match=r"run\.json"):
        folder.read_record()


def test_what_is_no_run_is_left_out(tmp_path: Path) -> None:
    assert runs.list_runs(str(tmp_path / "nothing")) == []
    (tmp_path / "runs" / "died-before-its-record").mkdir(parents=True)
    (tmp_path / "runs" / ".DS_Store").write_bytes(b"x")
    for name in ("b", "a"):
        RunFolder(str(tmp_path), name).write_record(replace(RECORD, run_id=name))
    assert [record.run_id for record in runs.list_runs(str(tmp_path))] == ["a", "b"]


@pytest.mark.parametrize("content", [b"", b"\0" * 300, b'{"format": 1, "run'])
def test_a_torn_record_of_a_run_that_is_closed_is_passed_over(tmp_path: Path, content: bytes) -> None:
    place = str(tmp_path)
    commit.ensure_table(place)
    RunFolder(place, "b").write_record(replace(RECORD, run_id="b"))
    files.write_atomic(RunFolder(place, "a").run_json, content)
    with pytest.raises(UsageError, match=r"run\.json"):
        runs.list_runs(place)
    assert commit.abandon_run(place, "a")
    assert [record.run_id for record in runs.list_runs(place)] == ["b"]
    files.write_atomic(RunFolder(place, "a").run_json, b'{"format": 2}')
    with pytest.raises(UsageError, match="format 2"):
        runs.list_runs(place)


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'nix'"):
        RunFolder(str(tmp_path), "nix").read_record()


def test_parts_and_markers_are_counted_and_removed(tmp_path: Path) -> None:
    folder = pickle.loads(pickle.dumps(RunFolder(str(tmp_path), "r")))
    assert folder.finished_shards() == set() and folder.begun_shards() == set()
    for shard in (0, 17, 123_456_789):
        files.write_atomic(folder.part(shard), b"rows")
    files.write_atomic(folder.part(1).replace("parquet", "tmp"), b"unfinished")
    assert files.create_exclusive(folder.marker(3, 1, 1), b"")
    assert files.create_exclusive(folder.marker(3, 2, 1), b"")
    assert folder.finished_shards() == {0, 17, 123_456_789}
    assert folder.begun_shards() == {3}
    assert [Path(uri).name for uri in folder.part_uris] == ["00000000.parquet", "00000017.parquet", "123456789.parquet"]
    folder.remove_parts()
    assert folder.finished_shards() == set() and folder.begun_shards() == set()


def test_run_ids_sort_by_time_and_differ() -> None:
    ids = [runs.new_run_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert [name[:15] for name in ids] == sorted(name[:15] for name in ids)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (["--root", "s3://me:hush@host/a?X-Sig=hush#x"], ["--root", "s3://***@host/a?***"]),
        (["--access-token", "hush", "--limit", "3"], ["--access-token", "***", "--limit", "3"]),
        (["--access-token=hush"], ["--access-token=***"]),
        (["AWS_SECRET_ACCESS_KEY=hush"], ["AWS_SECRET_ACCESS_KEY=***"]),
        (["score", "/a=b?c", "--columns", "uri=path"], ["score", "/a=b?c", "--columns", "uri=path"]),
    ],
)
def test_secrets_are_not_written_down(given: list[str], written: list[str]) -> None:
    assert runs.without_secrets(given) == written


def test_who_and_where_is_json() -> None:
    told = json.loads(json.dumps(runs.who_and_where(["nightread", "score"])))
    assert told["command_line"] == ["nightread", "score"]
    assert {"user", "host", "versions"} <= told.keys()
    assert told["versions"]["deltalake"]
