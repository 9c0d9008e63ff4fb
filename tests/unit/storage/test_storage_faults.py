from __future__ import annotations

import errno
import os

import pytest

from pipelines.errors import TryLater, UsageError
from pipelines.storage.faults import LONGEST_PAUSE, TRIES, Fault, explained, fault_of, with_retries


class Clock:
    """Time that passes only by pauses."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def read(self) -> float:
        return self.now


def failing(times: int, error: Exception, clock: Clock, seconds: float = 0.0) -> tuple[list[int], object]:
    calls: list[int] = []

    def action() -> str:
        calls.append(1)
        clock.now += seconds
        if len(calls) <= times:
            raise error
        return "done"

    return calls, action


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET])
def test_passing_trouble_is_tried_again_with_bounded_pauses(number: int) -> None:
    clock = Clock()
    calls, action = failing(TRIES - 1, OSError(number, "x"), clock)
    assert with_retries(action, clock.sleep, clock.read) == "done"  # type: ignore[arg-type]
    assert len(calls) == TRIES
    assert all(0 <= pause <= LONGEST_PAUSE for pause in clock.pauses)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOSPC])
def test_what_cannot_pass_is_tried_once(number: int) -> None:
    clock = Clock()
    calls, action = failing(9, OSError(number, "x"), clock)
    with pytest.raises(OSError, match="x"):
        with_retries(action, clock.sleep, clock.read)  # type: ignore[arg-type]
    assert len(calls) == 1


def test_slow_trouble_is_given_up_after_the_time_limit() -> None:
    clock = Clock()
    calls, action = failing(99, TimeoutError("x"), clock, seconds=9.0)
    with pytest.raises(TimeoutError):
        with_retries(action, clock.sleep, clock.read)  # type: ignore[arg-type]
    assert len(calls) == 2
    assert clock.now < 20


def test_an_error_of_our_own_is_not_swallowed() -> None:
    clock = Clock()
    calls, action = failing(9, ZeroDivisionError(), clock)
    with pytest.raises(ZeroDivisionError):
        with_retries(action, clock.sleep, clock.read)  # type: ignore[arg-type]
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (FileNotFoundError("NoSuchBucket"), Fault.NO_BUCKET),
        (FileNotFoundError("NoSuchKey"), Fault.MISSING),
        (OSError(errno.EDQUOT, "x"), Fault.FULL),
        (OSError("no number"), Fault.PASSING),
        (KeyError("x"), None),
    ],
)
def test_kinds_of_trouble(error: Exception, fault: Fault | None) -> None:
    assert fault_of(error) is fault


@pytest.mark.parametrize("fault", list(Fault))
def test_each_kind_has_a_sentence_with_the_place_and_a_cure(fault: Fault) -> None:
    for place in ("s3://bucket/key", "/data/x"):
        error = explained(fault, place)
        assert "bucket" in str(error) or "/data/x" in str(error)
        if not isinstance(error, FileNotFoundError):
            assert error.cure
    waits = isinstance(explained(fault, "/x"), TryLater)
    assert waits == (fault in (Fault.FULL, Fault.PASSING))
    if fault is Fault.DENIED:
        assert isinstance(explained(fault, "/x"), UsageError)


def test_every_error_number_of_the_system_has_a_kind() -> None:
    assert all(fault_of(OSError(number, os.strerror(number))) for number in errno.errorcode)
