"""What a scoring command tells: progress while it runs, figures when it ends."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.scoring.config import ONE_PER_CENT, Allowance
from pipelines.scoring.scorer import Receipt


@dataclass(frozen=True)
class ScoreProgress:
    """Where a command stands.

    Attributes:
        phase: `waiting`, `listing`, `planning`, `starting`, `scoring`, `committing` or `publishing`.
        done: Images so far; in `listing` those found.
        total: Images of this phase; None while listing.
        failed: Failed images so far.
        images_per_second: The mean rate since the first report; None before reports have come for a while.
        seconds_left: Estimate from that rate; None where there is none.
        note: What keeps it waiting, in words; "" where nothing does.
        run_id: The run that is being finished; None before one is.
    """

    phase: str
    done: int = 0
    total: int | None = None
    failed: int = 0
    images_per_second: float | None = None
    seconds_left: float | None = None
    note: str = ""
    run_id: str | None = None


ASKED_FOR = "asked for"
NO_GPU = "the cluster has no GPU"
"""Why an engine was chosen, where there is nothing more to say of it."""

LEAST_STEADY_SECONDS = 1.0
"""Actors that answer a few shards at once tell nothing of a rate."""

LEAST_ESTIMATE_SECONDS = 5.0
"""Until reports have come for so long, they tell how long actors take to start and not how fast they are."""


class Tally:
    """Counts receipts of one run, each shard once, and takes the steady rate.

    The steady rate runs from the receipt after which every actor of the pool has answered once to the last receipt
    and counts the images of the receipts in between, all on the driver's clock.

    Args:
        total: Images of the run.
        done: Images in parts that an earlier driver finished.
        actors: Size of the pool.
        clock: Seconds, monotonic.
    """

    def __init__(self, total: int, done: int, actors: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._total = total
        self._done_before = done
        self._actors_expected = actors
        self._actors: set[str] = set()
        self._shards: set[int] = set()
        self._images = 0
        self._failed = 0
        self._first: tuple[float, int] | None = None
        self._steady_from: tuple[float, int] | None = None
        self._last = clock()

    def add(self, receipt: Receipt) -> bool:
        """Count a receipt; False if its shard was counted before."""
        if receipt.shard in self._shards:
            return False
        self._shards.add(receipt.shard)
        self._last = self._clock()
        self._images += receipt.images
        self._failed += sum(receipt.failed.values())
        self._actors.add(receipt.actor)
        if self._first is None or self._last - self._first[0] < LEAST_STEADY_SECONDS:
            # An actor reports several shards at once, and together they are the first report.
            self._first = (self._first[0] if self._first else self._last, self._images)
        if self._steady_from is None and len(self._actors) >= self._actors_expected:
            self._steady_from = (self._last, self._images)
        return True

    @property
    def steady_rate(self) -> float | None:
        """Images per second as DESIGN defines it; None without receipts in between, or with less than a second."""
        if self._steady_from is None:
            return None
        since, images = self._steady_from
        if self._images == images or self._last - since < LEAST_STEADY_SECONDS:
            return None
        return (self._images - images) / (self._last - since)

    def progress(self) -> ScoreProgress:
        """Where the scoring stands now."""
        rate = self._rate_so_far()
        done = self._done_before + self._images
        left = (self._total - done) / rate if rate else None
        return ScoreProgress("scoring", done, self._total, self._failed, rate, left)

    def _rate_so_far(self) -> float | None:
        """Images per second since the first report, what came with it left out; None where that tells nothing yet."""
        if self._first is None or self._last - self._first[0] < LEAST_ESTIMATE_SECONDS:
            return None
        since, images = self._first
        return (self._images - images) / (self._clock() - since)


@dataclass(frozen=True)
class RunCounts:
    """What one run committed.

    Attributes:
        scored: Rows with a score.
        failed_by_code: Rows without one, by error code.
    """

    scored: int = 0
    failed_by_code: Mapping[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Rows without a score."""
        return sum(self.failed_by_code.values())

    @property
    def images(self) -> int:
        """All rows."""
        return self.scored + self.failed

    def as_record(self) -> dict[str, Any]:
        """The counts as a run's record keeps them."""
        return {"scored": self.scored, "failed": self.failed, "failed_by_code": dict(self.failed_by_code)}

    def __add__(self, other: RunCounts) -> RunCounts:
        return RunCounts(self.scored + other.scored, dict(Counter(self.failed_by_code) + Counter(other.failed_by_code)))


NO_ROWS = RunCounts()


@dataclass(frozen=True)
class ScoreReport:
    """The answer of `score`; counts and exit code are of the whole command.

    Attributes:
        results: Canonical URI of the results.
        run_id: The last run committed; None if none.
        runs: All runs that this command committed, in order.
        resumed: The interrupted run that was finished first; None if none.
        found: Images in the archive; None where an interrupted run was finished and nothing was listed.
        new: Of these, not in the table.
        changed: Of these, in the table with another version only.
        unchanged: Of these, already scored.
        rescored_for_model: Of these, scored by another version of the same model, but not by this one.
        backfilled: Of those, planned by this command.
        gone: Images that the table knows below the archive's root and that are no longer there.
        known: Images that the table knows there.
        planned: Images that this command was to score beyond a resumed run (for a dry run: would).
        shards: Their shards.
        remaining: Images that were planned and left to a later run, because the time was over.
        counts: Rows committed by this command.
        left_out: Files left out of the archive, by reason.
        unlistable: Sub-folders that could not be listed.
        repeated: Rows of the manifest that said the same again and were dropped.
        repeated_rows: The first of them, as numbers of the manifest's rows.
        unmatched: Images whose path --path-columns did not match.
        multi_frame: Images committed of which only the first frame was scored.
        kept: Images committed with their old answer, because their bytes are the old ones.
        engine: What scored the last run, as its record says it; None where nothing was left to score.
        images_per_second: Steady rate; None where there is none.
        seconds: The whole command.
        requests: What a bucket of the archive and one of the results are asked, by kind; for a dry run what they would
            be, else only what was counted.
        waited_seconds: How long another owner of the results was waited for.
        published: The plain Parquet file that holds the newest scores; None where none was asked for.
        would_stop: For a dry run: so much is changed or gone that the command would stop and ask.
        by_rename: Commits there go by rename, for want of hard links: only the lease guards them.
        seconds_estimated: For a dry run, from the last run's rate; None where there is none.
        table_version: Version of the table; None where there is no table.
        dry_run: Whether nothing was written.
        threshold: When failed images make exit code 3.
    """

    results: str
    run_id: str | None = None
    runs: tuple[str, ...] = ()
    resumed: str | None = None
    found: int | None = None
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    rescored_for_model: int = 0
    backfilled: int = 0
    gone: int = 0
    known: int = 0
    planned: int = 0
    shards: int = 0
    remaining: int = 0
    counts: RunCounts = NO_ROWS
    left_out: Mapping[str, int] = field(default_factory=dict)
    unlistable: tuple[str, ...] = ()
    repeated: int = 0
    repeated_rows: tuple[int, ...] = ()
    unmatched: int = 0
    multi_frame: int = 0
    kept: int = 0
    engine: Mapping[str, Any] | None = None
    images_per_second: float | None = None
    seconds: float = 0.0
    requests: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    waited_seconds: float = 0.0
    published: str | None = None
    would_stop: bool = False
    by_rename: bool = False
    seconds_estimated: float | None = None
    table_version: int | None = None
    dry_run: bool = False
    threshold: Allowance = ONE_PER_CENT

    @property
    def exit_code(self) -> int:
        """0, or 3 where failed images and unlistable folders exceed the threshold."""
        failed = self.counts.failed + len(self.unlistable)
        return 3 if self.threshold.exceeded(failed, self.counts.images + len(self.unlistable)) else 0

    def as_json(self) -> dict[str, Any]:
        """The one JSON value that `--json` prints."""
        return {
            "run_id": self.run_id,
            "runs": list(self.runs),
            "resumed": self.resumed,
            "found": self.found,
            "new": self.new,
            "changed": self.changed,
            "unchanged": self.unchanged,
            "rescored_for_model": self.rescored_for_model,
            "backfilled": self.backfilled,
            "gone": self.gone,
            "known": self.known,
            "planned": self.planned,
            "shards": self.shards,
            "remaining": self.remaining,
            "scored": self.counts.scored,
            "failed": self.counts.failed,
            "failed_by_code": dict(self.counts.failed_by_code),
            "left_out": dict(self.left_out),
            "unlistable": list(self.unlistable),
            "repeated": self.repeated,
            "unmatched": self.unmatched,
            "multi_frame": self.multi_frame,
            "kept": self.kept,
            "engine": None if self.engine is None else dict(self.engine),
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
            "requests": {place: dict(counts) for place, counts in self.requests.items()},
            "waited_seconds": self.waited_seconds,
            "published": self.published,
            "would_stop": self.would_stop,
            "by_rename": self.by_rename,
            "seconds_estimated": self.seconds_estimated,
            "table_version": self.table_version,
            "results": self.results,
            "dry_run": self.dry_run,
            "exit_code": self.exit_code,
        }
