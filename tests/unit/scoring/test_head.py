"""A head that does not answer, and the night that ends for it."""

from __future__ import annotations

import signal
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import TryLater
from pipelines.scoring import head
from pipelines.scoring.head import Head, minded


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=40))
def test_it_is_lost_once_it_was_silent_for_a_minute(course: list[tuple[float, bool]]) -> None:
    now, last = [0.0], 0.0
    answer = [True]
    watched = Head("h:1", "/daemon", clock=lambda: now[0], answering=lambda place: place == "/daemon" or answer[0])
    for seconds, answers in course:
        now[0] += seconds
        answer[0] = answers
        last = now[0] if answers else last
        assert watched.ask() is (now[0] - last < 60.0)
        assert watched.silent_seconds == now[0] - last


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "ASK_SECONDS", 0.01)
    monkeypatch.setattr(head, "PATIENCE_SECONDS", 0.1)


@pytest.mark.usefixtures("hasty")
def test_a_block_that_waits_is_ended_with_what_to_do() -> None:
    with (
        pytest.raises(
            TryLater, match=r"head of the Ray cluster at 10\.0\.0\.1:6379 has not answered for 0\.1 s"
        ) as told,
        minded("10.0.0.1:6379", "/daemon", answering=lambda place: place == "/daemon"),
    ):
        threading.Event().wait(20)
    assert "same command goes on" in told.value.cure


@pytest.mark.usefixtures("hasty")
def test_a_head_of_our_own_is_restarted_by_nobody_and_waited_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "PATIENCE_SECONDS", 3600.0)
    monkeypatch.setattr(head, "OWN_PATIENCE_SECONDS", 0.05)
    with (
        pytest.raises(TryLater, match=r"Ray's head on this machine has not answered for 0\.05 s"),
        minded("h:1", "/daemon", own=True, answering=lambda place: place == "/daemon"),
    ):
        threading.Event().wait(20)


@pytest.mark.usefixtures("hasty")
def test_a_node_that_is_taken_out_ends_the_night_before_it_goes() -> None:
    asked = iter([False, RuntimeError("no head"), True])

    def draining() -> bool:
        answer = next(asked)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with (
        pytest.raises(TryLater, match="Ray is being stopped on this machine"),
        minded("h:1", "/daemon", draining=draining, answering=lambda _place: True),
    ):
        threading.Event().wait(20)


@pytest.mark.usefixtures("hasty")
def test_a_head_that_never_answers_whether_it_takes_a_node_out_is_lost_all_the_same() -> None:
    over = threading.Event()
    with (
        pytest.raises(TryLater, match="has not answered"),
        minded("h:1", "/daemon", draining=lambda: over.wait(20), answering=lambda place: place == "/daemon"),
    ):
        threading.Event().wait(20)
    over.set()


@pytest.mark.usefixtures("hasty")
def test_one_that_answers_ends_nothing_and_ctrl_c_stays_what_it_is() -> None:
    asked = threading.Event()
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background ignores it

    def answers(_place: str) -> bool:
        asked.set()
        return True

    with minded("h:1", "/daemon", answering=answers):
        assert asked.wait(20)
        threading.Event().wait(0.2)
    try:
        with pytest.raises(KeyboardInterrupt), minded("h:1", "/daemon", answering=answers):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, ours)


@pytest.mark.usefixtures("hasty")
def test_a_block_outside_the_main_thread_cannot_be_interrupted_and_is_not() -> None:
    ended = threading.Event()

    def work() -> None:
        with minded("h:1", "/daemon", answering=lambda _place: False):
            threading.Event().wait(0.3)
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert ended.is_set()


@pytest.mark.usefixtures("hasty")
def test_a_dead_daemon_is_told_at_once() -> None:
    with (
        pytest.raises(TryLater, match="daemon on this machine has died") as told,
        minded("h:1", "/daemon", answering=lambda place: place == "h:1"),
    ):
        threading.Event().wait(20)
    assert "memory" in told.value.cure and "goes on" in told.value.cure
