"""One sign for each night: how many images it scored, and whether more failed than were allowed to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.drawing import Line, sparkline

if TYPE_CHECKING:
    from pipelines.predictions.runs import RunRecord

MOST_NIGHTS = 60
_ENDED = ("committed", "rolled_back")


@dataclass
class Night:
    """The runs of one command together."""

    day: str
    scored: int = 0
    failed: int = 0
    allowed: str = ""


def nights_of(records: Iterable[RunRecord]) -> list[Night]:
    """The commands that came to a commit, in order; those of one command are one night."""
    nights: dict[str, Night] = {}
    for record in records:
        if record.status in _ENDED:
            first = next(iter(record.configuration.get("runs") or ()), record.run_id)
            night = nights.setdefault(str(first), Night(f"{record.started_at:%Y-%m-%d}"))
            night.scored += int(record.counts.get("scored") or 0)
            night.failed += int(record.counts.get("failed") or 0)
            night.allowed = str(record.configuration.get("fail_threshold") or "")
    return list(nights.values())


def too_many_failed(failed: int, scored: int, allowed: str) -> bool:
    """Whether more images failed than the command allowed.

    Args:
        failed: Images that failed.
        scored: Images that have an answer.
        allowed: What `--fail-threshold` was; "" in records of earlier releases.
    """
    from pipelines.scoring.config import Allowance

    if not failed or not allowed:
        return False
    return Allowance.parse("fail_threshold", allowed).exceeded(failed, failed + scored)


def night_lines(records: Iterable[RunRecord], blocks: bool) -> list[Line]:
    """The newest nights as a line of signs, a line of marks under it where one is needed, and an empty line.

    Args:
        records: All runs, oldest first.
        blocks: Whether signs may be blocks; else ASCII.
    """
    nights = nights_of(records)[-MOST_NIGHTS:]
    if len(nights) < 2:
        return []
    counts = [night.scored for night in nights]
    said = (
        f"  {len(nights)} nights, {nights[0].day} to {nights[-1].day}: {min(counts):,} to {max(counts):,} images scored"
    )
    lines: list[Line] = [[("scored  ", "dim"), (sparkline(counts, blocks), "blue"), (said, "dim")]]
    marks = ["!" if too_many_failed(night.failed, night.scored, night.allowed) else " " for night in nights]
    if "!" in marks:
        lines.append(
            [("failed  ", "dim"), ("".join(marks), "red"), ("  ! more failed than the command allowed", "dim")]
        )
    return [*lines, []]
