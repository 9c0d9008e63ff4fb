"""Nights beside the runs: one small file for each `score` command that reached its results, however it ended.

A night that finds nothing new makes no run, and one that fails may make none either: only this tells that it was there.
Nights are written without the lease, for the command that did not get it was a night too. Nobody reads them to decide
what is scored.
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from pipelines.predictions.runs import refuse_newer
from pipelines.storage import files, paths

FORMAT: Final = 1
FINISHED: Final = frozenset((0, 3, 5))
"""Exit codes of a night that did all that it was to do, and committed it."""

COUNTS: Final = (
    "found",
    "new",
    "changed",
    "unchanged",
    "rescored_for_model",
    "backfilled",
    "gone",
    "known",
    "planned",
    "remaining",
    "scored",
    "failed",
    "failed_by_code",
    "kept",
    "multi_frame",
    "repeated",
    "unmatched",
)
"""What a night keeps of the answer of `score`."""

_NIGHTS: Final = "nights"
_READERS: Final = 16
_NAME: Final = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}\.json")


@dataclass(frozen=True)
class NightRecord:
    """How one `score` command ended.

    Attributes:
        started_at: UTC.
        ended_at: UTC.
        exit_code: As in docs/operations.md.
        archive: The archive, canonical; which nights follow each other.
        model: The model as it was asked for.
        error: `code`, `message` and `cure`; None for a night that gave an answer.
        runs: Runs that it committed, in order.
        counts: Those of `COUNTS` that it came to; {} where it failed before. `found` is None where nothing was listed.
        images_per_second: The steady rate; None where there is none.
        table_version: The table's version at its end; None where it is not known.
        drift: What `score` answered about drift; None where nothing was compared.
        who: Who and where, as `runs.who_and_where` gives it.
        format: Of the file.
    """

    started_at: datetime.datetime
    ended_at: datetime.datetime
    exit_code: int
    archive: str
    model: str
    error: Mapping[str, str] | None = None
    runs: Sequence[str] = ()
    counts: Mapping[str, Any] = field(default_factory=dict)
    images_per_second: float | None = None
    table_version: int | None = None
    drift: Mapping[str, Any] | None = None
    who: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended_at - self.started_at).total_seconds()

    @property
    def finished(self) -> bool:
        """Whether it did all that it was to do, and committed it."""
        return self.exit_code in FINISHED

    def as_json(self) -> dict[str, Any]:
        """The night as JSON values."""
        return {
            "format": self.format,
            "started_at": self.started_at.astimezone(datetime.UTC).isoformat(),
            "ended_at": self.ended_at.astimezone(datetime.UTC).isoformat(),
            "seconds": self.seconds,
            "exit_code": self.exit_code,
            "error": None if self.error is None else dict(self.error),
            "archive": self.archive,
            "model": self.model,
            "runs": list(self.runs),
            "counts": dict(self.counts),
            "images_per_second": self.images_per_second,
            "table_version": self.table_version,
            "drift": None if self.drift is None else dict(self.drift),
            "who": dict(self.who),
        }

    @classmethod
    def from_json(cls, data: bytes, uri: str) -> NightRecord:
        """Read a night.

        Args:
            data: The file's content.
            uri: Where it came from, for messages.

        Raises:
            UsageError: If a newer release wrote it.
            ValueError: If it is damaged.
        """
        try:
            value = json.loads(data)
            number = int(value["format"])
            refuse_newer(number, FORMAT, uri)
            return cls(
                started_at=datetime.datetime.fromisoformat(value["started_at"]).astimezone(datetime.UTC),
                ended_at=datetime.datetime.fromisoformat(value["ended_at"]).astimezone(datetime.UTC),
                exit_code=int(value["exit_code"]),
                archive=str(value["archive"]),
                model=str(value["model"]),
                error=None if value["error"] is None else {key: str(text) for key, text in value["error"].items()},
                runs=tuple(map(str, value["runs"])),
                counts=dict(value["counts"]),
                images_per_second=_number(value["images_per_second"]),
                table_version=None if value["table_version"] is None else int(value["table_version"]),
                drift=None if value["drift"] is None else dict(value["drift"]),
                who=dict(value["who"]),
                format=number,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no night: {error!r}") from error


def write_night(results: str, night: NightRecord) -> str | None:
    """Write a night, whole or not at all.

    Args:
        results: The results folder.
        night: What happened.

    Returns:
        Its URI; None where there are no results yet, for a mistyped name must not become a folder.

    Raises:
        UsageError: If the place may not be written.
        TryLater: If storage does not answer, or the disk is full.
    """
    place = paths.canonical(results)
    if not files.exists(paths.join(place, "predictions")):
        return None
    ended = night.ended_at.astimezone(datetime.UTC)
    # Names sort by time, within a second too: microseconds, then chance.
    chance = f"{ended.microsecond:05x}{secrets.randbelow(16**3):03x}"
    uri = paths.join(place, _NIGHTS, f"{ended:%Y%m%dT%H%M%S}-{chance}.json")
    content = json.dumps(night.as_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    files.write_atomic(uri, content.encode(errors="backslashreplace"))
    return uri


def newest_nights(results: str, count: int) -> list[NightRecord]:
    """Read the nights that ended last; only their own files, however many there are.

    Args:
        results: The results folder.
        count: How many at most, from 1.

    Returns:
        The newest first; none where there are none. Damaged files are left out: nothing depends on them.

    Raises:
        UsageError: If one of them is of a newer release.
        TryLater: If storage does not answer.
    """
    folder = paths.join(paths.canonical(results), _NIGHTS)
    names = [name for name in files.list_names(folder) if _NAME.fullmatch(name)]
    newest = [paths.join(folder, name) for name in sorted(names, reverse=True)[:count]]
    with ThreadPoolExecutor(_READERS, thread_name_prefix="nights") as pool:
        return [night for night in pool.map(_read, newest) if night is not None]


def _read(uri: str) -> NightRecord | None:
    try:
        return NightRecord.from_json(files.read_bytes(uri), uri)
    except (FileNotFoundError, ValueError):
        return None


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
