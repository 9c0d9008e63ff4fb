"""Where an actor's time goes: every instant of a shard belongs to exactly one stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

STAGES: Final = ("read", "decode", "score", "write", "wait")
"""Waiting for an image's bytes; bytes to pixels; the model; markers, rows and parts; an archive that is away."""

Given = TypeVar("Given")
Answer = TypeVar("Answer")


class StageClock:
    """Seconds of one actor by stage, from `begin` to `seconds`.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """Start at zero, in the stage `write`: the first that a shard does is to leave its marker."""
        self._spent = dict.fromkeys(STAGES, 0.0)
        self._stage = "write"
        self._since = self._clock()

    def turn_to(self, stage: str) -> float:
        """End the stage that is going on and begin another.

        Args:
            stage: One of `STAGES`.

        Returns:
            The time, in the clock's seconds.
        """
        now = self._clock()
        self._spent[self._stage] += now - self._since
        self._stage, self._since = stage, now
        return now

    def timed(self, stage: str, work: Callable[[Given], Answer]) -> Callable[[Given], Answer]:
        """The same work, whose time counts as a stage; what comes after it does too, until the next turn."""

        def run(given: Given) -> Answer:
            self.turn_to(stage)
            return work(given)

        return run

    def seconds(self) -> dict[str, float]:
        """Seconds so far by stage, all of them named; their sum is the time since `begin`."""
        self.turn_to(self._stage)
        return dict(self._spent)
