"""Results that do not answer for a while are waited for, as the archive is: a cut of a minute ends no night."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipelines.errors import NoAnswer
from pipelines.scoring.vanished import FIRST_PAUSE, LONGEST_PAUSE

Answer = TypeVar("Answer")


def patiently(
    action: Callable[[], Answer],
    patience_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Answer:
    """Call until storage answers.

    Args:
        action: May be called several times; has retries of its own for what passes in seconds.
        patience_seconds: After so long it is not called again.
        sleep: Instead of the real one.
        clock: Monotonic seconds, instead of the real one.

    Raises:
        NoAnswer: The last one, after that time.
        NightreadError: Whatever else it raises, at once: a disk that is full, rights that are missing.
    """
    until, longest = clock() + patience_seconds, FIRST_PAUSE
    while True:
        try:
            return action()
        except NoAnswer:
            left = until - clock()
            if left <= 0:
                raise
            sleep(min(left, random.uniform(longest / 2, longest)))
            longest = min(2 * longest, LONGEST_PAUSE)
