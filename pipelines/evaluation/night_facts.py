"""What can be said of one night, on a terminal and on a page: where its time went, and what a person should look at."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pipelines.predictions.examples import Example
from pipelines.predictions.runs import RunRecord

ACTOR_STAGES: Final[Mapping[str, str]] = {
    "read": "waiting for images from the archive",
    "decode": "turning bytes into pixels",
    "score": "the model",
    "write": "writing finished rows to the results",
    "wait": "an archive that was away or seemed to be",
    "idle": "starting, between shards, after the last",
}
DRIVER_PHASES: Final[Mapping[str, str]] = {
    "list": "finding the images of the archive",
    "plan": "telling which of them are new",
    "start": "starting or joining Ray",
    "score": "the cores at work, as above",
    "commit": "checking and committing the rows",
    "other": "opening the model and everything else",
}
_PHASE_KEYS: Final[Mapping[str, str]] = {
    "list": "listing_seconds",
    "plan": "planning_seconds",
    "start": "starting_seconds",
    "score": "scoring_seconds",
    "commit": "committing_seconds",
}
MOST_STEPS: Final = 60
_LEAST_STEPS: Final = 4
_SHARDS_A_STEP: Final = 4
_MOSTLY: Final = 0.5
# Before that the start of the actors is most of what they wait for.
_LONG_ENOUGH: Final = 600.0


@dataclass(frozen=True)
class Piece:
    """A piece of a bar.

    Attributes:
        name: Of the stage or phase.
        seconds: Of all cores together, or of the driver.
        share: 0–1 of the bar.
        meaning: What it is, in words.
    """

    name: str
    seconds: float
    share: float
    meaning: str


@dataclass(frozen=True)
class NightView:
    """A run as it is shown.

    Attributes:
        record: What its record says.
        state: Its status; of one that is not at its end `scoring`, `interrupted` or `unsure`.
        sentence: The state in a sentence.
        over_threshold: Whether more images failed than the command allowed.
        progress: Where it stands; None for one that is at its end or never said.
        examples: Failed images by code.
        slowest: Seconds and name of its slowest images, the slowest first; a name is None where it is not known.
        drift: drift.json of its command; None where nothing was compared.
        notes: What else is to be known, a sentence each.
    """

    record: RunRecord
    state: str
    sentence: str
    over_threshold: bool = False
    progress: Mapping[str, Any] | None = None
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    slowest: Sequence[tuple[float, str | None]] = ()
    drift: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()

    @property
    def timings(self) -> Mapping[str, Any]:
        """The record's timings."""
        return self.record.timings


def actor_pieces(timings: Mapping[str, Any]) -> list[Piece]:
    """Core-seconds by stage; [] where the record keeps none, as those of earlier releases."""
    stages = dict(timings.get("stages") or {})
    busy = sum(stages.values())
    if busy <= 0:
        return []
    held = float(timings.get("cores") or 0) * float(timings.get("scoring_seconds") or 0.0)
    stages["idle"] = max(0.0, held - busy)
    return _pieces(stages, ACTOR_STAGES)


def driver_pieces(timings: Mapping[str, Any]) -> list[Piece]:
    """Seconds of the command's own process by phase; [] where the record keeps none."""
    phases = {name: float(timings.get(key) or 0.0) for name, key in _PHASE_KEYS.items() if timings.get(key) is not None}
    if "commit" not in phases:
        return []  # it is not at its end
    of_run = sum(phases.get(name, 0.0) for name in ("start", "score", "commit"))
    phases["other"] = max(0.0, float(timings.get("seconds") or 0.0) - of_run)
    return _pieces(phases, DRIVER_PHASES)


def rate_points(record: RunRecord) -> list[tuple[float, float]]:
    """Seconds since the scoring began and images per second until then, in order.

    Images are counted shard by shard: steps are joined so that each has a few, or they would show nothing but that.
    """
    points = [(float(at), float(rate)) for at, rate in record.timings.get("rate_over_time") or ()]
    most = min(MOST_STEPS, max(_LEAST_STEPS, int(record.counts.get("shards") or 0) // _SHARDS_A_STEP))
    together = -(-len(points) // most)
    joined, start = [], 0.0
    for first in range(0, len(points), together or 1):
        images, began = 0.0, start
        for end, rate in points[first : first + together]:
            images, start = images + (end - start) * rate, end
        joined.append((start, images / (start - began) if start > began else 0.0))
    return joined


def concerns(view: NightView) -> list[str]:
    """What a person should look at, a sentence each, the gravest first."""
    found = [] if view.state in ("committed", "scoring") else [view.sentence]
    if view.progress is not None and view.progress.get("note"):
        found.append(str(view.progress["note"]))
    counts = view.record.counts
    failed, scored = int(counts.get("failed") or 0), int(counts.get("scored") or 0)
    if view.over_threshold:
        allowed = view.record.configuration.get("fail_threshold")
        found.append(f"{failed:,} of {failed + scored:,} images failed, more than {allowed}, which the command allows.")
    if view.drift is not None and view.drift.get("verdict") in ("watch", "drift"):
        found.append(str(view.drift.get("sentence", "")))
    if counts.get("remaining"):
        found.append(f"{int(counts['remaining']):,} images of the plan were left to the next night: the time was over.")
    return [*found, *_of_time(view.timings), *view.notes]


def moment(at: str) -> str:
    """A time in ISO form as everywhere else: `2026-03-01 22:04:31 UTC`; what is none as it is."""
    try:
        return f"{datetime.datetime.fromisoformat(at).astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return at


def _of_time(timings: Mapping[str, Any]) -> list[str]:
    """What made the night slow, where something stands out."""
    found = []
    shares = {piece.name: piece.share for piece in actor_pieces(timings)}
    if shares.get("read", 0.0) > _MOSTLY:
        found.append(
            f"Cores waited for images {shares['read']:.0%} of their time: the archive's storage or the network sets "
            "the pace, and further cores would not help."
        )
    if shares.get("idle", 0.0) > _MOSTLY and float(timings.get("scoring_seconds") or 0.0) > _LONG_ENOUGH:
        found.append(f"Cores had nothing to do {shares['idle']:.0%} of their time: fewer would have done.")
    if shares.get("wait", 0.0) > 0.05:
        found.append(
            f"{shares['wait']:.0%} of the cores' time went by waiting for an archive that was away or seemed to be."
        )
    if timings.get("images_before"):
        found.append(
            f"{int(timings['images_before']):,} images were finished by an earlier command that was interrupted; of "
            "its time nothing is known, so times are those of the rest."
        )
    return found


def _pieces(seconds: Mapping[str, float], meanings: Mapping[str, str]) -> list[Piece]:
    total = sum(seconds.values())
    known = {**dict.fromkeys(meanings, 0.0), **seconds}
    return [
        Piece(name, spent, spent / total if total > 0 else 0.0, meanings.get(name, "")) for name, spent in known.items()
    ]
