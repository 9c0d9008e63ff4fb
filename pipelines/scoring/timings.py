"""Where a run's time went, gathered on the driver for the run's record.

Memory does not grow with the receipts: the slowest images are a short heap, and the rate over time a few bins that grow
wider as the night goes on.
"""

from __future__ import annotations

import contextlib
import heapq
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from pipelines.scoring.scorer import Receipt
from pipelines.scoring.stages import STAGES

SLOWEST: Final = 20
MOST_POINTS: Final = 120


class RateOverTime:
    """Images by time, in at most `MOST_POINTS` bins of one width, which doubles when they are full.

    Args:
        width: Seconds of a bin at first.
    """

    def __init__(self, width: float = 1.0) -> None:
        self._width = width
        self._bins: list[int] = []
        self._last = 0.0

    def add(self, at: float, images: int) -> None:
        """Count images.

        Args:
            at: Seconds since the scoring began; never less than before.
            images: How many were finished then.
        """
        while at >= self._width * MOST_POINTS:
            pairs = zip(self._bins[::2], [*self._bins[1::2], 0], strict=False)
            self._bins, self._width = [one + other for one, other in pairs], 2 * self._width
        place = int(at / self._width)
        self._bins.extend([0] * (place + 1 - len(self._bins)))
        self._bins[place] += images
        self._last = at

    def points(self) -> list[list[float]]:
        """For each bin in order, where it ends in seconds and its images per second.

        The last one is longer or shorter than the others: less than half a bin would tell a rate by chance.
        """
        edges = [place * self._width for place in range(len(self._bins) + 1)]
        bins = list(self._bins)
        if len(bins) > 1:
            edges[-1] = max(edges[-2], self._last)
            if edges[-1] - edges[-2] < self._width / 2:
                bins[-2:] = [bins[-2] + bins[-1]]
                del edges[-2]
        return [
            [round(end, 3), round(images / (end - start), 3)]
            for start, end, images in zip(edges, edges[1:], bins, strict=False)
        ]


class Timings:
    """What one command learns of one run's time; a command that goes on with a run begins anew.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._phases: dict[str, float] = {}
        self._stages = dict.fromkeys(STAGES, 0.0)
        self._slowest: list[tuple[float, int, int]] = []
        self._rate = RateOverTime()
        self._rate_began: float | None = None
        self._actors: set[str] = set()
        self._most_actors = 0
        self._nodes: dict[str, tuple[float, float]] = {}
        self._driver_node = ""
        self._images_before: int | None = None

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time as the driver's phase `<name>_seconds`; phases that come again are added up."""
        began = self._clock()
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + self._clock() - began

    def found_finished(self, images: int) -> None:
        """Take note of the images whose parts are there when this command begins with the run; said once."""
        if self._images_before is None:
            self._images_before = images

    def begin_scoring(self, actors: int, driver_node: str = "") -> None:
        """Take note that actors begin.

        Args:
            actors: Size of the pool at most.
            driver_node: The node of this process, as the actors' names begin; "" where it is none of theirs.
        """
        if self._rate_began is None:
            self._rate_began = self._clock()
        self._most_actors, self._driver_node = max(self._most_actors, actors), driver_node

    def add(self, receipt: Receipt) -> None:
        """Take note of a finished shard; each shard once."""
        now = self._clock()
        self._rate.add(now - (self._rate_began or self._began), receipt.images)
        for stage, seconds in receipt.stages.items():
            self._stages[stage] = self._stages.get(stage, 0.0) + seconds
        for seconds, row in receipt.slowest:
            entry = (seconds, receipt.shard, row)
            if len(self._slowest) < SLOWEST:
                heapq.heappush(self._slowest, entry)
            elif entry > self._slowest[0]:
                heapq.heapreplace(self._slowest, entry)
        self._actors.add(receipt.actor)
        node = receipt.actor.rpartition("-")[0]
        first, _ = self._nodes.get(node, (now - receipt.seconds, now))
        self._nodes[node] = (first, now)

    def as_record(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """What `run.json` keeps of this command's work on the run.

        Args:
            before: What the record says so far; what this command did not do anew stays.

        Returns:
            Beside `before`: `seconds`, `<phase>_seconds`, `stages` (core-seconds), `rate_over_time`, `slowest`,
            `nodes`, `cores`, `node_hours`, `core_hours`, and `images_before`: those of parts that an earlier command
            finished, of whose time nothing is known.
        """
        seconds = self._clock() - self._began
        own: dict[str, Any] = {f"{name}_seconds": round(spent, 3) for name, spent in self._phases.items()}
        own |= {"seconds": seconds, "images_before": self._images_before or 0}
        if not self._nodes:
            return {**before, **own}
        # The machine that lists, plans and commits is held for the whole time, the others while they score.
        elsewhere = [last - first for node, (first, last) in self._nodes.items() if node != self._driver_node]
        here = seconds + sum(float(before.get(f"{name}_seconds") or 0.0) for name in ("listing", "planning"))
        return {
            **before,
            **own,
            "stages": {stage: round(spent, 3) for stage, spent in self._stages.items()},
            "rate_over_time": self._rate.points(),
            "slowest": [
                {"shard": shard, "row": row, "seconds": round(spent, 4)}
                for spent, shard, row in sorted(self._slowest, reverse=True)
            ],
            "nodes": len(self._nodes),
            "cores": min(len(self._actors), self._most_actors) or len(self._actors),
            "node_hours": (here + sum(elsewhere)) / 3600,
            "core_hours": sum(self._stages.values()) / 3600,
        }
