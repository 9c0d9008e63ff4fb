"""When a night is well, late, failed or interrupted: the rules of `runs check`, on records that are on a disk."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.predictions.nights import NightRecord, write_night
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.watching import Level, Seen, in_words, judge, look
from pipelines.storage.leases import Lease
from pipelines.storage.processes import Identity

NOW = datetime.datetime(2026, 3, 2, 9, 0, tzinfo=datetime.UTC)
HOUR = 3600.0
LIMIT = 26 * HOUR


def night(hours_ago: float, exit_code: int = 0, archive: str = "/mnt/ct") -> NightRecord:
    """A night that ended so long ago."""
    ended = NOW - datetime.timedelta(hours=hours_ago)
    error = {"code": "x", "message": "Something was wrong.", "cure": ""} if exit_code not in (0, 3, 5) else None
    return NightRecord(
        ended - datetime.timedelta(hours=1), ended, exit_code, archive, "/m", error, counts={"scored": 4, "failed": 1}
    )


def run(hours_ago: float, status: str, run_id: str = "") -> RunRecord:
    """A run that began so long ago."""
    began = NOW - datetime.timedelta(hours=hours_ago)
    name = run_id or f"{began:%Y%m%dT%H%M%S}-aabbccdd"
    version = 3 if status == "committed" else None
    return RunRecord(name, "f", {"archive": "/mnt/ct"}, {"scored": 9}, {"seconds": 1800.0}, {}, version, status, began)


def level(*nights: NightRecord, warn: float | None = None) -> Level:
    """The verdict's level on these nights, the newest first."""
    return judge(Seen(nights, (), ()), NOW, LIMIT, warn).level


@pytest.mark.parametrize(
    ("nights", "expected"),
    [
        ([], Level.CRITICAL),
        ([night(5)], Level.OK),
        ([night(25.9)], Level.OK),
        ([night(26.1)], Level.CRITICAL),
        ([night(5, 3)], Level.WARNING),
        ([night(5, 5)], Level.WARNING),
        ([night(5, 1), night(6)], Level.CRITICAL),
        ([night(5, 2), night(6)], Level.CRITICAL),
        ([night(5, 4), night(6)], Level.CRITICAL),
        ([night(5, 75), night(6)], Level.WARNING),
        ([night(5, 143), night(6)], Level.WARNING),
        ([night(5, 130), night(26.1)], Level.CRITICAL),
        ([night(5, 75), night(26.1)], Level.CRITICAL),
        ([night(5, 75)], Level.CRITICAL),
        ([night(1), night(5, 4)], Level.OK),
        ([night(1), night(5, 3)], Level.OK),
        # Another archive in the same results: its own last night counts, as long as it is no older than the limit.
        ([night(1), night(5, 4, "/mnt/xray"), night(30, 0, "/mnt/xray")], Level.CRITICAL),
        ([night(1), night(5, 4, "/mnt/xray")], Level.OK),
        ([night(1, 2, "/mnt/xarr"), night(5)], Level.CRITICAL),
        ([night(1), night(3, archive="/mnt/xray"), night(5, 4, "/mnt/xray")], Level.OK),
        ([night(1), night(30, 4, "/mnt/xray")], Level.OK),
    ],
)
def test_the_rules(nights: list[NightRecord], expected: Level) -> None:
    assert level(*nights) is expected


def test_a_warning_comes_before_the_limit() -> None:
    assert level(night(25), warn=24 * HOUR) is Level.WARNING
    assert level(night(23), warn=24 * HOUR) is Level.OK
    assert level(night(27), warn=24 * HOUR) is Level.CRITICAL


def test_a_night_that_runs_is_told_and_excuses_nothing() -> None:
    seen = Seen((night(30),), (run(3, "running"),), ())
    verdict = judge(seen, NOW, LIMIT, None)
    assert verdict.level is Level.CRITICAL
    assert verdict.reasons == [
        "no night has finished for 1d 6h (limit 1d 2h); one is running since 2026-03-02 06:00 UTC"
    ]
    assert judge(replace(seen, nights=(night(5),)), NOW, LIMIT, None).level is Level.OK


def test_an_interrupted_run_is_a_warning() -> None:
    verdict = judge(Seen((night(5),), (), (run(3, "running"),)), NOW, LIMIT, None)
    assert verdict.level is Level.WARNING and "20260302T060000-aabbccdd" in verdict.reasons[0]


def test_a_clock_that_is_ahead_keeps_nobody_quiet() -> None:
    verdict = judge(Seen((night(-9000), night(40)), (), ()), NOW, LIMIT, None)
    assert verdict.level is Level.CRITICAL
    assert verdict.finished == night(40) and "in the future" in verdict.reasons[1]
    assert level(night(-0.5)) is Level.OK  # clocks that are a little apart are no fault
    assert judge(Seen((night(-0.5),), (), ()), NOW, LIMIT, None).age_seconds == 0


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.sampled_from([0, 1, 2, 3, 4, 5, 75, 130, 143]), st.sampled_from("ab")),
        max_size=8,
    ),
    st.floats(1, 90),
)
def test_laws(given_nights: list[tuple[float, int, str]], limit_hours: float) -> None:
    nights = [night(*values) for values in sorted(given_nights, key=lambda item: item[0])]
    verdict = judge(Seen(nights, (), ()), NOW, limit_hours * HOUR, None)
    done = [values[0] for values in given_nights if values[1] in (0, 3, 5)]
    assert (verdict.level is Level.OK) == (not verdict.reasons)
    if not done or min(done) > limit_hours + 1e-6:
        assert verdict.level is Level.CRITICAL
    if verdict.age_seconds is not None:
        assert verdict.age_seconds == pytest.approx(min(done) * HOUR, abs=0.01)
    # Time alone makes nothing better, but where what failed is so long ago that only the lack of a night counts.
    later = judge(Seen(nights, (), ()), NOW + datetime.timedelta(days=9), limit_hours * HOUR, None)
    assert later.level is Level.CRITICAL


def test_records_of_the_disk(tmp_path: Path) -> None:
    place = str(tmp_path / "results")
    with pytest.raises(UsageError, match="no results"):
        look(place, NOW)
    assert not (tmp_path / "results").exists()
    for record in (run(60, "committed"), run(30, "committed"), run(2, "running"), run(70, "abandoned")):
        RunFolder(place, record.run_id).write_record(record)
    RunFolder(place, "20260302T080000-damaged").write_record(replace(run(1, "running"), run_id="x"))
    (tmp_path / "results" / "runs" / "20260302T080000-damaged" / "run.json").write_bytes(b"")

    # A release without nights: its committed runs count, from their end.
    seen = look(place, NOW)
    assert [item.ended_at for item in seen.nights] == [NOW - datetime.timedelta(hours=hours) for hours in (29.5, 59.5)]
    assert [record.run_id for record in seen.interrupted] == ["20260302T070000-aabbccdd"] and not seen.running

    # While this process holds the lease the run is being scored, and from the first night on nights count.
    (tmp_path / "results" / "predictions").mkdir()
    write_night(place, night(5))
    with Lease.acquire(place):
        seen = look(place, NOW)
    assert seen.nights == [night(5)]
    assert [record.run_id for record in seen.running] == ["20260302T070000-aabbccdd"] and not seen.interrupted
    assert look(place, NOW).interrupted


def test_a_run_of_another_machine_lives_as_long_as_it_tells_something(tmp_path: Path) -> None:
    place = str(tmp_path)
    record = run(2, "running")
    folder = RunFolder(place, record.run_id)
    folder.write_record(record)
    there = replace(Identity.of_this_process(), host="elsewhere", boot_id="another")
    lease = Lease.acquire(place, identity=there)
    assert look(place, NOW).interrupted == [record]
    for minutes, alive in ((5, True), (14, True), (16, False)):
        at = NOW - datetime.timedelta(minutes=minutes)
        Path(folder.progress).write_text(json.dumps({"at": at.isoformat()}))
        assert (look(place, NOW).running == [record]) is alive
    lease.release()
    Path(folder.progress).write_text(json.dumps({"at": NOW.isoformat()}))
    assert look(place, NOW).interrupted == [record]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0s"), (59.6, "1m"), (45, "45s"), (11_520, "3h 12m"), (100_800, "1d 4h"), (-4, "0s")]
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
