"""The figures of a scoring command."""

from __future__ import annotations

import json

import pytest

from pipelines.errors import Stopped
from pipelines.scoring.config import Allowance
from pipelines.scoring.finish import _stoppable
from pipelines.scoring.report import RunCounts, ScoreReport, Tally
from pipelines.scoring.scorer import Receipt


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def receipt(shard: int, actor: str, images: int = 10, failed: int = 0) -> Receipt:
    return Receipt(shard, images, {"truncated": failed} if failed else {}, 0.1, actor)


def test_steady_rate_starts_when_every_actor_has_answered() -> None:
    clock = Clock()
    tally = Tally(60, 0, actors=2, clock=clock)
    for second, shard, actor in ((5, 0, "a"), (6, 1, "a"), (9, 2, "b"), (11, 3, "a"), (13, 4, "b")):
        clock.now = 100.0 + second
        assert tally.add(receipt(shard, actor))
    # From second 9 to second 13, shards 3 and 4.
    assert tally.steady_rate == pytest.approx(20 / 4)


def test_no_rate_without_receipts_in_between() -> None:
    clock = Clock()
    tally = Tally(20, 0, actors=2, clock=clock)
    assert tally.steady_rate is None
    clock.now += 1
    tally.add(receipt(0, "a"))
    assert tally.steady_rate is None
    clock.now += 1
    tally.add(receipt(1, "b"))
    assert tally.steady_rate is None
    clock.now += 0.01  # the other actor's answer was only a moment late
    tally.add(receipt(2, "a"))
    assert tally.steady_rate is None


def test_a_shard_counts_once() -> None:
    clock = Clock()
    tally = Tally(100, 30, actors=1, clock=clock)
    clock.now += 2
    assert tally.add(receipt(0, "a", failed=2))
    assert not tally.add(receipt(0, "b", failed=2))
    progress = tally.progress()
    assert (progress.done, progress.total, progress.failed) == (40, 100, 2)


def test_how_long_it_takes_is_said_once_reports_have_come_for_a_while() -> None:
    clock = Clock()
    tally = Tally(200, 20, actors=2, clock=clock)

    def at(second: float, *shards: int) -> tuple[float | None, float | None]:
        clock.now = 100.0 + second
        for shard in shards:
            tally.add(receipt(shard, "a"))
        progress = tally.progress()
        return progress.images_per_second, progress.seconds_left

    # Actors take ten seconds to start, and what is told first is told together.
    assert at(5) == (None, None)
    assert at(10, 0) == at(10.1, 1, 2) == (None, None)
    assert at(14, 3) == at(19) == (None, None)
    # From second 10 to second 20 the shards 3 to 6; 200 - 20 - 70 images are left.
    assert at(20, 4, 5, 6) == (pytest.approx(4.0), pytest.approx(110 / 4.0))
    assert at(30) == (pytest.approx(2.0), pytest.approx(55.0))  # a silence makes it longer


def test_a_night_that_is_stopped_says_what_is_kept() -> None:
    tally = Tally(14_558, 5_000, actors=1)
    tally.add(receipt(0, "a", images=120))
    with pytest.raises(Stopped, match="with 5,120 of 14,558 images"), _stoppable(tally):
        raise KeyboardInterrupt(15)


def test_counts_add_up() -> None:
    both = RunCounts(5, {"truncated": 1}) + RunCounts(7, {"truncated": 2, "storage": 1})
    assert both == RunCounts(12, {"truncated": 3, "storage": 1})
    assert (both.failed, both.images) == (4, 16)


@pytest.mark.parametrize(
    ("counts", "unlistable", "threshold", "code"),
    [
        (RunCounts(100, {}), (), "1%", 0),
        (RunCounts(99, {"truncated": 1}), (), "1%", 0),
        (RunCounts(98, {"truncated": 2}), (), "1%", 3),
        (RunCounts(0, {}), ("/archive/closed",), "1%", 3),
        (RunCounts(500, {}), ("/archive/closed",), "1%", 0),
        (RunCounts(500, {}), ("/archive/closed",), "0", 3),
    ],
)
def test_exit_code(counts: RunCounts, unlistable: tuple[str, ...], threshold: str, code: int) -> None:
    report = ScoreReport(
        "/r", counts=counts, unlistable=unlistable, threshold=Allowance.parse("--fail-threshold", threshold)
    )
    assert report.exit_code == code
    answer = json.loads(json.dumps(report.as_json()))
    assert answer["exit_code"] == code and answer["failed"] == counts.failed
