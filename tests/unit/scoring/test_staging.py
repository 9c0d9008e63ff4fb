"""The runs of one command, on disk before the first begins, and what the next command finds of them."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.archive.found import Listing
from pipelines.archive.plan import Plan
from pipelines.errors import LeaseLost
from pipelines.models.bundle import Bundle
from pipelines.predictions import commit
from pipelines.predictions.runs import RunFolder, list_runs
from pipelines.predictions.schema import prediction_schema
from pipelines.scoring.config import ScoreConfig
from pipelines.scoring.night import Night, Planned
from pipelines.scoring.staging import stage_runs, unsettled_runs
from pipelines.storage.leases import Lease

CLASSES = ("benign", "malignant")


@pytest.fixture
def results(tmp_path: Path) -> str:
    commit.ensure_table(str(tmp_path / "results"))
    return str(tmp_path / "results")


@pytest.fixture
def lease(results: str) -> Iterator[Lease]:
    with Lease.acquire(results) as owned:
        yield owned


def night_of(results: str, **options: object) -> Night:
    config = ScoreConfig("/archive", "/models/m", results, shard_size=2, **options)  # type: ignore[arg-type]
    bundle = SimpleNamespace(
        classes=CLASSES, positive_classes=CLASSES[1:], name="m", model_id="abc", preprocessing_id="p", thresholds={}
    )
    fingerprint = config.fingerprint("abc", "p")
    return Night(config, cast(Bundle, bundle), results, "/archive", fingerprint, lambda _progress: None)


def planned_of(folder: Path, sizes: tuple[int, ...]) -> Planned:
    paths = []
    for number, size in enumerate(sizes):
        path = folder / f"plan-{number:03d}.parquet"
        uris = [f"/archive/{number}-{image}.png" for image in range(size)]
        columns = {"shard": pa.array([i // 2 for i in range(size)], pa.int32()), "image_uri": uris}
        pq.write_table(pa.table({**columns, "image_version": ["1-1"] * size}), path)
        paths.append(path)
    total = sum(sizes)
    counts = {"found": total, "new": total, "changed": 0, "unchanged": 0, "rescored_for_model": 0, "backfilled": 0}
    plan = Plan(**counts, gone=0, known=0, planned=total, shards=total // 2, paths=tuple(paths))
    return Planned(Listing(folder / "listing.parquet", total), plan, 0)


def test_each_run_has_its_own_plan_and_their_names_sort_as_the_plan_does(
    tmp_path: Path, results: str, lease: Lease
) -> None:
    night = night_of(results)
    staged = stage_runs(night, planned_of(tmp_path, (4, 4, 3)), lease)
    assert [record.counts["planned"] for _, record in staged] == [4, 4, 3]
    assert [record.counts["shards"] for _, record in staged] == [2, 2, 2]
    firsts = [pq.read_table(folder.plan)["image_uri"][0].as_py() for folder, _ in staged]
    assert firsts == ["/archive/0-0.png", "/archive/1-0.png", "/archive/2-0.png"]
    assert [record.run_id for record in list_runs(results)] == [record.run_id for _, record in staged]
    found, closed = unsettled_runs(night, lease)
    assert [folder.run_id for folder, _ in found] == [folder.run_id for folder, _ in staged] and not closed


def test_another_configuration_abandons_them_all(tmp_path: Path, results: str, lease: Lease) -> None:
    stage_runs(night_of(results), planned_of(tmp_path, (4, 4)), lease)
    assert unsettled_runs(night_of(results, precision="int8"), lease) == ([], [])
    assert [record.status for record in list_runs(results)] == ["abandoned", "abandoned"]


@pytest.mark.parametrize("rescore", [False, True])
def test_a_set_that_was_never_written_whole_is_not_taken_for_all_of_a_rescoring(
    rescore: bool, tmp_path: Path, results: str, lease: Lease
) -> None:
    night = night_of(results, rescore=rescore)
    staged = stage_runs(night, planned_of(tmp_path, (4, 4, 4)), lease)
    shutil.rmtree(staged[1][0].root)  # as if the driver had died between two records
    found, _ = unsettled_runs(night, lease)
    # What is missing is new to a command that plans on, and would be forgotten by one that does not.
    kept = [] if rescore else [staged[0][0].run_id, staged[2][0].run_id]
    assert [folder.run_id for folder, _ in found] == kept


def commit_rows(results: str, run_id: str, day: datetime.date) -> int:
    schema = prediction_schema(CLASSES, None)
    values = {"run_id": [run_id] * 2, "image_uri": ["/a", "/b"], "error_code": [None, "truncated"]}
    columns = [
        pa.array([day] * 2 if field.name == "scored_date" else values.get(field.name, [None] * 2), field.type)
        for field in schema
    ]
    return commit.commit_run(results, run_id, schema, pa.table(columns, schema=schema).to_batches(), lambda: None)


def test_a_run_that_was_written_down_after_another_command_had_scored_is_abandoned(
    tmp_path: Path, results: str, lease: Lease
) -> None:
    """Its driver slept between planning and its record, lost the lease, and wrote the record when it woke."""
    night = night_of(results)
    late = stage_runs(night, planned_of(tmp_path, (2, 2)), lease)
    ((folder, record),) = stage_runs(night, planned_of(tmp_path, (2,)), lease)
    version = commit_rows(results, folder.run_id, record.started_at.date())
    folder.write_record(replace(record, status="committed", table_version=version))
    assert unsettled_runs(night, lease) == ([], [])
    for old, _ in late:
        assert old.read_record().status == "abandoned"
        assert commit.transaction_state(results, old.run_id) == commit.ABANDONED


def test_runs_of_one_set_do_not_make_each_other_stale(tmp_path: Path, results: str, lease: Lease) -> None:
    night = night_of(results)
    (first, record), (second, _) = stage_runs(night, planned_of(tmp_path, (2, 2)), lease)
    version = commit_rows(results, first.run_id, record.started_at.date())
    first.write_record(replace(record, status="committed", table_version=version))
    assert [folder.run_id for folder, _ in unsettled_runs(night, lease)[0]] == [second.run_id]


def test_a_run_that_is_abandoned_in_the_table_alone_is_not_opened_again(
    tmp_path: Path, results: str, lease: Lease
) -> None:
    night = night_of(results)
    ((folder, _),) = stage_runs(night, planned_of(tmp_path, (2,)), lease)
    assert commit.abandon_run(results, folder.run_id)
    assert unsettled_runs(night, lease) == ([], [])
    assert folder.read_record().status == "abandoned"


def test_a_lease_that_is_lost_while_runs_are_written_down_ends_it(tmp_path: Path, results: str, lease: Lease) -> None:
    night = night_of(results)
    (Path(results) / "leases" / f"{lease.number + 1}.json").write_text("{}")
    with pytest.raises(LeaseLost):
        stage_runs(night, planned_of(tmp_path, (2, 2)), lease)
    assert not list_runs(results)


def test_a_run_that_was_committed_and_could_not_say_so_is_closed(tmp_path: Path, results: str, lease: Lease) -> None:
    night = night_of(results)
    (first, record), (second, _) = stage_runs(night, planned_of(tmp_path, (2, 2)), lease)
    version = commit_rows(results, first.run_id, record.started_at.date())
    found, closed = unsettled_runs(night, lease)
    assert [folder.run_id for folder, _ in found] == [second.run_id]
    assert [(run_id, counts.scored, counts.failed_by_code) for run_id, counts in closed] == [
        (first.run_id, 1, {"truncated": 1})
    ]
    told = RunFolder(results, first.run_id).read_record()
    assert (told.status, told.table_version, told.counts["planned"], told.counts["scored"]) == (
        "committed",
        version,
        2,
        1,
    )
    again = unsettled_runs(replace(night, config=night.config), lease)
    assert [folder.run_id for folder, _ in again[0]] == [second.run_id] and not again[1]
