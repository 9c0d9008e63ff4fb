"""Where an actor's time goes: every instant belongs to one stage, and slow images are known by their row."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.predictions.runs import RunFolder
from pipelines.scoring.features import CacheKernel, CacheModel
from pipelines.scoring.scorer import SLOWEST_OF_SHARD, FeatureMaker, Kernel, Receipt, ShardScorer, ShardWork
from pipelines.scoring.stages import STAGES, StageClock

PIXELS = CacheModel(None, None, 4 * 4 * 3, "uint8")


class Ticking:
    """A clock that others move."""

    def __init__(self) -> None:
        self.now = 7.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.sampled_from(STAGES), st.integers(0, 1000))))
def test_every_instant_belongs_to_one_stage(turns: list[tuple[str, int]]) -> None:
    ticking = Ticking()
    clock = StageClock(ticking)
    expected = dict.fromkeys(STAGES, 0.0)
    for stage, ticks in turns:
        clock.turn_to(stage)
        ticking.now += ticks
        expected[stage] += ticks
    assert clock.seconds() == expected
    clock.begin()
    assert clock.seconds() == dict.fromkeys(STAGES, 0.0)


class Busy:
    """Makes a kernel that is busy for a while with each image whose number is given."""

    def __init__(self, seconds: dict[int, float], before: Callable[[int], object] = lambda _count: None) -> None:
        self._seconds = seconds
        self._before = before
        self._count = 0

    def __call__(self, model: bytes) -> Kernel:
        plain = CacheKernel(PIXELS, None)(model)

        def kernel(prepared: object) -> np.ndarray:
            self._before(self._count)
            until = time.perf_counter() + self._seconds.get(self._count, 0.0)
            self._count += 1
            while time.perf_counter() < until:
                pass
            return plain(prepared)  # type: ignore[arg-type]

        return kernel


def planned(archive: Path, count: int) -> pa.Table:
    archive.mkdir()
    for number in range(count):
        assert cv2.imwrite(str(archive / f"{number}.png"), np.full((5, 6, 3), number, np.uint8))
    uris = [str(archive / f"{number}.png") for number in range(count)]
    return pa.table({"image_uri": uris, "image_version": ["1-1"] * count})


def test_a_receipt_says_where_the_time_went_and_names_its_slowest_images_by_row(tmp_path: Path) -> None:
    images = planned(tmp_path / "archive", 9)
    (tmp_path / "archive" / "2.png").write_bytes(b"")  # fails before the kernel
    work = ShardWork(RunFolder(str(tmp_path), "run"), 1, 4, Busy({5: 0.3, 2: 0.2, 8: 0.1}), FeatureMaker(PIXELS.size))
    scorer = ShardScorer(work, b"")
    scorer.score(1, images.slice(0, 1))  # the first image of an actor waits for libraries
    began = time.perf_counter()
    receipt = scorer.score(0, images, actor="node-1")
    elapsed = time.perf_counter() - began
    assert set(receipt.stages) == set(STAGES) and min(receipt.stages.values()) >= 0
    assert sum(receipt.stages.values()) == pytest.approx(receipt.seconds) and receipt.seconds <= elapsed
    assert receipt.stages["score"] >= 0.6 and receipt.stages["decode"] > 0 and receipt.stages["write"] > 0
    assert [row for _, row in receipt.slowest] == [5, 1, 8] and len(receipt.slowest) == SLOWEST_OF_SHARD
    assert [seconds for seconds, _ in receipt.slowest] == sorted((s for s, _ in receipt.slowest), reverse=True)
    assert receipt.slowest[0][0] >= 0.3
    # As it crosses the object store.
    again = Receipt(**json.loads(json.dumps(vars(receipt))))
    assert again.stages == receipt.stages and [tuple(slow) for slow in again.slowest] == receipt.slowest


def test_waiting_for_an_archive_that_is_away_is_a_stage_of_its_own(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    images = planned(archive, 40)

    def unmount(count: int) -> None:
        if count == 3:
            archive.rename(tmp_path / "away")

    def mount(_seconds: float) -> None:
        until = time.perf_counter() + 0.05
        while time.perf_counter() < until:
            pass
        if (tmp_path / "away").exists():
            (tmp_path / "away").rename(archive)

    work = ShardWork(RunFolder(str(tmp_path), "run"), 1, 4, Busy({}, unmount), FeatureMaker(PIXELS.size), str(archive))
    receipt = ShardScorer(work, b"", mount).score(0, images)
    assert receipt.stages["wait"] >= 0.05 and not receipt.failed
    shutil.rmtree(archive)


def test_nothing_is_waited_for_while_the_archive_is_there(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    images = planned(archive, 6)
    (archive / "2.png").write_bytes(b"")
    (archive / "4.png").unlink()  # fails on storage's side: the archive is asked whether it is there
    work = ShardWork(RunFolder(str(tmp_path), "run"), 1, 4, Busy({}), FeatureMaker(PIXELS.size), str(archive))
    receipt = ShardScorer(work, b"").score(0, images)
    assert sum(receipt.failed.values()) == 2 and receipt.storage_failed == 1
    assert receipt.stages["wait"] == 0.0
    assert sum(receipt.stages.values()) == pytest.approx(receipt.seconds)


def test_a_shard_that_was_finished_before_its_actor_died_names_no_image(tmp_path: Path) -> None:
    images = planned(tmp_path / "archive", 3)
    scorer = ShardScorer(ShardWork(RunFolder(str(tmp_path), "run"), 1, 4, Busy({}), FeatureMaker(PIXELS.size)), b"")
    first, again = scorer.score(0, images), scorer.score(0, images)
    assert len(first.slowest) == 3 and again.slowest == [] and again.images == 3
    assert again.stages["decode"] == again.stages["score"] == 0
