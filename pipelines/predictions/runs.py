"""Runs beside the table: where their files lie, what their record says, who started them.

`RunFolder` owns every path name below `runs/`. The record is written before the first image is read and again at
the end, each time whole; the table's own log stays the authority on what was committed.
"""

from __future__ import annotations

import datetime
import getpass
import json
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from pipelines.errors import UsageError
from pipelines.predictions.commit import transaction_state
from pipelines.storage import files, paths

FORMAT: Final = 1
STATUSES: Final = ("running", "committed", "abandoned", "rolled_back")

_RUNS: Final = "runs"
_RECORD: Final = "run.json"
_PARTS: Final = "parts"
_ATTEMPTS: Final = "attempts"
_READERS: Final = 16
_PART_NAME: Final = re.compile(r"(\d+)\.parquet")
_MARKER_NAME: Final = re.compile(r"(\d+)-\d+-\d+")

_SECRET_NAME: Final = re.compile(r"secret|token|passw|credential|signature|api.?key|access.?key", re.I)
_IN_URI: Final = re.compile(r"(?<=://)[^/?#\s@]*@|(?<=\?)\S*")
_VERSIONS_OF: Final = (
    "nightread", "ai-edge-litert", "deltalake", "duckdb", "numpy", "opencv-python-headless", "pillow", "pyarrow", "ray",
    "simplejpeg",
)  # fmt: skip


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` says.

    Attributes:
        run_id: The run.
        fingerprint: Hash of its configuration.
        configuration: What was asked, as JSON values.
        counts: Images, by name.
        timings: Seconds and rates, by name.
        who: Who and where, as `who_and_where` gives it.
        table_version: The version that holds its rows; None before the commit.
        status: One of `STATUSES`.
        started_at: UTC.
        model: What a reader needs to understand the run's rows without the bundle: `classes` and `positive_classes` in
            the bundle's order, and its `thresholds` of the run's precision, by the bundle's names of the units. {} in
            records of earlier releases.
    """

    run_id: str
    fingerprint: str
    configuration: Mapping[str, Any]
    counts: Mapping[str, Any]
    timings: Mapping[str, Any]
    who: Mapping[str, Any]
    table_version: int | None
    status: str
    started_at: datetime.datetime
    model: Mapping[str, Any] = field(default_factory=dict)
    format: int = field(default=FORMAT)

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {
            "format": self.format,
            "run_id": self.run_id,
            "status": self.status,
            "started_at": self.started_at.astimezone(datetime.UTC).isoformat(),
            "table_version": self.table_version,
            "fingerprint": self.fingerprint,
            "counts": dict(self.counts),
            "timings": dict(self.timings),
            "configuration": dict(self.configuration),
            "model": dict(self.model),
            "who": dict(self.who),
        }

    def to_json(self) -> bytes:
        """The record as it is written."""
        return (json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")

    @classmethod
    def from_json(cls, data: bytes, uri: str) -> RunRecord:
        """Read a record.

        Args:
            data: The file's content.
            uri: Where it came from, for messages.

        Raises:
            UsageError: If it is damaged or a newer release wrote it.
        """
        try:
            value = json.loads(data)
            number = int(value["format"])
            refuse_newer(number, FORMAT, uri)
            return cls(
                run_id=str(value["run_id"]),
                fingerprint=str(value["fingerprint"]),
                configuration=dict(value["configuration"]),
                counts=dict(value["counts"]),
                timings=dict(value["timings"]),
                who=dict(value["who"]),
                table_version=None if value["table_version"] is None else int(value["table_version"]),
                status=str(value["status"]),
                started_at=datetime.datetime.fromisoformat(value["started_at"]).astimezone(datetime.UTC),
                model=dict(value.get("model") or {}),
                format=number,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{uri!r} is no record of a run, or damaged.",
                "Restore it from a backup, or move its folder out of the results; no image of it is lost then, "
                "only scored again.",
            ) from error


def refuse_newer(number: int, known: int, uri: str) -> None:
    """Refuse a file whose format number is above those that this release knows.

    Raises:
        UsageError: If it is.
    """
    if number > known:
        raise UsageError(
            f"{uri!r} has format {number}; this release knows formats up to {known}.",
            "Use the release of nightread that wrote it, or a later one.",
        )


class RunFolder:
    """Owns every path name of a run. Plain data, so it travels to workers.

    Args:
        results: Canonical URI of the results folder.
        run_id: The run.
    """

    def __init__(self, results: str, run_id: str) -> None:
        self.results = results
        self.run_id = run_id

    @property
    def root(self) -> str:
        """The run's own folder."""
        return paths.join(self.results, _RUNS, self.run_id)

    @property
    def plan(self) -> str:
        """The images to score and their shard: a Parquet file."""
        return paths.join(self.root, "plan.parquet")

    @property
    def run_json(self) -> str:
        """The record."""
        return paths.join(self.root, _RECORD)

    @property
    def drift(self) -> str:
        """How the night that this run ended compares with others; of a command's last run only."""
        return paths.join(self.root, "drift.json")

    @property
    def closing(self) -> str:
        """A file that says: start no further shard. Its time is over; there only while a run is being closed."""
        return paths.join(self.root, "closing")

    @property
    def cut(self) -> str:
        """The shards that the run was cut to when its time was over; there is none for a run that was not cut."""
        return paths.join(self.root, "cut.json")

    @property
    def progress(self) -> str:
        """Where the run stands, for other hosts to see; there only while the run is not at its end."""
        return paths.join(self.root, "progress.json")

    def part(self, shard: int) -> str:
        """Staged rows of a shard."""
        return paths.join(self.root, _PARTS, f"{shard:08d}.parquet")

    def marker(self, shard: int, session: int, attempt: int) -> str:
        """The empty file that an attempt at a shard leaves.

        Args:
            shard: The shard.
            session: Number of the driver's lease.
            attempt: From 1, within the session.
        """
        return paths.join(self.root, _ATTEMPTS, f"{shard:08d}-{session}-{attempt}")

    @property
    def part_uris(self) -> list[str]:
        """The finished parts, by shard."""
        return [self.part(shard) for shard in sorted(self.finished_shards())]

    def finished_shards(self) -> set[int]:
        """Shards whose part is there; parts appear whole."""
        return self._numbers(_PARTS, _PART_NAME)

    def begun_shards(self) -> set[int]:
        """Shards that some attempt has left a marker of."""
        return self._numbers(_ATTEMPTS, _MARKER_NAME)

    def write_record(self, record: RunRecord) -> None:
        """Write the record, whole."""
        files.write_atomic(self.run_json, record.to_json())

    def read_record(self) -> RunRecord:
        """Read the record.

        Raises:
            UsageError: If there is none, it is damaged, or a newer release wrote it.
        """
        try:
            data = files.read_bytes(self.run_json)
        except FileNotFoundError:
            raise UsageError(
                f"There is no run {self.run_id!r} in {self.results!r}.", "`nightread runs list` shows the runs."
            ) from None
        return RunRecord.from_json(data, self.run_json)

    def readable_record(self) -> RunRecord | None:
        """The record; None where there is none or a damaged one, which is for `runs verify` to tell."""
        try:
            return RunRecord.from_json(files.read_bytes(self.run_json), self.run_json)
        except (FileNotFoundError, UsageError):
            return None

    def write_cut(self, shards: Iterable[int]) -> None:
        """Cut the run to these shards, for good: gate and commit are of them alone, after a crash too."""
        document = {"format": FORMAT, "shards": _as_ranges(sorted(shards))}
        files.write_atomic(self.cut, (json.dumps(document) + "\n").encode())

    def read_cut(self) -> frozenset[int] | None:
        """The shards that the run was cut to; None for a whole run.

        Raises:
            UsageError: If the file is damaged or a newer release wrote it.
        """
        try:
            data = files.read_bytes(self.cut)
        except FileNotFoundError:
            return None
        try:
            document = json.loads(data)
            if int(document["format"]) <= FORMAT:
                return frozenset(n for first, last in document["shards"] for n in range(int(first), int(last) + 1))
        except (ValueError, KeyError, TypeError):
            pass
        raise UsageError(
            f"{self.cut!r} is damaged, or a newer release wrote it.",
            "Use the release that wrote it, or delete the file: the run is then finished whole.",
        )

    def remove_parts(self) -> None:
        """Remove what only the scoring needed: parts, markers, progress and the word to end. Plan, cut, record stay."""
        files.delete_tree(paths.join(self.root, _PARTS))
        files.delete_tree(paths.join(self.root, _ATTEMPTS))
        files.delete(self.closing)
        files.delete(self.progress)

    def _numbers(self, folder: str, pattern: re.Pattern[str]) -> set[int]:
        found = (pattern.fullmatch(name) for name in files.list_names(paths.join(self.root, folder)))
        return {int(match[1]) for match in found if match}


def _as_ranges(numbers: Sequence[int]) -> list[list[int]]:
    """Sorted numbers as first and last of each stretch without a gap."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


def list_runs(results: str) -> list[RunRecord]:
    """All runs, oldest first.

    A folder without a record is a run that died before its record: it has no rows and is left out. So is one whose
    record is empty or no JSON, as a power cut leaves it, once the table says that the run was committed or abandoned:
    nothing is left to be done for it.

    Raises:
        UsageError: If another record is damaged or a newer release wrote it.
        TryLater: If storage does not answer.
    """
    place = paths.canonical(results)
    folders = [RunFolder(place, run_id) for run_id in sorted(files.list_names(paths.join(place, _RUNS)))]
    # Ten years of nights in a bucket are ten years of requests: several at a time.
    with ThreadPoolExecutor(_READERS, thread_name_prefix="runs") as pool:
        return [record for record in pool.map(_record_of, folders) if record is not None]


def last_rate(results: str) -> float | None:
    """Images per second of the newest committed run that has a steady rate; None where none has."""
    rates = [record.timings.get("images_per_second") for record in list_runs(results) if record.status == "committed"]
    return next((float(rate) for rate in reversed(rates) if rate), None)


def _record_of(folder: RunFolder) -> RunRecord | None:
    try:
        data = files.read_bytes(folder.run_json)
    except FileNotFoundError:
        return None
    try:
        return RunRecord.from_json(data, folder.run_json)
    except UsageError:
        if _is_json(data) or transaction_state(folder.results, folder.run_id) is None:
            raise
        return None


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def new_run_id() -> str:
    """A name for a run: UTC time, then chance; names sort by time."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def who_and_where(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Who started this process, where, with what; for the record.

    Args:
        arguments: The command line; by default this process's own.

    Returns:
        `user`, `host`, `command_line` (secrets masked) and `versions` by distribution.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return {
        "user": user,
        "host": socket.gethostname(),
        "command_line": without_secrets(sys.argv if arguments is None else arguments),
        "versions": _versions(),
    }


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """A command line that may be written down.

    Args:
        arguments: As given.

    Returns:
        The same with `***` for passwords and query strings of URIs and for values whose name speaks of a secret.
    """
    safe: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide_next and not argument.startswith("-"):
            safe.append("***")
        elif equals and _SECRET_NAME.search(name) and "://" not in name:
            safe.append(f"{name}=***")
        elif "://" in argument:
            safe.append(_IN_URI.sub(lambda match: "***@" if match.group().endswith("@") else "***", argument))
        else:
            safe.append(argument)
        hide_next = argument.startswith("-") and not equals and bool(_SECRET_NAME.search(argument))
    return safe


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {"python": ".".join(str(number) for number in sys.version_info[:3])}
    for name in _VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
