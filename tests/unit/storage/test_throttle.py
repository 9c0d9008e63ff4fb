from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.storage.throttle import Throttle


class Time:
    """A clock that only moves when somebody sleeps, or is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@given(
    st.floats(0.1, 10_000),
    st.lists(st.tuples(st.integers(1, 5), st.floats(0, 3)), min_size=1, max_size=40),
)
def test_no_stretch_of_time_sees_more_than_the_rate(rate: float, asked: list[tuple[int, float]]) -> None:
    time = Time()
    throttle = Throttle(rate, time.clock, time.sleep)
    sent: list[tuple[float, int]] = []
    for requests, pause in asked:
        throttle.wait(requests)
        sent.append((time.now, requests))
        time.now += pause
    assert throttle.requests == sum(requests for requests, _ in asked)
    for first, (began, _) in enumerate(sent):
        for last in range(first + 1, len(sent)):
            before = sum(requests for _, requests in sent[first:last])
            assert before <= rate * (sent[last][0] - began) * (1 + 1e-6) + 1e-6


def test_idle_time_is_not_saved_up_and_no_time_is_wasted() -> None:
    time = Time()
    throttle = Throttle(4, time.clock, time.sleep)
    for _ in range(9):
        throttle.wait()
    assert time.now == pytest.approx(102)
    time.now += 1000
    throttle.wait()
    throttle.wait()
    assert time.now == pytest.approx(1102.25)


def test_without_a_rate_requests_are_only_counted() -> None:
    def never(_seconds: float) -> None:
        raise AssertionError

    throttle = Throttle(sleep=never)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: throttle.wait(3), range(1000)))
    assert throttle.requests == 3000


def test_threads_get_places_of_their_own() -> None:
    slept: list[float] = []
    lock = threading.Lock()

    def sleep(seconds: float) -> None:
        with lock:
            slept.append(seconds)

    throttle = Throttle(10, lambda: 5.0, sleep)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: throttle.wait(), range(101)))
    assert sorted(slept) == pytest.approx([number / 10 for number in range(1, 101)])


def test_another_process_counts_anew_at_the_same_rate() -> None:
    throttle = Throttle(7.5)
    throttle.wait()
    copy = pickle.loads(pickle.dumps(throttle))
    assert (copy.per_second, copy.requests, throttle.requests) == (7.5, 0, 1)


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_of_nothing_is_refused(rate: Any) -> None:
    with pytest.raises(UsageError, match="requests a second are none"):
        Throttle(rate)
