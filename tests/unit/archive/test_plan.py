"""The plan: its files, and what is said when it cannot be made; its counts are in test_plan_by_sets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.archive import plan_questions
from pipelines.archive.plan import Plan, PlanKey, make_plan
from pipelines.errors import NightreadError, TryLater, UsageError

KEY = PlanKey("model", "pixels", "float32", "cells")
OLDER = PlanKey("older", "pixels", "float32", "cells")
COUNTER = itertools.count()


@dataclass(frozen=True)
class Row:
    """A row of the table; `code` is None where it was scored."""

    uri: str
    version: str
    key: PlanKey
    code: str | None


def write_table(path: Path, rows: Sequence[Row]) -> str:
    """A file of the table with the columns that a plan needs and one more."""
    pq.write_table(
        pa.table(
            {
                "image_uri": pa.array([row.uri for row in rows], pa.string()),
                "image_version": pa.array([row.version for row in rows], pa.string()),
                "model_id": pa.array([row.key.model_id for row in rows], pa.string()),
                "preprocessing_id": pa.array([row.key.preprocessing_id for row in rows], pa.string()),
                "model_name": pa.array([row.key.model_name for row in rows], pa.string()),
                "precision": pa.array([row.key.precision for row in rows], pa.string()),
                "status": pa.array(["failed" if row.code else "scored" for row in rows], pa.string()),
                "error_code": pa.array([row.code for row in rows], pa.string()),
                "score": pa.array([0.5] * len(rows), pa.float32()),
            }
        ),
        path,
    )
    return str(path)


def planned(
    folder: Path,
    listing: Sequence[tuple[str, str]],
    files: Sequence[str],
    *,
    limit: int | None = None,
    rescore: bool = False,
    retry_failed: bool = False,
    shard_size: int = 2,
    group: int = 4,
    rows_a_run: int | None = None,
) -> tuple[Plan, list[dict[str, object]]]:
    """Make a plan in a folder of its own and read it back."""
    place = folder / f"plan {next(COUNTER)} [x]*?"
    place.mkdir()
    path, out = place / "listing.parquet", place / "out"
    out.mkdir()
    columns = {
        "image_uri": pa.array([uri for uri, _ in listing], pa.string()),
        "image_version": pa.array([version for _, version in listing], pa.string()),
        "patient_id": pa.array([f"{number:03d}" for number in range(len(listing))], pa.string()),
    }
    pq.write_table(pa.table(columns), path, row_group_size=3)
    plan = make_plan(
        path,
        files,
        None,
        KEY,
        shard_size=shard_size,
        rows_per_group=group,
        limit=limit,
        rescore=rescore,
        retry_failed=retry_failed,
        rows_a_run=rows_a_run,
        out_folder=out,
    )
    assert list(plan.paths) == list(out.iterdir())
    if not plan.planned:
        return plan, []
    file = pq.ParquetFile(plan.paths[0])
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert sizes[:-1] == [group] * (len(sizes) - 1) and 0 < sizes[-1] <= group
    return plan, file.read().to_pylist()


def test_everything_is_new_without_a_table(tmp_path: Path) -> None:
    plan, rows = planned(tmp_path, [("/a", "1"), ("/b", "")], [])
    assert (plan.found, plan.new, plan.planned, plan.shards, len(plan.paths)) == (2, 2, 2, 1, 1)
    assert [row["patient_id"] for row in rows] == ["000", "001"]


def test_an_image_that_is_listed_twice_is_planned_once(tmp_path: Path) -> None:
    plan, rows = planned(tmp_path, [("/a", "1"), ("/b", "1"), ("/a", "2")], [])
    assert (plan.found, plan.planned) == (2, 2)
    assert [(row["image_uri"], row["image_version"]) for row in rows] == [("/a", "1"), ("/b", "1")]


def test_an_empty_listing_makes_an_empty_plan(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", [Row("/a", "1", KEY, None)])
    assert planned(tmp_path, [], [table])[0] == Plan(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ())


def test_files_with_other_columns_are_read_together(tmp_path: Path) -> None:
    files = [write_table(tmp_path / "1.parquet", [Row("/a", "1", KEY, None)])]
    second = pq.read_table(write_table(tmp_path / "2.parquet", [Row("/b", "1", KEY, None)]))
    pq.write_table(second.append_column("p_new", pa.array([0.1])), tmp_path / "2.parquet")
    plan, _ = planned(tmp_path, [("/a", "1"), ("/b", "1")], [*files, str(tmp_path / "2.parquet")])
    assert plan.unchanged == 2


def test_a_run_for_every_few_images_is_refused(tmp_path: Path) -> None:
    listing = [(f"/{number}", "1") for number in range(1001)]
    with pytest.raises(UsageError, match="would make 1,001 runs of 1,001 images") as caught:
        planned(tmp_path, listing, [], rows_a_run=1)
    assert "at least 2 at once" in caught.value.cure


def test_shards_follow_each_other_across_groups(tmp_path: Path) -> None:
    listing = [(f"/{number:04d}", "1") for number in range(1000)]
    plan, rows = planned(tmp_path, listing, [], shard_size=7, group=7 * 16)
    assert plan.shards == 143
    assert [row["shard"] for row in rows] == [number // 7 for number in range(1000)]
    assert [row["image_uri"] for row in rows] == [uri for uri, _ in listing]


def test_a_group_is_whole_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple"):
        planned(tmp_path, [("/a", "1")], [], shard_size=3, group=4)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 no more"])
def test_a_file_of_the_table_that_is_gone_or_damaged_is_explained(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "t.parquet"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TryLater, match=r"t\.parquet") as told:
        planned(tmp_path, [("/a", "1")], [str(file)])
    assert told.value.cure and "\n" not in told.value.message


def test_too_little_memory_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_table(tmp_path / "t.parquet", [Row(f"/{i}", "1", OLDER, None) for i in range(20_000)])
    listing = [(f"/{i}" + "x" * 50, "1") for i in range(20_000)]
    monkeypatch.setattr("pipelines.archive.plan_questions.MEMORY_LIMIT", "1MB")
    with pytest.raises(UsageError, match="1MB of memory") as told:
        planned(tmp_path, listing, [table])
    assert told.value.cure


def test_a_full_temporary_folder_is_worth_another_try() -> None:
    text = 'IO Error: Could not write file "/tmp/nightread-join-x/duckdb_temp": No space left on device'
    told = plan_questions.explanation(duckdb.IOException(text))
    assert isinstance(told, TryLater) and "TMPDIR" in told.cure


def test_a_plan_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image_uri": ["/a"], "image_version": ["1"]}), tmp_path / "listing.parquet")
    (tmp_path / "plan-000.parquet").symlink_to("/dev/full")
    with pytest.raises(NightreadError) as told:
        make_plan(
            tmp_path / "listing.parquet", [], None, KEY, shard_size=2, rows_per_group=4, limit=None, rescore=False,
            retry_failed=False, out_folder=tmp_path,
        )  # fmt: skip
    assert isinstance(told.value, TryLater) and told.value.cure


def test_the_files_of_a_bucket_are_read_through_its_file_system(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", [Row("/a", "1", KEY, None)])
    listing = tmp_path / "listing.parquet"
    pq.write_table(pa.table({"image_uri": ["/a", "/b"], "image_version": ["1", "1"]}), listing)

    def plan(uri: str) -> Plan:
        return make_plan(
            listing, [uri], fsspec.filesystem("file"), KEY, shard_size=2, rows_per_group=4, limit=None, rescore=False,
            retry_failed=False, out_folder=tmp_path,
        )  # fmt: skip

    assert plan(table).unchanged == 1
    with pytest.raises(TryLater, match="gone"):
        plan(str(tmp_path / "none.parquet"))
