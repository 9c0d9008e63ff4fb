"""The scoring job: finish what was interrupted, plan what is new, score it, one gate, one commit."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pipelines.errors import Stopped, TryLater
from pipelines.models.bundle import THRESHOLD_UNITS, threshold_unit
from pipelines.models.golden import self_test
from pipelines.models.runtime import Scorer
from pipelines.predictions import commit, query, runs
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema
from pipelines.scoring import parts
from pipelines.scoring.config import ScoreConfig
from pipelines.scoring.gate import Gate, PartMissing
from pipelines.scoring.night import Night, Planned, Tell, check_archive, open_night, planned_work
from pipelines.scoring.parts import PlanFile, PlanLost, open_plan
from pipelines.scoring.report import RunCounts, ScoreProgress, ScoreReport, Tally
from pipelines.scoring.rows import RowContext
from pipelines.scoring.scorer import PredictionMaker, Receipt, ScoreKernel, ShardWork
from pipelines.storage import files
from pipelines.storage.leases import Lease

GATE_ROUNDS = 3
ShowRows = Callable[[pa.Table], None]


@dataclass(frozen=True)
class Finished:
    """A run that was committed by this command.

    Attributes:
        run_id: The run.
        counts: Its rows.
        rate: Steady rate; None where there is none.
        table_version: The table's version that holds it.
        multi_frame: Images of which only the first frame was scored.
    """

    run_id: str
    counts: RunCounts
    rate: float | None
    table_version: int
    multi_frame: int = 0


def score(
    config: ScoreConfig,
    connect: Callable[[], AbstractContextManager[Any]],
    tell: Tell,
    show_rows: ShowRows | None = None,
) -> ScoreReport:
    """Score an archive: each image that is new or changed becomes one committed row.

    Args:
        config: What to score, with what, where to.
        connect: Starts or joins Ray for a `with` block and yields its size (`cpus`); not called where nothing is new.
        tell: Called with progress, often.
        show_rows: Called with the rows of each finished part; None: parts are not read back.

    Returns:
        Counts and figures of the whole command.

    Raises:
        UsageError, ModelRefused, TryLater, LeaseLost: Each with its cure.
        Stopped: On Ctrl-C; what was finished is kept.
    """
    began = time.monotonic()
    night = open_night(config, tell)
    check_archive(config)
    if config.dry_run:
        return replace(_dry_run(night), seconds=time.monotonic() - began)
    with Lease.acquire(night.results) as lease:
        lease.start_renewing()
        job = _Job(night, lease, connect, show_rows)
        report = job.run()
    return replace(report, seconds=time.monotonic() - began)


def _dry_run(night: Night) -> ScoreReport:
    with planned_work(night) as planned:
        rates = [
            record.timings.get("images_per_second")
            for record in runs.list_runs(night.results)
            if record.status == "committed"
        ]
        rate = next((rate for rate in reversed(rates) if rate), None)
        return replace(
            _report_of(night, planned),
            seconds_estimated=planned.plan.planned / rate if rate else None,
            dry_run=True,
        )


def _report_of(night: Night, planned: Planned) -> ScoreReport:
    listing, plan = planned.listing, planned.plan
    return ScoreReport(
        results=night.results,
        found=plan.found,
        new=plan.new,
        changed=plan.changed,
        unchanged=plan.unchanged,
        planned=plan.planned,
        shards=plan.shards,
        left_out=dict(listing.left_out),
        repeated_rows=tuple(listing.repeated_rows),
        repeated=listing.repeated,
        unlistable=tuple(listing.unlistable),
        table_version=commit.table_version(night.results),
        threshold=night.config.fail_threshold,
    )


class _Job:
    """One command that holds the lease."""

    def __init__(
        self,
        night: Night,
        lease: Lease,
        connect: Callable[[], AbstractContextManager[Any]],
        show_rows: ShowRows | None,
    ) -> None:
        self._night = night
        self._lease = lease
        self._connect = connect
        self._show_rows = show_rows
        self._stack = contextlib.ExitStack()
        self._size: Any = None

    def run(self) -> ScoreReport:
        night = self._night
        with self._stack:
            commit.ensure_table(night.results)
            resumed = self._settle_interrupted()
            if resumed is not None and not night.config.continues_planning:
                report = ScoreReport(night.results, threshold=night.config.fail_threshold)
                return self._told(report, resumed, None)
            with planned_work(night) as planned:
                fresh = self._new_run(planned) if planned.plan.planned else None
                return self._told(_report_of(night, planned), resumed, fresh)

    def _told(self, report: ScoreReport, resumed: Finished | None, fresh: Finished | None) -> ScoreReport:
        finished = [run for run in (resumed, fresh) if run is not None]
        if not finished:
            return report
        last = finished[-1]
        return replace(
            report,
            run_id=last.run_id,
            resumed=resumed.run_id if resumed else None,
            counts=sum((run.counts for run in finished), RunCounts()),
            images_per_second=last.rate,
            table_version=last.table_version,
            multi_frame=sum(run.multi_frame for run in finished),
        )

    def _settle_interrupted(self) -> Finished | None:
        """Finish the interrupted run of this configuration; abandon those of others."""
        finished = None
        records = runs.list_runs(self._night.results)
        if records and records[-1].status != "running":
            # A driver that died between its last word and this leaves parts that nobody reads any more.
            RunFolder(self._night.results, records[-1].run_id).remove_parts()
        for record in records:
            if record.status != "running":
                continue
            self._lease.check()
            folder = RunFolder(self._night.results, record.run_id)
            if commit.transaction_state(self._night.results, record.run_id) == 1:
                finished = self._close_committed(folder, record)
            elif record.fingerprint != self._night.fingerprint:
                self._abandon(folder, record)
            else:
                try:
                    finished = self._finish(folder, record)
                except PlanLost:  # nothing can finish it, and its images must not wait for it
                    self._abandon(folder, record)
        return finished

    def _abandon(self, folder: RunFolder, record: RunRecord) -> None:
        if commit.abandon_run(self._night.results, record.run_id):
            folder.write_record(replace(record, status="abandoned"))
            folder.remove_parts()
        else:
            self._close_committed(folder, record)

    def _close_committed(self, folder: RunFolder, record: RunRecord) -> Finished | None:
        """A driver died between its commit and its last word: the rows are in the table, the record says so now."""
        counts = _counts_in_table(self._night.results, record.run_id)
        version = commit.table_version(self._night.results)
        closed = replace(record, status="committed", table_version=version, counts=_as_record(counts))
        folder.write_record(closed)
        folder.remove_parts()
        if record.fingerprint != self._night.fingerprint:
            return None
        return Finished(record.run_id, counts, None, version if version is not None else 0)

    def _new_run(self, planned: Planned) -> Finished:
        night = self._night
        schema = prediction_schema(night.bundle.classes, planned.listing.carried)
        commit.check_carried(night.results, schema)
        started = datetime.datetime.now(datetime.UTC)
        folder = RunFolder(night.results, runs.new_run_id())
        self._lease.check()
        files.put(str(planned.path), folder.plan)
        record = RunRecord(
            run_id=folder.run_id,
            fingerprint=night.fingerprint,
            configuration={
                **night.config.as_record(),
                "versions_from_manifest": planned.listing.versions_from_manifest,
                "model_id": night.bundle.model_id,
                "model_name": night.bundle.name,
            },
            counts={"found": planned.plan.found, "planned": planned.plan.planned, "shards": planned.plan.shards},
            timings={},
            who=dict(night.config.who),
            table_version=None,
            status="running",
            started_at=started,
            model=_described(night),
        )
        folder.write_record(record)
        return self._finish(folder, record)

    def _finish(self, folder: RunFolder, record: RunRecord) -> Finished:
        """Score the shards that have no part yet, pass the gate, commit, and say so."""
        began = time.monotonic()
        with open_plan(folder) as plan:
            context = self._context(record, plan)
            tally, version, gate = self._score_and_commit(folder, plan, context)
        timings = {
            **record.timings,
            "images_per_second": tally.steady_rate if tally else None,
            "seconds": time.monotonic() - began,
        }
        closed = replace(
            record,
            status="committed",
            table_version=version,
            counts={**record.counts, **_as_record(gate.counts)},
            timings=timings,
        )
        # The rows are in the table: what fails from here on is repaired by the next command and must not hide them.
        with contextlib.suppress(TryLater):
            folder.write_record(closed)
            folder.remove_parts()
        return Finished(record.run_id, gate.counts, tally.steady_rate if tally else None, version, gate.multi_frame)

    def _score_and_commit(
        self, folder: RunFolder, plan: PlanFile, context: RowContext
    ) -> tuple[Tally | None, int, Gate]:
        tally: Tally | None = None
        last = PartMissing("No part was ever complete.")
        for _ in range(GATE_ROUNDS):
            missing = parts.missing_shards(folder, plan)
            if missing:
                tally = self._score_shards(folder, plan, missing, context)
            self._night.tell(ScoreProgress("committing", plan.images, plan.images))
            gate = Gate(folder, plan, context.schema)
            try:
                for _ in gate:  # all parts are looked at before the table sees a row: a broken append leaves files
                    pass
                version = commit.commit_run(
                    self._night.results, folder.run_id, context.schema, gate, before_append=self._lease.check
                )
            except PartMissing as damage:
                last = damage
                for shard in gate.damaged:
                    files.delete(folder.part(shard))
                continue
            return tally, version, gate
        raise last

    def _score_shards(self, folder: RunFolder, plan: PlanFile, missing: list[int], context: RowContext) -> Tally:
        night = self._night
        model, io = night.bundle.scorer(night.config.precision)
        self_test(night.bundle, Scorer(model, io), night.config.precision)
        night.tell(ScoreProgress("starting", 0, plan.images))
        if self._size is None:
            self._size = self._stack.enter_context(self._connect())
        from pipelines.scoring import graph  # only now: a run that finds nothing new never loads Ray

        least, most = night.config.pool.within(self._size.cpus)
        work = ShardWork(
            folder=folder,
            session=self._lease.number,
            input_size=night.bundle.input_size,
            make_kernel=ScoreKernel(io),
            make_rows=PredictionMaker(context),
        )
        done = plan.images - plan.images_of(missing)
        # On this machine no more actors can run than there are cores; a joined cluster may grow.
        actors = min(most, self._size.cpus) if self._size.local else most
        tally = Tally(plan.images, done, min(actors, len(missing)))

        def on_receipt(receipt: Receipt) -> None:
            if self._lease.lost.is_set():
                self._lease.check()
            if tally.add(receipt):
                night.tell(tally.progress())
                if self._show_rows and (rows := parts.read_part(folder, receipt.shard)) is not None:
                    self._show_rows(rows)

        night.tell(tally.progress())
        with _stoppable(tally):
            graph.score_shards(work, model, missing, plan, graph.Pool(least, most), on_receipt)
        return tally

    def _context(self, record: RunRecord, plan: PlanFile) -> RowContext:
        bundle = self._night.bundle
        return RowContext(
            run_id=record.run_id,
            scored_date=record.started_at.date(),
            bundle=bundle,
            precision=self._night.config.precision,
            training_hashes=bundle.training_hashes(),
            versions_from_manifest=bool(record.configuration["versions_from_manifest"]),
            schema=prediction_schema(bundle.classes, plan.carried),
        )


@contextlib.contextmanager
def _stoppable(tally: Tally) -> Iterator[None]:
    """Ctrl-C ends the scoring with a word on what is kept."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        progress = tally.progress()
        raise Stopped(
            f"Stopped with {progress.done} of {progress.total} images scored and kept.",
            "The same command goes on from there.",
        ) from interrupt


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


def _as_record(counts: RunCounts) -> dict[str, Any]:
    return {"scored": counts.scored, "failed": counts.failed, "failed_by_code": dict(counts.failed_by_code)}
