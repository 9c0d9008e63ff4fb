"""How many requests a second are sent to a store, and how many it has been."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pipelines.errors import UsageError


class Throttle:
    """Spaces requests evenly and counts them; shared by the threads of a process.

    Every request is announced before it is sent, a repeated one again. What is sent to another process counts there
    from nothing, at the same rate: who starts several processes divides the rate among them first.

    Args:
        per_second: Requests a second at most; None for as many as can be.
        clock: Monotonic seconds, instead of the real ones.
        sleep: Instead of the real one.

    Raises:
        UsageError: If the rate is not above 0.
    """

    def __init__(
        self,
        per_second: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if per_second is not None and not per_second > 0:
            raise UsageError(f"{per_second:g} requests a second are none.", "Give a rate above 0.")
        self.per_second = per_second
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._requests = 0
        self._free_at = clock()

    def __reduce__(self) -> tuple[type[Throttle], tuple[float | None]]:
        """Send the rate only."""
        return type(self), (self.per_second,)

    @property
    def requests(self) -> int:
        """How many requests were announced so far."""
        return self._requests

    def wait(self, requests: int = 1) -> None:
        """Announce requests, and come back when they may be sent.

        Args:
            requests: How many are sent at once; those after this call wait for the time that they take.
        """
        with self._lock:
            self._requests += requests
            if self.per_second is None:
                return
            # A place in the line is taken under the lock and waited for outside, so that nobody is passed by.
            now = self._clock()
            mine = max(now, self._free_at)
            self._free_at = mine + requests / self.per_second
        if mine > now:
            self._sleep(mine - now)
