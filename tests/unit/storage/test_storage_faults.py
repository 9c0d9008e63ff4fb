from __future__ import annotations

import email.utils
import errno
import os
import time
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from obstore.exceptions import GenericError, PermissionDeniedError

from pipelines.errors import TryLater, UsageError
from pipelines.storage.faults import (
    LONGEST_PAUSE,
    LONGEST_PAUSE_WHEN_THROTTLED,
    LONGEST_TOLD_PAUSE,
    TRIES,
    Fault,
    Hold,
    explained,
    fault_of,
    is_throttled,
    told_to_wait,
    with_retries,
)


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


def refusal(status: int, code: str, **headers: str) -> ClientError:
    """What the plain client raises."""
    answer: Any = {
        "Error": {"Code": code},
        "ResponseMetadata": {
            "HTTPStatusCode": status,
            "HTTPHeaders": {name.replace("_", "-"): text for name, text in headers.items()},
        },
    }
    return ClientError(answer, "GetObject")


def rust_refusal(status: int, code: str, kind: type[Exception] = GenericError) -> Exception:
    """What obstore raises, as it words it."""
    body = f"<Error><Code>{code}</Code></Error>"
    return kind(
        "Generic S3 error: Error performing GET http://127.0.0.1:9/b/k in 1.21003ms - Server returned non-2xx status "
        f"code: {status} Reason: {body}\n\nDebug source:\nGeneric {{}}"
    )


@pytest.mark.parametrize(
    ("error", "throttled", "fault"),
    [
        (refusal(503, "SlowDown"), True, Fault.PASSING),
        (refusal(429, "None"), True, Fault.PASSING),
        (refusal(500, "InternalError"), False, Fault.PASSING),
        (refusal(400, "ExpiredToken"), False, Fault.EXPIRED),
        (refusal(403, "AccessDenied"), False, Fault.DENIED),
        (rust_refusal(503, "SlowDownRead"), True, Fault.PASSING),
        (rust_refusal(503, "ServiceUnavailable"), True, Fault.PASSING),
        (rust_refusal(502, "BadGateway"), False, Fault.PASSING),
        (rust_refusal(400, "ExpiredToken"), False, Fault.EXPIRED),
        (rust_refusal(403, "ExpiredToken", PermissionDeniedError), False, Fault.EXPIRED),
        (rust_refusal(403, "InvalidToken", PermissionDeniedError), False, Fault.DENIED),
        (OSError(errno.EIO, "x"), False, Fault.PASSING),
    ],
)
def test_what_asks_for_fewer_requests_and_what_has_expired(error: Exception, throttled: bool, fault: Fault) -> None:
    assert is_throttled(error) is throttled
    assert fault_of(error) is fault


def test_the_time_that_a_server_asks_for() -> None:
    assert told_to_wait(refusal(503, "SlowDown", retry_after="7")) == 7
    assert told_to_wait(refusal(503, "SlowDown", retry_after="86400")) == LONGEST_TOLD_PAUSE
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert told_to_wait(refusal(503, "SlowDown", retry_after=soon)) == pytest.approx(29.5, abs=2)
    for nonsense in ("", "soon", "-5", "Sun, 06 Nov 1994 08:49:37 GMT", "9" * 400):
        assert 0 <= told_to_wait(refusal(503, "SlowDown", retry_after=nonsense)) <= LONGEST_TOLD_PAUSE
    assert told_to_wait(OSError(errno.EIO, "x")) == told_to_wait(rust_refusal(503, "SlowDown")) == 0


def test_pauses_that_a_server_asks_for_are_longer_and_do_not_use_up_the_time() -> None:
    clock = Clock()
    calls, action = failing(TRIES - 1, refusal(503, "SlowDown", retry_after="50"), clock)
    assert with_retries(action, clock.sleep, clock.read) == "done"  # type: ignore[arg-type]
    assert all(50 <= pause <= 50 + LONGEST_PAUSE_WHEN_THROTTLED for pause in clock.pauses)
    clock = Clock()
    calls, action = failing(TRIES, rust_refusal(503, "SlowDown"), clock)
    with pytest.raises(GenericError):
        with_retries(action, clock.sleep, clock.read)  # type: ignore[arg-type]
    assert len(calls) == TRIES and len(clock.pauses) == TRIES - 1


def test_full_jitter_spreads_the_tries_from_nothing_to_the_limit() -> None:
    pauses = []
    for _ in range(400):
        clock = Clock()
        _, action = failing(5, OSError(errno.EIO, "x"), clock)
        with_retries(action, clock.sleep, clock.read)  # type: ignore[arg-type]
        pauses.append(clock.pauses)
    for attempt in range(5):
        limit = 0.1 * 2**attempt
        drawn = sorted(each[attempt] / limit for each in pauses)
        # Of 400 even draws the largest distance to the even distribution is above 0.1 once in 1,500 times.
        assert max(abs(value - rank / 400) for rank, value in enumerate(drawn)) < 0.15


def test_what_comes_before_a_try_costs_none_of_its_time() -> None:
    clock = Clock()
    calls, action = failing(4, OSError(errno.EIO, "x"), clock)
    assert with_retries(action, clock.sleep, clock.read, before=lambda: clock.sleep(30)) == "done"  # type: ignore[arg-type]
    assert len(calls) == 5 and clock.pauses.count(30) == 5


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0, 60)), min_size=1, max_size=8))
def test_nobody_goes_before_the_longest_time_that_was_asked_for(asked: list[tuple[float, float]]) -> None:
    clock = Clock()
    hold = Hold(clock.sleep, clock.read)
    until = 0.0
    for passed, seconds in asked:
        clock.now += passed
        hold.ask_for(seconds)
        until = max(until, clock.now + seconds)
    began = clock.now
    hold.wait()
    assert until <= clock.now <= max(began, until + LONGEST_PAUSE)


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
    assert waits == (fault in (Fault.FULL, Fault.PASSING, Fault.EXPIRED))
    if fault is Fault.DENIED:
        assert isinstance(explained(fault, "/x"), UsageError)


def test_every_error_number_of_the_system_has_a_kind() -> None:
    assert all(fault_of(OSError(number, os.strerror(number))) for number in errno.errorcode)
