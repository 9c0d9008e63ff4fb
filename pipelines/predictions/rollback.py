"""A run is taken back: its rows leave the table in one new version, and its images are new again.

Later runs stay. The commit that deletes the rows carries the run's id with another mark than the one that brought them:
so the table itself knows, at once with the rows, that the run was taken back. A kill between this commit and the run's
record is found by the next `rollback` of the same run, which writes the record.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import TryLater, UsageError
from pipelines.predictions.commit import COMMITTED, ROLLED_BACK
from pipelines.predictions.query import connect
from pipelines.predictions.rewriting import rewrite_days
from pipelines.predictions.runs import RunFolder, RunRecord, list_runs
from pipelines.predictions.schema import PARTITION_COLUMN
from pipelines.predictions.statements import literal
from pipelines.predictions.table import open_table
from pipelines.storage import files, paths
from pipelines.storage.leases import Lease

if TYPE_CHECKING:
    from deltalake import DeltaTable

_KEY: Final = "nightread_rollback"


@dataclass(frozen=True)
class RolledBack:
    """What became of a rollback.

    Attributes:
        run_id: The run.
        rows: Rows that the table had of it.
        images: Their images.
        table_version: The version without them.
        finished_earlier: Whether an earlier command had deleted the rows and died before it could say so; `rows` and
            `images` are 0 then.
        published: Published files that still hold the newest scores as they were before, until the next `score`
            with that `--publish`.
    """

    run_id: str
    rows: int
    images: int
    table_version: int
    finished_earlier: bool
    published: tuple[str, ...]


def roll_back(results: str, run_id: str, who: Mapping[str, Any]) -> RolledBack:
    """Delete a run's rows in one new version of the table; its record says `rolled_back`.

    Args:
        results: The results folder.
        run_id: The run.
        who: `user` and `host`, for the table's log.

    Raises:
        UsageError: If there is no such run, it is not committed, or it has been rolled back.
        TryLater: If another process writes to the results, or storage does not answer.
    """
    place = paths.canonical(results)
    open_table(place)  # a place without results is told before a lease is taken there
    _known(place, run_id)
    with Lease.acquire(place) as lease:
        lease.start_renewing()
        folder = RunFolder(place, run_id)
        record = folder.read_record()
        table = open_table(place, lease)
        state = table.transaction_version(run_id)
        _check(record, state)
        rows = images = 0
        if state == COMMITTED:
            counted = _counted(place, record)
            rows, images = counted.rows, counted.images
            if record.status == "running":  # its driver died between its commit and its last word
                record = _closed(record, int(table.version()), counted)
                folder.write_record(record)
            _delete(table, place, counted, who, lease)
        folder.write_record(replace(record, status="rolled_back"))
        folder.remove_parts()
        version = int(open_table(place).version())
    return RolledBack(run_id, rows, images, version, state == ROLLED_BACK, _published(place))


def _known(place: str, run_id: str) -> None:
    """Refuse a name that is no run's; it might be a path."""
    known = files.list_names(paths.join(place, "runs"))
    if run_id not in known:
        last = f"The last ones are: {', '.join(known[-3:])}." if known else "There is none yet."
        raise UsageError(f"There is no run {run_id!r} in {place!r}.", last)


def _check(record: RunRecord, state: int | None) -> None:
    """Refuse a run that has no rows in the table."""
    run_id = record.run_id
    if record.status == "rolled_back":
        raise UsageError(f"Run {run_id} has been rolled back already.", "Its images are new to the next score.")
    if state in (COMMITTED, ROLLED_BACK):
        return
    if record.status == "running":
        raise UsageError(
            f"Run {run_id} is not committed: it is running, or was interrupted.",
            "It has no rows in the table; the same score command continues it, another one abandons it.",
        )
    if record.status == "committed":
        raise UsageError(
            f"Run {run_id} is committed by its record, and unknown to the table.",
            "The results are not whole: `nightread runs verify` says more.",
        )
    raise UsageError(f"Run {run_id} is not committed, but {record.status}.", "It has no rows in the table.")


@dataclass(frozen=True)
class _Counted:
    """Rows of a run in the table, and the first and the last day that they are of."""

    run_id: str
    rows: int
    images: int
    failed: Mapping[str, int]
    first_day: datetime.date
    last_day: datetime.date


def _counted(place: str, record: RunRecord) -> _Counted:
    run_id, day = record.run_id, record.started_at.date()
    own = f"FROM rows WHERE run_id = {literal(run_id)}"
    with connect(place, with_runs=False) as connection:
        found = connection.execute(
            # Hashes instead of names: ten million of these take gigabytes.
            f"SELECT count(*), count(DISTINCT hash(image_uri)), min({PARTITION_COLUMN}), max({PARTITION_COLUMN}) {own}"
        ).fetchone()
        codes = connection.execute(
            f"SELECT error_code, count(*) {own} AND error_code IS NOT NULL GROUP BY ALL"
        ).fetchall()
    rows, images, first, last = found or (0, 0, None, None)
    return _Counted(run_id, int(rows), int(images), dict(codes), first or day, last or day)


def _closed(record: RunRecord, version: int, counted: _Counted) -> RunRecord:
    """The record as the run's driver would have written it after the commit."""
    failed = sum(counted.failed.values())
    own = {"scored": counted.rows - failed, "failed": failed, "failed_by_code": dict(counted.failed)}
    return replace(record, status="committed", table_version=version, counts={**record.counts, **own})


def _delete(table: DeltaTable, place: str, counted: _Counted, who: Mapping[str, Any], lease: Lease) -> None:
    """Write the days of the run anew without its rows: most runs are alone on their day, and nothing is written."""
    from deltalake.exceptions import CommitFailedError

    run_id, dropped = counted.run_id, 0
    told = {
        "run": run_id,
        "user": who.get("user"),
        "host": who.get("host"),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }

    def others(batch: pa.RecordBatch) -> pa.RecordBatch:
        nonlocal dropped
        kept = batch.filter(pc.invert(pc.fill_null(pc.equal(batch.column("run_id"), run_id), False)))
        dropped += batch.num_rows - kept.num_rows
        return kept

    def last_check() -> None:
        if dropped != counted.rows:
            raise RuntimeError(f"{dropped} rows were left out, and {counted.rows} were to be")
        lease.check()

    marks = [(run_id, ROLLED_BACK)]
    try:
        rewrite_days(
            table, place, counted.first_day, counted.last_day, others, last_check, {_KEY: json.dumps(told)}, marks
        )
    except CommitFailedError:
        raise TryLater(
            "The table changed while the run was being rolled back; nothing was deleted.", "Start it again."
        ) from None
    except Exception:
        # An error after the commit was sent says nothing about whether it landed.
        if open_table(place).transaction_version(run_id) != ROLLED_BACK:
            raise


def _published(place: str) -> tuple[str, ...]:
    """Places of published files that runs of these results have named and where there is one."""
    named = {str(record.configuration.get("publish") or "") for record in list_runs(place)} - {""}
    spelled = sorted(paths.unescape_name(name) for name in named)
    return tuple(uri for uri in (paths.join(name, "latest.parquet") for name in spelled) if _is_there(uri))


def _is_there(uri: str) -> bool:
    try:
        return files.exists(uri)
    except (TryLater, UsageError):
        return True  # it cannot be asked now; better told once too often
