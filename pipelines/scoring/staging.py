"""From a plan to runs on disk, and what becomes of runs that an earlier command left."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from pipelines.models.bundle import THRESHOLD_UNITS, threshold_unit
from pipelines.predictions import commit, query, runs
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema
from pipelines.scoring.night import Night, Planned
from pipelines.scoring.report import RunCounts
from pipelines.storage import files
from pipelines.storage.leases import Lease

Run = tuple[RunFolder, RunRecord]


def stage_runs(night: Night, planned: Planned, lease: Lease) -> list[Run]:
    """Write down every run of a plan before the first of them begins: its plan, then its record.

    All of them are there to be continued by the next command should this one die. Where it dies while it writes them,
    `RunRecord.configuration["runs"]` of those that are there tells that the set is not whole. Where it was paused so
    long that another command has scored the same images meanwhile, `planned_at_version` tells.

    Args:
        night: The command.
        planned: What is to be scored.
        lease: The right to write.

    Returns:
        The runs in the plan's order, which is the order of their names too.
    """
    commit.check_carried(night.results, prediction_schema(night.bundle.classes, planned.listing.carried))
    folders = [RunFolder(night.results, run_id) for run_id in sorted(runs.new_run_id() for _ in planned.plan.paths)]
    for folder, path in zip(folders, planned.plan.paths, strict=True):
        lease.check()
        files.put(str(path), folder.plan)
    first = _first_record(night, planned, folders)
    staged: list[Run] = []
    for folder, path in zip(folders, planned.plan.paths, strict=True):
        images = pq.read_metadata(path).num_rows
        own = {"planned": images, "shards": -(-images // night.config.images_a_shard)}
        # One listing serves them all: its time stands at the first, so that a sum over runs is right.
        timings = {} if staged else dict(planned.timings)
        record = replace(first, run_id=folder.run_id, counts={**first.counts, **own}, timings=timings)
        staged.append((folder, record))
    for folder, record in staged:
        lease.check()
        folder.write_record(record)
    lease.check()
    return staged


def _first_record(night: Night, planned: Planned, folders: Sequence[RunFolder]) -> RunRecord:
    plan = planned.plan
    configuration = {
        **night.config.as_record(),
        "versions_from_manifest": planned.listing.versions_from_manifest,
        "model_id": night.bundle.model_id,
        "model_name": night.bundle.name,
    }
    configuration["planned_at_version"] = planned.table_version
    if len(folders) > 1:
        configuration["runs"] = [other.run_id for other in folders]
    return RunRecord(
        run_id=folders[0].run_id,
        fingerprint=night.fingerprint,
        configuration=configuration,
        counts={
            "found": plan.found,
            "new": plan.new,
            "changed": plan.changed,
            "unchanged": plan.unchanged,
            "rescored_for_model": plan.rescored_for_model,
            "gone": plan.gone,
        },
        timings={},
        who=dict(night.config.who),
        table_version=None,
        status="running",
        started_at=datetime.datetime.now(datetime.UTC),
        model=_described(night),
    )


def unsettled_runs(night: Night, lease: Lease) -> tuple[list[Run], list[tuple[str, RunCounts]]]:
    """Look through the runs that are not at their end: which of them this command continues.

    Those of another configuration are abandoned, and so are those of a set that was never written whole where nothing
    would be planned after them, and those whose images another command has scored since. One that was committed,
    abandoned or rolled back by a driver that died before it could say so is closed.

    Args:
        night: The command.
        lease: The right to write.

    Returns:
        The runs to continue, in order; run id and rows of each of this configuration that was closed.
    """
    records = runs.list_runs(night.results)
    ended = [record.run_id for record in records if record.status != "running"]
    if ended:
        # A driver that died between its last word and this leaves parts that nobody reads any more.
        RunFolder(night.results, ended[-1]).remove_parts()
    open_runs: list[Run] = []
    closed: list[tuple[str, RunCounts]] = []
    for record in records:
        if record.status != "running":
            continue
        lease.check()
        folder = RunFolder(night.results, record.run_id)
        state = commit.transaction_state(night.results, record.run_id)
        counts: RunCounts | None = None
        if state == commit.COMMITTED:
            counts = close_committed(folder, record)
        elif state is not None:  # only the record does not know yet
            folder.write_record(replace(record, status="abandoned" if state == commit.ABANDONED else "rolled_back"))
            folder.remove_parts()
        elif record.fingerprint == night.fingerprint and _is_whole(record, records, night):
            open_runs.append((folder, record))
        else:
            counts = abandon(folder, record, lease)
        if counts is not None and record.fingerprint == night.fingerprint:
            closed.append((record.run_id, counts))
    return open_runs, closed


def _is_whole(record: RunRecord, records: Sequence[RunRecord], night: Night) -> bool:
    """Whether a run can be continued: its set was written to the end, and nobody else has scored since it was planned.

    A set that lacks runs is fine for a command that plans on: what is missing is new to it.
    """
    own = record.configuration.get("runs") or [record.run_id]
    if not night.config.continues_planning and not {other.run_id for other in records}.issuperset(own):
        return False
    if "planned_at_version" not in record.configuration:  # as earlier releases wrote it
        return True
    planned_at = record.configuration["planned_at_version"]
    before = -1 if planned_at is None else int(planned_at)
    return not any(
        other.run_id not in own and other.table_version is not None and other.table_version > before
        for other in records
    )


def abandon(folder: RunFolder, record: RunRecord, lease: Lease) -> RunCounts | None:
    """Make sure that a run is never committed; its images are new again.

    Args:
        folder: The run.
        record: What its record says.
        lease: The right to write.

    Returns:
        None; the run's rows where it turns out to have been committed.
    """
    if not commit.abandon_run(folder.results, record.run_id, lease):
        return close_committed(folder, record)
    folder.write_record(replace(record, status="abandoned"))
    folder.remove_parts()
    return None


def close_committed(folder: RunFolder, record: RunRecord) -> RunCounts:
    """A driver died between its commit and its last word: the rows are in the table, the record says so now."""
    counts = _counts_in_table(folder.results, record.run_id)
    version = commit.table_version(folder.results)
    closed = replace(record, status="committed", table_version=version, counts={**record.counts, **counts.as_record()})
    folder.write_record(closed)
    folder.remove_parts()
    return counts


def _described(night: Night) -> dict[str, Any]:
    """What the record says of the model, for those who read rows without having its bundle."""
    bundle, precision = night.bundle, night.config.precision
    units = [threshold_unit(precision, unit) for unit in THRESHOLD_UNITS]
    return {
        "classes": list(bundle.classes),
        "positive_classes": list(bundle.positive_classes),
        "thresholds": {unit: dict(bundle.thresholds[unit]) for unit in units if unit in bundle.thresholds},
    }


def _counts_in_table(results: str, run_id: str) -> RunCounts:
    """Rows of a committed run by status, asked of the table itself."""
    table = query.run_query(
        results, f"SELECT error_code, count(*) AS n FROM rows WHERE run_id = '{run_id}' GROUP BY error_code"
    )
    by_code = dict(zip(table.column("error_code").to_pylist(), table.column("n").to_pylist(), strict=True))
    scored = by_code.pop(None, 0)
    return RunCounts(scored, by_code)
