"""Cleaning: what a results folder needs no more is deleted, and only when asked its small files are made large ones.

All of it happens under the lease, so that no run is at work. Before anything is deleted the caller is told what, and
which versions of the table cannot be read afterwards. A kill in between leaves less to do.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from pipelines.errors import TryLater
from pipelines.predictions.leftovers import Ages, Leftovers, Pile, find_leftovers
from pipelines.predictions.schema import PARTITION_COLUMN
from pipelines.predictions.table import explained_errors, open_table, table_uri
from pipelines.storage import files, paths
from pipelines.storage.leases import Lease

if TYPE_CHECKING:
    from deltalake import DeltaTable

TARGET_BYTES: Final = 100 << 20

_KEY: Final = "nightread_compact"
_DELETERS: Final = 16


@dataclass(frozen=True)
class Compaction:
    """Small files of the table that become large ones.

    Attributes:
        days: Days with several of them.
        files: The small ones.
        into: How many files they became; None for a dry run.
    """

    days: int
    files: int
    into: int | None = None


@dataclass(frozen=True)
class Cleaned:
    """What a cleaning did, or would do.

    Attributes:
        leftovers: What was deleted.
        compaction: Its files; None where it was not asked for.
        table_version: The newest version of the table at the end.
    """

    leftovers: Leftovers
    compaction: Compaction | None
    table_version: int


def clean(
    results: str,
    ages: Ages,
    who: Mapping[str, Any],
    before: Callable[[Leftovers, Compaction | None], None],
    *,
    compact: bool = False,
    dry_run: bool = False,
) -> Cleaned:
    """Delete what a results folder needs no more.

    Args:
        results: The results folder.
        ages: How old something must be.
        who: `user` and `host`, for the table's log.
        before: Called with what is about to be deleted, before anything is.
        compact: First write the small files of each day anew as few large ones, in one commit.
        dry_run: Only look; nothing is written, and no lease is taken.

    Raises:
        UsageError: If there are no results, or a run's record is damaged.
        TryLater: If another process writes to the results, or storage does not answer.
    """
    place = paths.canonical(results)
    table = open_table(place)  # a place without results is told before a lease is taken there
    if dry_run:
        compaction = _compactable(table) if compact else None
        leftovers = find_leftovers(table, place, ages)
        before(leftovers, compaction)
        return Cleaned(leftovers, compaction, int(table.version()))
    with Lease.acquire(place) as lease:
        lease.start_renewing()
        compaction = _compact(open_table(place, lease), place, who, lease) if compact else None
        table = open_table(place)
        leftovers = find_leftovers(table, place, ages)
        before(leftovers, compaction)
        for pile in leftovers.piles:
            _delete(pile, lease)
        return Cleaned(leftovers, compaction, int(table.version()))


def _delete(pile: Pile, lease: Lease) -> None:
    lease.check()

    def delete(uri: str) -> None:
        if lease.lost.is_set():
            lease.check()
        files.delete(uri)

    with ThreadPoolExecutor(_DELETERS, thread_name_prefix="clean") as pool:
        for _ in pool.map(delete, [file.uri for file in pile.files]):
            pass
    for folder in pile.folders:
        files.delete_tree(folder)


def _compactable(table: DeltaTable) -> Compaction:
    """Days with several small files, and how many these are."""
    added = pa.table(table.get_add_actions(flatten=True))
    days = added.column(f"partition.{PARTITION_COLUMN}").to_pylist()
    sizes = added.column("size_bytes").to_pylist()
    small: dict[Any, int] = {}
    for day, size in zip(days, sizes, strict=True):
        if size < TARGET_BYTES:
            small[day] = small.get(day, 0) + 1
    several = [count for count in small.values() if count > 1]
    return Compaction(len(several), sum(several))


def _compact(table: DeltaTable, place: str, who: Mapping[str, Any], lease: Lease) -> Compaction:
    """Write the small files of each day anew, in one commit; readers of an earlier version keep their files."""
    from deltalake import CommitProperties, WriterProperties
    from deltalake.exceptions import CommitFailedError

    there = _compactable(table)
    if not there.days:
        return Compaction(0, 0, 0)
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    told = {"user": who.get("user"), "host": who.get("host"), "at": at}
    lease.check()
    try:
        with explained_errors(table_uri(place)):
            done = table.optimize.compact(
                target_size=TARGET_BYTES,
                max_concurrent_tasks=1,  # each holds some files in memory
                writer_properties=WriterProperties(compression="ZSTD"),
                commit_properties=CommitProperties(custom_metadata={_KEY: json.dumps(told)}),
            )
    except CommitFailedError:
        raise TryLater(
            "The table changed while it was being compacted; nothing was deleted.", "Start it again."
        ) from None
    return Compaction(int(done["partitionsOptimized"]), int(done["numFilesRemoved"]), int(done["numFilesAdded"]))
