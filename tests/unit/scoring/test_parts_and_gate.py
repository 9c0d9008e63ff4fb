"""A run's plan, parts and gate on real files."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.predictions.runs import RunFolder
from pipelines.scoring import parts
from pipelines.scoring.gate import Gate, PartMissing
from pipelines.scoring.parts import PlanFile
from pipelines.storage import files

SCHEMA = pa.schema([("image_uri", pa.string()), ("error_code", pa.string()), ("frames", pa.int32())])


def plan_bytes(images: int, shard_size: int, shards_per_group: int = 16) -> bytes:
    table = pa.table(
        {
            "shard": pa.array(np.arange(images, dtype=np.int32) // shard_size),
            "image_uri": [f"/archive/{i}.jpg" for i in range(images)],
            "image_version": ["1-1"] * images,
            "site": ["north"] * images,
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=shard_size * shards_per_group)
    return buffer.getvalue()


def plan_file(images: int, shard_size: int, shards_per_group: int = 16) -> PlanFile:
    return PlanFile(io.BytesIO(plan_bytes(images, shard_size, shards_per_group)))


def part_of(images: pa.Table, code: str | None = None, frames: int = 1) -> pa.Table:
    rows = images.num_rows
    return pa.table(
        [images["image_uri"], pa.array([code] * rows, pa.string()), pa.array([frames] * rows)], schema=SCHEMA
    )


@given(images=st.integers(1, 400), shard_size=st.integers(1, 20), per_group=st.integers(1, 5))
def test_plan_gives_every_image_once(images: int, shard_size: int, per_group: int) -> None:
    plan = plan_file(images, shard_size, per_group)
    found = []
    for group, (first, last) in enumerate(plan.groups):
        for shard, rows in plan.read_group(group).items():
            assert first <= shard <= last and plan.group_of(shard) == group
            assert 1 <= rows.num_rows <= shard_size
            found += rows["image_uri"].to_pylist()
    assert found == [f"/archive/{i}.jpg" for i in range(images)]
    assert plan.images == images and plan.shards == -(-images // shard_size)
    assert plan.carried == pa.schema([("site", pa.string())])


@given(images=st.integers(1, 200), data=st.data())
def test_a_cut_plan_holds_the_images_of_the_kept_shards_and_no_others(images: int, data: st.DataObject) -> None:
    whole = plan_file(images, 3, 4)
    kept = data.draw(st.sets(st.integers(0, whole.shards - 1)))
    with tempfile.TemporaryDirectory() as results:
        folder = RunFolder(results, "run")
        files.write_atomic(folder.plan, plan_bytes(images, 3, 4))
        folder.write_cut(kept)
        assert folder.read_cut() == kept
        with parts.open_plan(folder) as plan:
            assert plan.kept == sorted(kept) and plan.whole == images
            assert parts.missing_shards(folder, plan) == sorted(kept)
            read = [shard for group in range(len(plan.groups)) for shard in plan.read_group(group)]
            assert read == sorted(kept) and plan.images == whole.images_of(kept)


@given(images=st.integers(1, 300), most=st.integers(1, 20), data=st.data())
def test_blocks_partition_the_shards(images: int, most: int, data: st.DataObject) -> None:
    plan = plan_file(images, 3, 4)
    wanted = data.draw(st.lists(st.integers(0, plan.shards - 1), unique=True))
    blocks = list(parts.blocks_of(wanted, plan, most))
    assert [shard for block in blocks for shard in block] == sorted(wanted)
    for block in blocks:
        assert 1 <= len(block) <= most
        assert len({plan.group_of(shard) for shard in block}) == 1
    assert plan.images_of(wanted) == sum(len(range(s * 3, min(s * 3 + 3, images))) for s in wanted)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path), "run")


def write_all(folder: RunFolder, plan: PlanFile) -> None:
    for group in range(len(plan.groups)):
        for shard, images in plan.read_group(group).items():
            parts.write_part(folder, shard, part_of(images))


def test_gate_passes_rows_in_the_plans_order(folder: RunFolder) -> None:
    plan = plan_file(50, 4, 2)
    write_all(folder, plan)
    images = plan.read_group(plan.group_of(3))[3]
    parts.write_part(folder, 3, part_of(images, "truncated", frames=2))
    gate = Gate(folder, plan, SCHEMA)
    for _ in range(2):  # a second pass counts anew
        rows = pa.Table.from_batches(gate, SCHEMA)
        assert rows["image_uri"].to_pylist() == [f"/archive/{i}.jpg" for i in range(50)]
        assert gate.complete and gate.counts.scored == 46 and gate.counts.failed_by_code == {"truncated": 4}
        assert gate.multi_frame == 4
    assert parts.missing_shards(folder, plan) == []


@pytest.mark.parametrize("damage", ["missing", "cut", "other image", "fewer", "twice", "other columns", "order"])
def test_gate_stays_closed(folder: RunFolder, damage: str) -> None:
    plan = plan_file(30, 4)
    write_all(folder, plan)
    images = plan.read_group(0)[5]
    part = Path(folder.part(5))
    rows = part_of(images)
    if damage == "missing":
        part.unlink()
    elif damage == "cut":
        part.write_bytes(part.read_bytes()[:-7])
    else:
        wrong = {
            "other image": part_of(plan.read_group(0)[4]),
            "fewer": rows.slice(1),
            "twice": pa.concat_tables([rows, rows.slice(0, 1)]),
            "other columns": rows.drop_columns(["frames"]),
            "order": rows.take([1, 0, 2, 3]),
        }[damage]
        parts.write_part(folder, 5, wrong)
    gate = Gate(folder, plan, SCHEMA)
    with pytest.raises(PartMissing):
        list(gate)
    assert gate.damaged == [5] and not gate.complete


def test_attempts_are_counted_for_each_driver(folder: RunFolder) -> None:
    assert [parts.next_attempt(folder, 7, session=1) for _ in range(3)] == [1, 2, 3]
    assert parts.next_attempt(folder, 7, session=2) == 1
    assert parts.next_attempt(folder, 8, session=2) == 1
    assert folder.begun_shards() == {7, 8}
    folder.remove_parts()
    assert folder.begun_shards() == set()


def test_the_gate_names_all_that_is_damaged(folder: RunFolder) -> None:
    plan = plan_file(100, 2, 4)
    write_all(folder, plan)
    for shard in (3, 17, 44):
        Path(folder.part(shard)).write_bytes(b"")
    gate = Gate(folder, plan, SCHEMA)
    with pytest.raises(PartMissing):
        list(gate)
    assert gate.damaged == [3, 17, 44]


def test_a_plan_that_is_lost_or_damaged(folder: RunFolder) -> None:
    with pytest.raises(parts.PlanLost), parts.open_plan(folder):
        pass
    files.write_atomic(folder.plan, plan_bytes(10, 2))
    with parts.open_plan(folder) as plan:
        assert plan.images == 10
    files.write_atomic(folder.plan, plan_bytes(10, 2)[:-5])
    with pytest.raises(parts.PlanLost), parts.open_plan(folder):
        pass
