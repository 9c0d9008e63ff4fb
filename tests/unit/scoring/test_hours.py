"""When a night has to end."""

from __future__ import annotations

import datetime
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import TryLater, UsageError
from pipelines.scoring.hours import Closing, Hours

DAY = datetime.datetime(2026, 11, 21)


@given(now=st.integers(0, 1439), until=st.integers(0, 1439))
def test_the_next_such_time_or_one_that_was_just_missed(now: int, until: int) -> None:
    moment = DAY + datetime.timedelta(minutes=now)
    hours = Hours(datetime.time(until // 60, until % 60))
    ahead = (until - now) % 1440 or 1440
    if ahead > 1080:
        with pytest.raises(UsageError, match="has passed"):
            hours.seconds(moment)
    else:
        assert hours.seconds(moment) == ahead * 60


@pytest.mark.parametrize(("day", "hours"), [(datetime.date(2026, 3, 28), 7), (datetime.date(2026, 10, 24), 9)])
def test_the_nights_on_which_clocks_are_set(day: datetime.date, hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        now = datetime.datetime.combine(day, datetime.time(22))
        assert Hours(datetime.time(6)).seconds(now) == hours * 3600
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_shorter_of_both_counts() -> None:
    now = DAY + datetime.timedelta(hours=22)
    assert Hours(datetime.time(6), 3600).seconds(now) == 3600
    assert Hours(datetime.time(6), 36000).seconds(now) == 8 * 3600
    assert Hours(None, 60).seconds(now) == 60
    assert Hours().seconds(now) is None


@pytest.mark.parametrize("text", ["", "6", "24:00", "6:60", "06:30:00", "half past six", "-1:00"])
def test_what_is_no_time_of_day_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--until"):
        Hours.parse(text, None)
    with pytest.raises(UsageError, match="--max-time"):
        Hours.parse(None, 0.0)


@pytest.mark.parametrize("text", ["06:30", "6:30", " 06:30 "])
def test_a_time_of_day(text: str) -> None:
    assert Hours.parse(text, None) == Hours(datetime.time(6, 30))


def test_the_end_comes_by_the_clock_and_stays() -> None:
    seconds = iter([0.0, 4.9, 5.0, 5.1])
    closing = Closing(5.0, lambda: next(seconds))
    assert [closing.over, closing.over, closing.over] == [False, True, True]
    endless = Closing(None)
    assert not endless.over and not endless.limited and closing.limited


def test_the_end_is_announced_from_another_thread_once_storage_takes_it() -> None:
    told = threading.Event()
    calls = []

    def announce() -> None:
        calls.append(threading.current_thread())
        told.set()

    with Closing(0.0).announced(announce):
        assert told.wait(10)
    assert len(calls) == 1 and calls[0] is not threading.current_thread()


def test_storage_that_refuses_the_word_does_not_hold_up_the_end() -> None:
    refused = threading.Event()

    def announce() -> None:
        refused.set()
        raise TryLater("no")

    with Closing(0.0).announced(announce):
        assert refused.wait(10)


def test_nothing_is_announced_before_the_end() -> None:
    with Closing(3600.0).announced(lambda: pytest.fail("announced")):
        pass
