"""What lies in a results folder and is needed no more: found, counted and named, never touched here.

Kept for ever are the table's live files and its log, and of each run its record and its cut. Everything of a run that
is not at its end stays too: the next `score` continues it.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from pipelines.errors import UsageError
from pipelines.predictions.runs import RunFolder, RunRecord, list_runs
from pipelines.predictions.schema import PARTITION_COLUMN
from pipelines.predictions.table import explained_errors, table_uri
from pipelines.storage import files, paths
from pipelines.storage.listing import UNLISTABLE, list_files

if TYPE_CHECKING:
    from deltalake import DeltaTable

DAY: Final = 86_400.0
# Without --older-than; a reader or a writer that began so long ago has ended.
RECORDLESS_SECONDS: Final = 30 * DAY
TABLE_SECONDS: Final = 7 * DAY
SHORT_LIVED_SECONDS: Final = DAY

_READERS: Final = 16
_RUN_NAME: Final = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}")
_HALF_WRITTEN: Final = re.compile(r".*(\.tmp|\.parquet#\d+|\.json#\d+)")
_TABLE_FILE: Final = re.compile(rf"{PARTITION_COLUMN}=[^/]+/[^/]+\.parquet")
_LOG_FILE: Final = re.compile(r"(\d{20})\.json")
_KEPT_OF_RUNS: Final = ("run.json", "cut.json")
_REMAINS_OF_RUNS: Final = re.compile(r"plan\.parquet|closing|progress\.json|parts/.*|attempts/.*")


@dataclass(frozen=True)
class Stored:
    """A file.

    Attributes:
        uri: Where it lies.
        size: Bytes.
        modified: When it was last written (UTC).
    """

    uri: str
    size: int
    modified: datetime.datetime


@dataclass(frozen=True)
class Pile:
    """Files of one kind that can go.

    Attributes:
        what: The kind, in words.
        files: They themselves.
        folders: Folders that can go with all in them; their files are among `files`.
    """

    what: str
    files: tuple[Stored, ...]
    folders: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Leftovers:
    """All that can go.

    Attributes:
        piles: By kind; those without a file are left out.
        unreadable: First and last of each stretch of table versions that cannot be read afterwards, and can now.
        interrupted: Runs that are not at their end, which are left as they are.
    """

    piles: tuple[Pile, ...]
    unreadable: tuple[tuple[int, int], ...]
    interrupted: tuple[str, ...]


@dataclass(frozen=True)
class Ages:
    """How old something must be to go, in seconds.

    Attributes:
        ended: Time since the beginning of a run that is over, for what only its scoring needed.
        recordless: Time since anything was written to a run that has no record.
        table: Time since the table's log gave up a file.
    """

    ended: float = 0.0
    recordless: float = RECORDLESS_SECONDS
    table: float = TABLE_SECONDS

    @classmethod
    def of(cls, older_than: float | None, force: bool) -> Ages:
        """Read the options.

        Args:
            older_than: Everything that is younger stays; None: each kind has an age of its own.
            force: Files of the table may be younger than a week.
        """
        if older_than is None:
            return cls(table=0.0 if force else TABLE_SECONDS)
        return cls(older_than, older_than, older_than if force else max(older_than, TABLE_SECONDS))


def find_leftovers(table: DeltaTable, results: str, ages: Ages) -> Leftovers:
    """Look through a results folder.

    Args:
        table: Its table at the newest version.
        results: Canonical URI of the results.
        ages: How old something must be.

    Raises:
        UsageError: If a folder may not be listed, or a run's record is damaged.
        TryLater: If storage does not answer.
    """
    now = datetime.datetime.now(datetime.UTC)
    found = _inventory(results)  # before the records, so that a run that begins meanwhile has its own
    records = {record.run_id: record for record in list_runs(results)}
    half_written = [
        file for path, file in found.items() if _HALF_WRITTEN.fullmatch(path) and _age(file, now) > SHORT_LIVED_SECONDS
    ]
    rest = {path: file for path, file in found.items() if not _HALF_WRITTEN.fullmatch(path)}
    given_up = _given_up(table, results, rest, ages)
    piles = [
        Pile("parts, markers and plans of runs that are over", tuple(_of_ended_runs(rest, records, ages, now))),
        _whole_folders("runs that died before they had a record", _recordless(results, rest, ages, now)),
        _whole_folders("listings that were never finished", _old_listings(results, rest, now)),
        Pile("files that were being written when a process died", tuple(half_written)),
        Pile("files of the table that its newest version does not need", tuple(given_up.values())),
    ]
    return Leftovers(
        tuple(pile for pile in piles if pile.files),
        _unreadable(results, found, set(given_up)),
        tuple(run for run, record in records.items() if record.status == "running"),
    )


def _inventory(results: str) -> dict[str, Stored]:
    """Every file of the results, by its path below them."""

    def failed(uri: str, reason: str) -> None:
        if reason in UNLISTABLE:
            raise UsageError(f"{uri!r} cannot be listed.", "Check the rights of its folders, and the disk.")

    found = {}
    for batch in list_files(results, failed):
        columns = (batch.uris, batch.sizes, batch.modified)
        for uri, size, modified in zip(*(column.to_pylist() for column in columns), strict=True):
            file = Stored(paths.unescape_name(uri), size, modified or datetime.datetime.now(datetime.UTC))
            found[paths.relative(file.uri, results)] = file
    return found


def _of_ended_runs(
    found: Mapping[str, Stored], records: Mapping[str, RunRecord], ages: Ages, now: datetime.datetime
) -> Iterable[Stored]:
    """What only the scoring of runs needed that are over by their record, or by the log where that is lost."""
    for run_id, own in _by_folder(found, "runs").items():
        record = records.get(run_id)
        if record is None:
            # `list_runs` leaves out an unreadable record only where the table's log says that the run is over.
            over = "run.json" in own and all(_age(file, now) >= ages.ended for file in own.values())
        else:
            over = record.status != "running" and (now - record.started_at).total_seconds() >= ages.ended
        if over:
            yield from (file for path, file in own.items() if _REMAINS_OF_RUNS.fullmatch(path))


def _recordless(
    results: str, found: Mapping[str, Stored], ages: Ages, now: datetime.datetime
) -> Iterable[tuple[str, Sequence[Stored]]]:
    for run_id, own in _by_folder(found, "runs").items():
        untouched = all(_age(file, now) > ages.recordless for file in own.values())
        if _RUN_NAME.fullmatch(run_id) and not own.keys() & set(_KEPT_OF_RUNS) and untouched:
            yield RunFolder(results, run_id).root, list(own.values())


def _old_listings(
    results: str, found: Mapping[str, Stored], now: datetime.datetime
) -> Iterable[tuple[str, Sequence[Stored]]]:
    for name, own in _by_folder(found, "listings").items():
        if all(_age(file, now) > SHORT_LIVED_SECONDS for file in own.values()):
            yield paths.join(results, "listings", name), list(own.values())


def _whole_folders(what: str, folders: Iterable[tuple[str, Sequence[Stored]]]) -> Pile:
    given = list(folders)
    return Pile(what, tuple(file for _, own in given for file in own), tuple(folder for folder, _ in given))


def _by_folder(found: Mapping[str, Stored], folder: str) -> dict[str, dict[str, Stored]]:
    """The files below each sub-folder of a folder of the results, by their path in it."""
    inside: dict[str, dict[str, Stored]] = defaultdict(dict)
    for path, file in found.items():
        head, _, rest = path.partition("/")
        name, slash, below = rest.partition("/")
        if head == folder and slash:
            inside[name][below] = file
    return inside


def _given_up(table: DeltaTable, results: str, found: Mapping[str, Stored], ages: Ages) -> dict[str, Stored]:
    """Files of the table, by their path in it, that its newest version does not name; only Parquet files of a day."""
    with explained_errors(table_uri(results)):
        listed = table.vacuum(
            retention_hours=math.ceil(ages.table / 3600), dry_run=True, enforce_retention_duration=False, full=True
        )
    names = (unquote(path) for path in listed)
    there = {name: found.get(f"predictions/{name}") for name in names if _TABLE_FILE.fullmatch(name)}
    return {name: file for name, file in there.items() if file is not None}


def _unreadable(results: str, found: Mapping[str, Stored], gone: set[str]) -> tuple[tuple[int, int], ...]:
    """The versions that need a file which is about to go: from the one that brought it to the last before it left."""
    if not gone:
        return ()
    log = "predictions/_delta_log/"
    names = (path.removeprefix(log) for path in found if path.startswith(log))
    versions = {int(match[1]): name for name in names if (match := _LOG_FILE.fullmatch(name))}
    with ThreadPoolExecutor(_READERS, thread_name_prefix="log") as pool:
        entries = pool.map(lambda name: files.read_bytes(paths.join(results, log + name)), versions.values())
        since: dict[str, int] = {}
        needed: set[int] = set()
        for version, entry in sorted(zip(versions, entries, strict=True)):
            for added, name in _named(entry):
                if name not in gone:
                    continue
                if added:
                    since[name] = version
                else:
                    needed |= set(range(since.pop(name, min(versions)), version))
    return _stretches(needed)


def _named(entry: bytes) -> Iterable[tuple[bool, str]]:
    """Files that a version of the log adds (True) and gives up (False)."""
    for line in entry.splitlines():
        action = json.loads(line)
        for kind in ("add", "remove"):
            if kind in action:
                yield kind == "add", unquote(action[kind]["path"])


def _stretches(numbers: set[int]) -> tuple[tuple[int, int], ...]:
    firsts = sorted(number for number in numbers if number - 1 not in numbers)
    lasts = sorted(number for number in numbers if number + 1 not in numbers)
    return tuple(zip(firsts, lasts, strict=True))


def _age(file: Stored, now: datetime.datetime) -> float:
    return (now - file.modified).total_seconds()
