"""Whether somebody works on a run that is not at its end: its record says `running` after a kill as well."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.storage import files, leases

SCORING: Final = "scoring"
INTERRUPTED: Final = "interrupted"
UNSURE: Final = "unsure"

FRESH_SECONDS: Final = 60.0
"""A word of progress that is not older needs no watching. Clocks of two machines may differ."""


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes:
        record: Its record, read again where it came to its end between two looks.
        state: Its status; of one that is not at its end `scoring`, `interrupted` (nobody works on it) or `unsure`
            (another machine's process holds the results and shows no sign of life).
        owner: Who holds the results; None for nobody, and for a run at its end.
        progress: Where it says that it is; None for a run at its end, or one that never said.
    """

    record: RunRecord
    state: str
    owner: leases.Owner | None = None
    progress: Mapping[str, Any] | None = None


def standings(
    place: str, records: Sequence[RunRecord], stirs: Callable[[leases.Owner], bool] = lambda _owner: False
) -> list[Standing]:
    """Where each of some runs stands.

    Args:
        place: Canonical URI of the results.
        records: Their records.
        stirs: Whether an owner on another machine, of whom there is no fresh word, shows life; it may wait for that.

    Returns:
        One for each record, in order.

    Raises:
        UsageError: If the lease may not be read, or a newer release wrote it.
        TryLater: If storage does not answer.
    """
    at_work = any(record.status == "running" for record in records)
    owner = leases.owner_of(place) if at_work else None
    return [_standing(place, record, owner, stirs) for record in records]


def small_document(uri: str) -> dict[str, Any] | None:
    """A small JSON file; None where it is missing or half written."""
    try:
        value = json.loads(files.read_bytes(uri))
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _standing(
    place: str, record: RunRecord, owner: leases.Owner | None, stirs: Callable[[leases.Owner], bool]
) -> Standing:
    if record.status != "running":
        return Standing(record, record.status)
    folder = RunFolder(place, record.run_id)
    progress = small_document(folder.progress)
    if owner is None or owner.alive is False:
        latest = folder.read_record()  # it may have come to its end between two looks
        if latest.status != record.status:
            return Standing(latest, latest.status)
        return Standing(record, INTERRUPTED, None, progress)
    alive = owner.alive or _is_fresh(progress) or stirs(owner)
    return Standing(record, SCORING if alive else UNSURE, owner, progress)


def _is_fresh(progress: Mapping[str, Any] | None) -> bool:
    try:
        at = datetime.datetime.fromisoformat(str((progress or {})["at"]))
        return abs((datetime.datetime.now(datetime.UTC) - at).total_seconds()) < FRESH_SECONDS
    except (KeyError, ValueError, TypeError):
        return False
