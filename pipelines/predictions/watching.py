"""Whether the nights of a results folder are well: what a monitoring system asks, answered from a few small files.

Only the newest nights and the newest runs' records are read, so the answer takes as long in the tenth year as in the
first. The table itself is not opened.
"""

from __future__ import annotations

import datetime
import enum
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.errors import UsageError
from pipelines.predictions.nights import NightRecord, newest_nights
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.storage import files, paths
from pipelines.storage.leases import is_held

NEWEST = 50
"""Nights, and runs, that are looked at: more than a day of nights that are repeated every half hour."""

CLOCKS_APART = datetime.timedelta(hours=1)
"""A night that ends later than this from now was dated by a clock that is wrong, and proves nothing."""

SIGN_OF_LIFE = datetime.timedelta(minutes=15)
"""A run of another machine that has told nothing for so long is taken for interrupted."""

_READERS = 16


class Level(enum.IntEnum):
    """How well: the exit codes of a monitoring plugin."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(frozen=True)
class Seen:
    """What there is to judge.

    Attributes:
        nights: The newest nights, the newest first; of an earlier release's results its committed runs.
        running: Runs that are being scored and show life.
        interrupted: Runs that nobody is finishing.
    """

    nights: Sequence[NightRecord]
    running: Sequence[RunRecord]
    interrupted: Sequence[RunRecord]


@dataclass(frozen=True)
class Verdict:
    """How well the nights are.

    Attributes:
        level: The worst of what was found.
        reasons: What was found, the worst first; [] where all is well.
        finished: The night that finished last; None where none has.
        age_seconds: Since its end.
    """

    level: Level
    reasons: Sequence[str]
    finished: NightRecord | None
    age_seconds: float | None


def look(results: str, now: datetime.datetime) -> Seen:
    """Read what is needed for a verdict.

    Args:
        results: The results folder.
        now: UTC.

    Raises:
        UsageError: If there are no results, they may not be read, or a newer release wrote them.
        TryLater: If storage does not answer.
    """
    place = paths.canonical(results)
    nights = newest_nights(place, NEWEST)
    runs = _newest_runs(place)
    if not nights and not runs and not files.exists(paths.join(place, "predictions")):
        raise UsageError(f"There are no results in {results!r}.", "Check the path; `nightread score` makes them.")
    open_runs = [record for record in runs if record.status == "running"]
    held = is_held(place) if open_runs else False
    running = [record for record in open_runs if held or (held is None and _shows_life(place, record, now))]
    return Seen(
        nights or [_as_night(record) for record in reversed(runs) if record.status in ("committed", "rolled_back")],
        running,
        [record for record in open_runs if record not in running],
    )


def judge(seen: Seen, now: datetime.datetime, max_age: float, warn_age: float | None) -> Verdict:
    """Judge the nights.

    Args:
        seen: What was read.
        now: UTC.
        max_age: Seconds; when no night has finished for longer, that is critical, whatever is running.
        warn_age: Seconds; the same as a warning; None: none.
    """
    past = [night for night in seen.nights if night.ended_at <= now + CLOCKS_APART]
    finished = next((night for night in past if night.finished), None)
    age = None if finished is None else max(0.0, (now - finished.ended_at).total_seconds())
    found = sorted(_found(seen, past, age, now, max_age, warn_age), key=lambda item: -item[0])
    level = found[0][0] if found else Level.OK
    return Verdict(level, [reason for _, reason in found], finished, age)


def _found(
    seen: Seen,
    past: Sequence[NightRecord],
    age: float | None,
    now: datetime.datetime,
    max_age: float,
    warn_age: float | None,
) -> Iterator[tuple[Level, str]]:
    running = f"; one is running since {_moment(seen.running[0].started_at)}" if seen.running else ""
    if age is None:
        yield Level.CRITICAL, f"no night has finished yet{running}"
    elif age > max_age:
        yield Level.CRITICAL, f"no night has finished for {in_words(age)} (limit {in_words(max_age)}){running}"
    elif warn_age is not None and age > warn_age:
        yield Level.WARNING, f"no night has finished for {in_words(age)} (warning from {in_words(warn_age)}){running}"
    for night in _last_of_each_archive(past, now, max_age):
        if night.exit_code:
            yield _level_of(night.exit_code), _how_it_ended(night)
    if seen.interrupted:
        named = ", ".join(record.run_id for record in seen.interrupted[-3:])
        yield Level.WARNING, f"{len(seen.interrupted)} interrupted: {named}; the same score command finishes it"
    if len(past) < len(seen.nights):
        host = seen.nights[0].who.get("host", "an unknown machine")
        yield Level.WARNING, f"{len(seen.nights) - len(past)} dated in the future by the clock of {host}, not counted"


def _last_of_each_archive(
    nights: Sequence[NightRecord], now: datetime.datetime, max_age: float
) -> Iterator[NightRecord]:
    """The last night of each archive, unless it is long ago: one archive's good night does not excuse another's.

    An archive of which no night has finished counts only while it is the last one of all: it may be a name that
    somebody typed wrongly once.
    """
    known = {night.archive for night in nights if night.finished}
    seen: set[str] = set()
    for night in nights:
        if night.archive not in seen:
            seen.add(night.archive)
            young = (now - night.ended_at).total_seconds() <= max_age
            if len(seen) == 1 or (young and night.archive in known):
                yield night


def _level_of(exit_code: int) -> Level:
    # 3 and 5 are finished and committed; 75 and a stop are mended by the next start, while one that finished is young.
    return Level.WARNING if exit_code in (3, 5, 75, 130, 143) else Level.CRITICAL


def _how_it_ended(night: NightRecord) -> str:
    said = f": {night.error['message']}" if night.error and night.error.get("message") else ""
    if not said and night.exit_code == 3:
        said = f": {night.counts.get('failed', 0):,} images failed, more than is allowed"
    if not said and night.exit_code == 5:
        said = ": the images have drifted"
    return f"the night of {_moment(night.ended_at)} ended with exit code {night.exit_code}{said}"


def _newest_runs(place: str) -> list[RunRecord]:
    names = files.list_names(paths.join(place, "runs"))[-NEWEST:]
    with ThreadPoolExecutor(_READERS, thread_name_prefix="runs") as pool:
        records = pool.map(lambda name: RunFolder(place, name).readable_record(), names)
        return [record for record in records if record is not None]


def _as_night(record: RunRecord) -> NightRecord:
    """A committed run of a release that left no nights."""
    seconds = float(record.timings.get("seconds") or 0.0)
    rate = record.timings.get("images_per_second")
    return NightRecord(
        started_at=record.started_at,
        ended_at=record.started_at + datetime.timedelta(seconds=seconds),
        exit_code=0,
        archive=str(record.configuration.get("archive", "")),
        model=str(record.configuration.get("model", "")),
        runs=(record.run_id,),
        counts=record.counts,
        images_per_second=None if rate is None else float(rate),
        table_version=record.table_version,
        who=record.who,
    )


def _shows_life(place: str, record: RunRecord, now: datetime.datetime) -> bool:
    """Whether a run of another machine has told something lately, by its own clock."""
    try:
        told = json.loads(files.read_bytes(RunFolder(place, record.run_id).progress))
        last = datetime.datetime.fromisoformat(told["at"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        last = record.started_at
    return now - last.astimezone(datetime.UTC) <= SIGN_OF_LIFE


def _moment(time: datetime.datetime) -> str:
    return f"{time.astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def in_words(seconds: float) -> str:
    """Seconds as a person says them: `1d 4h`, `3h 12m`, `45s`."""
    left, parts = round(max(0.0, seconds)), []
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        number, left = divmod(left, length)
        if number:
            parts.append(f"{number}{unit}")
    return " ".join(parts[:2]) or "0s"
