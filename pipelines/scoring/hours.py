"""When a night has to end: a time of day, a duration, or both; after it no shard is begun."""

from __future__ import annotations

import contextlib
import datetime
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipelines.errors import NightreadError, UsageError

# A time of day that was less than this ago is one that a late start has missed, and no time of tomorrow.
MISSED_SECONDS = 6 * 3600.0
_RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class Hours:
    """The hours that a night may take.

    Attributes:
        until: A time of day on this machine's clock, the next one; None for none.
        max_seconds: So long from the start of the command; None for no limit.

    Raises:
        UsageError: If `max_seconds` is no time at all.
    """

    until: datetime.time | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise UsageError("--max-time leaves no time at all.", "Write --max-time 7h, 90m or 1h30m.")

    @classmethod
    def parse(cls, until: str | None, max_seconds: float | None) -> Hours:
        """Read `06:30` beside a number of seconds.

        Raises:
            UsageError: If `until` is no time of day.
        """
        if until is None:
            return cls(None, max_seconds)
        match = re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", until.strip())
        if not match:
            raise UsageError(f"--until {until!r} is not a time of day.", "Write --until 06:30.")
        return cls(datetime.time(int(match[1]), int(match[2])), max_seconds)

    def seconds(self, now: datetime.datetime) -> float | None:
        """How long from now; None without a limit.

        Args:
            now: What this machine's clock shows, without a time zone; where clocks are set in between, the difference
                is of the real time.

        Raises:
            UsageError: If the time of day has just passed.
        """
        if self.until is None:
            return self.max_seconds
        then = datetime.datetime.combine(now.date(), self.until)
        if then <= now:
            then += datetime.timedelta(days=1)
        left = (then.astimezone() - now.astimezone()).total_seconds()
        if (then - now).total_seconds() > 86400 - MISSED_SECONDS:
            raise UsageError(
                f"--until {self.until:%H:%M} has passed: it is {now:%H:%M}.",
                "Start the night earlier, or say how long it may take with --max-time.",
            )
        return left if self.max_seconds is None else min(left, self.max_seconds)


NO_END = Hours()


class Closing:
    """The end of a night, on this process's monotonic clock.

    Args:
        seconds: How long from now; None: there is no end.
        clock: Monotonic seconds.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock() + seconds

    @property
    def limited(self) -> bool:
        """Whether there is an end at all."""
        return self._end is not None

    @property
    def over(self) -> bool:
        """Whether no shard may be begun any more."""
        return self._end is not None and self._clock() >= self._end

    @contextlib.contextmanager
    def announced(self, announce: Callable[[], None]) -> Iterator[None]:
        """Call `announce` from another thread at the end, if it comes within the `with` block.

        Args:
            announce: Tells the actors; repeated every five seconds while storage refuses it.
        """
        if self._end is None:
            yield
            return
        left = threading.Event()
        end = self._end

        def wait() -> None:
            pause = max(0.0, end - self._clock())
            while not left.wait(pause):
                pause = _RETRY_SECONDS
                with contextlib.suppress(NightreadError):
                    announce()
                    return

        thread = threading.Thread(target=wait, name="closing", daemon=True)
        thread.start()
        try:
            yield
        finally:
            left.set()
            thread.join()
