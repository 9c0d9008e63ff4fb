"""What the driver makes of receipts: the record's timings, and the file that tells other hosts where a run stands."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.predictions.runs import RunFolder
from pipelines.scoring.progress import BUCKET_SECONDS, SECONDS, ProgressFile
from pipelines.scoring.report import ScoreProgress
from pipelines.scoring.scorer import Receipt
from pipelines.scoring.timings import MOST_POINTS, SLOWEST, RateOverTime, Timings

STAGES = {"read": 1.0, "decode": 2.0, "score": 4.0, "write": 0.5, "wait": 0.0}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def receipt(shard: int, actor: str = "here-1", images: int = 10, seconds: float = 7.5) -> Receipt:
    slowest = [(shard + row / 10, row) for row in (2, 1, 0)]
    return Receipt(shard, images, {}, seconds, actor, stages=dict(STAGES), slowest=slowest)


@given(st.lists(st.tuples(st.floats(0, 400), st.integers(1, 500)), min_size=1, max_size=60))
def test_no_image_of_the_rate_over_time_is_lost_or_counted_twice(steps: list[tuple[float, int]]) -> None:
    rate, at = RateOverTime(), 0.0
    for pause, images in steps:
        at += pause
        rate.add(at, images)
    points = rate.points()
    ends = [end for end, _ in points]
    assert len(points) <= MOST_POINTS and ends == sorted(set(ends)) and ends[-1] >= round(at, 3)
    assert all(rate >= 0 for _, rate in points)
    counted = sum((end - start) * images for start, (end, images) in zip([0.0, *ends], points, strict=False))
    assert counted == pytest.approx(sum(images for _, images in steps), rel=0.01, abs=1)


def test_a_steady_night_has_a_steady_rate_however_long_it_is() -> None:
    rate = RateOverTime()
    for second in range(20_000):
        rate.add(second + 0.5, 30)
    assert {round(images) for _, images in rate.points()} == {30}


def test_time_is_summed_by_stage_and_machines_by_how_long_they_were_held() -> None:
    clock = Clock()
    timings = Timings(clock)
    with timings.phase("starting"):
        clock.now += 20
    timings.found_finished(64)
    timings.found_finished(0)  # a second round finds what the first has scored
    timings.begin_scoring(actors=3, driver_node="here")
    for second, shard, actor in ((10, 0, "here-1"), (15, 1, "there-1"), (40, 2, "there-2"), (60, 3, "here-1")):
        clock.now = 120 + second
        timings.add(receipt(shard, actor))
    for _ in range(2):  # a second round of the gate
        with timings.phase("committing"):
            clock.now += 5
    record = timings.as_record({"listing_seconds": 30.0, "planning_seconds": 10.0, "seconds": 1.0})
    assert record["stages"] == {stage: 4 * seconds for stage, seconds in STAGES.items()}
    assert (record["starting_seconds"], record["committing_seconds"], record["seconds"]) == (20, 10, 90)
    assert record["listing_seconds"] == 30 and record["images_before"] == 64
    assert record["nodes"] == 2 and record["cores"] == 3
    # This machine for 90 seconds and the planning before; the other from 7.5 s before its first receipt to its last.
    assert record["node_hours"] == pytest.approx((90 + 40 + 25 + 7.5) / 3600)
    assert record["core_hours"] == pytest.approx(4 * sum(STAGES.values()) / 3600)
    assert json.loads(json.dumps(record)) == record


def test_an_actor_that_was_replaced_is_no_further_core() -> None:
    timings = Timings(Clock())
    timings.begin_scoring(actors=2)
    for shard, actor in enumerate(("n-1", "n-2", "n-3")):
        timings.add(receipt(shard, actor))
    assert timings.as_record({})["cores"] == 2


def test_the_slowest_images_of_all_shards_are_kept() -> None:
    timings = Timings(Clock())
    timings.begin_scoring(1)
    receipts = [receipt((shard * 7) % 30) for shard in range(30)]
    for one in receipts:
        timings.add(one)
    kept = [(image["seconds"], image["shard"], image["row"]) for image in timings.as_record({})["slowest"]]
    everything = sorted(((s, one.shard, row) for one in receipts for s, row in one.slowest), reverse=True)
    assert kept == everything[:SLOWEST]


def test_a_command_that_only_committed_what_was_finished_before_knows_nothing_of_its_stages() -> None:
    record = Timings(Clock()).as_record({"stages": dict(STAGES), "listing_seconds": 3.0})
    assert record["stages"] == STAGES and record["listing_seconds"] == 3.0


def test_progress_is_written_seldom_and_at_once_where_another_phase_begins(tmp_path: Path) -> None:
    clock, folder = Clock(), RunFolder(str(tmp_path), "run")
    progress = ProgressFile(folder, clock)

    def told(phase: str, done: int) -> dict[str, object]:
        progress.tell(ScoreProgress(phase, done, 100, 1, 12.5, 4.0))
        return dict(json.loads(Path(folder.progress).read_bytes()))

    first = told("starting", 0)
    assert (first["phase"], first["total"], first["rate"], first["seconds_left"]) == ("starting", 100, 12.5, 4.0)
    at = datetime.datetime.fromisoformat(str(first["at"]))
    assert abs((datetime.datetime.now(datetime.UTC) - at).total_seconds()) < 60
    assert told("scoring", 10)["done"] == 10
    clock.now += SECONDS - 0.1
    assert told("scoring", 20)["done"] == 10
    clock.now += 0.1
    assert told("scoring", 30)["done"] == 30
    folder.remove_parts()
    assert not Path(folder.progress).exists()


def test_a_bucket_is_written_to_less_often() -> None:
    assert BUCKET_SECONDS > SECONDS


def test_a_night_does_not_end_because_progress_cannot_be_written(tmp_path: Path) -> None:
    Path(tmp_path / "runs").write_text("no folder")
    ProgressFile(RunFolder(str(tmp_path), "run")).tell(ScoreProgress("scoring", 1, 2))
    assert Path(tmp_path / "runs").read_text() == "no folder"
