"""The scoring job: finish what was interrupted, plan what is new, score it run by run, gate and commit each."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Mapping
from dataclasses import replace

from pipelines.errors import NightreadError, TryLater
from pipelines.predictions import commit, runs
from pipelines.predictions.publish import check_place, publish
from pipelines.scoring import changes
from pipelines.scoring.config import ScoreConfig
from pipelines.scoring.finish import Connect, Finished, Finisher, ShowRows
from pipelines.scoring.hours import Closing
from pipelines.scoring.night import Night, Planned, Tell, check_archive, open_night, planned_work
from pipelines.scoring.parts import PlanLost
from pipelines.scoring.report import RunCounts, ScoreProgress, ScoreReport
from pipelines.scoring.staging import Run, abandon, stage_runs, unsettled_runs
from pipelines.storage import files, paths
from pipelines.storage.leases import Lease
from pipelines.storage.preflight import Proof, prove_place


def score(config: ScoreConfig, connect: Connect, tell: Tell, show_rows: ShowRows | None = None) -> ScoreReport:
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
    closing = Closing(config.hours.seconds(datetime.datetime.now()))
    night = open_night(config, tell)
    check_archive(config)
    if config.dry_run:
        return replace(_dry_run(night), seconds=time.monotonic() - began)
    if config.publish is not None:
        check_place(night.results, config.publish)
    proof = prove_place(night.results)
    with _owned(night) as lease:
        waited = time.monotonic() - began
        lease.start_renewing()
        with Finisher(night, lease, connect, closing, show_rows) as finisher:
            report = _Command(night, lease, closing, finisher, proof).run()
    return replace(report, seconds=time.monotonic() - began, waited_seconds=waited if config.wait_seconds else 0.0)


def _owned(night: Night) -> Lease:
    wait = night.config.wait_seconds

    def on_wait(_owner: str, left: float) -> None:
        night.tell(ScoreProgress("waiting", seconds_left=left))

    if wait is None:
        return Lease.acquire(night.results)
    return Lease.acquire(night.results, wait, patient=True, on_wait=on_wait)


def _dry_run(night: Night) -> ScoreReport:
    with planned_work(night, night.config.backfill, None) as planned:
        rate = runs.last_rate(night.results)
        return replace(
            _report_of(night, planned),
            requests=_requests(night, planned),
            would_stop=changes.too_much_changed(planned.plan, changes.read_seen(night), night.config)
            or changes.was_moved(planned.plan, night.config),
            seconds_estimated=planned.plan.planned / rate if rate else None,
            dry_run=True,
        )


def _requests(night: Night, planned: Planned) -> Mapping[str, Mapping[str, int]]:
    """What buckets will be asked: one page for each thousand keys and one read an image; three or four a shard."""
    asked: dict[str, Mapping[str, int]] = {}
    if paths.is_bucket(night.root):
        asked["archive"] = {"list": planned.listing.requests, "get": planned.plan.planned}
    if paths.is_bucket(night.results):
        # A marker and a part are written; gate and commit read the part once each.
        asked["results"] = {"put": 2 * planned.plan.shards, "get": 2 * planned.plan.shards}
    return asked


def _listed(planned: Planned) -> Mapping[str, Mapping[str, int]]:
    return {"archive": {"list": planned.listing.requests}} if planned.listing.requests else {}


def _report_of(night: Night, planned: Planned) -> ScoreReport:
    listing, plan = planned.listing, planned.plan
    return ScoreReport(
        results=night.results,
        found=plan.found,
        new=plan.new,
        changed=plan.changed,
        unchanged=plan.unchanged,
        rescored_for_model=plan.rescored_for_model,
        backfilled=plan.backfilled,
        gone=plan.gone,
        known=plan.known,
        planned=plan.planned,
        shards=plan.shards,
        left_out=dict(listing.left_out),
        repeated_rows=tuple(listing.repeated_rows),
        repeated=listing.repeated,
        unmatched=listing.unmatched,
        unlistable=tuple(listing.unlistable),
        table_version=commit.table_version(night.results),
        threshold=night.config.fail_threshold,
    )


class _Command:
    """One command that holds the lease."""

    def __init__(self, night: Night, lease: Lease, closing: Closing, finisher: Finisher, proof: Proof) -> None:
        self._night = night
        self._lease = lease
        self._closing = closing
        self._finisher = finisher
        self._proof = proof
        self._finished: list[Finished] = []
        self._published: str | None = None
        self._plan_lost = False

    def run(self) -> ScoreReport:
        night = self._night
        commit.ensure_table(night.results, self._lease)
        resumed = self._settle_interrupted()
        report = ScoreReport(night.results, threshold=night.config.fail_threshold)
        # A set of runs of which one cannot be finished is no answer to a command that would plan nothing more.
        if not self._closing.over and (not resumed or night.config.continues_planning or self._plan_lost):
            report = self._plan_and_score(resumed)
        self._publish()
        return self._told(report, resumed)

    def _settle_interrupted(self) -> tuple[str, ...]:
        """Finish the interrupted runs of this configuration; the names of those that were."""
        open_runs, closed = unsettled_runs(self._night, self._lease)
        version = commit.table_version(self._night.results)
        self._finished += [Finished(run_id, counts, table_version=version) for run_id, counts in closed]
        self._finish(open_runs)
        return tuple(run.run_id for run in self._finished if run.table_version is not None)

    def _plan_and_score(self, resumed: tuple[str, ...]) -> ScoreReport:
        night = self._night
        # What an interrupted command had taken of the backlog counts as this one's.
        backfill = 0 if resumed and night.config.backfill else night.config.backfill
        kept_in = paths.join(night.results, "listings", night.fingerprint)
        with planned_work(night, backfill, kept_in if paths.is_bucket(night.root) else None) as planned:
            changes.refuse_changes(planned.plan, changes.read_seen(night), night.config)
            report = replace(_report_of(night, planned), requests=_listed(planned))
            if self._closing.over:
                return replace(report, remaining=planned.plan.planned)
            staged = stage_runs(night, planned, self._lease) if planned.plan.planned else []
            changes.write_seen(night, changes.Seen(report.gone, report.changed))
        files.delete_tree(kept_in)
        before = len(self._finished)
        self._finish(staged)
        scored = sum(run.counts.images for run in self._finished[before:])
        left = min(report.changed, max(0, report.new + report.changed - scored))
        changes.write_seen(night, changes.Seen(report.gone, left))
        return report

    def _finish(self, pending: list[Run]) -> None:
        """Bring runs to their end, one after the other.

        Raises:
            TryLater: If the archive went away: what was scored before is committed, the other runs are abandoned.
        """
        for place, (folder, record) in enumerate(pending):
            try:
                finished = self._finisher.finish(folder, record)
            except PlanLost:  # nothing can finish it, and its images must not wait for it
                abandon(folder, record, self._lease)
                self._plan_lost = True
                continue
            self._finished.append(finished)
            if finished.table_version is not None:
                with contextlib.suppress(NightreadError):  # the rest of the night does not depend on it
                    self._publish()
            if finished.lost is not None:
                for other, its_record in pending[place + 1 :]:
                    abandon(other, its_record, self._lease)
                kept = sum(run.counts.images for run in self._finished)
                raise TryLater(
                    f"{finished.lost.message} {kept:,} images that were scored before are committed; none is blamed.",
                    finished.lost.cure,
                )

    def _publish(self) -> None:
        """Write the newest scores for tools that know no Delta, unless the file there holds this version already.

        Raises:
            UsageError, TryLater: If that fails; says that the rows are committed all the same.
        """
        place = self._night.config.publish
        version = commit.table_version(self._night.results) if place is not None else None
        if place is None or version is None:
            return
        self._night.tell(ScoreProgress("publishing"))
        try:
            self._published = publish(self._night.results, place, version, check=self._lease.check).path
        except NightreadError as error:
            rows = sum(run.counts.images for run in self._finished)
            said = f"{rows:,} images are committed, but not published: {error.message}"
            raise type(error)(said, error.cure) from error

    def _told(self, report: ScoreReport, resumed: tuple[str, ...]) -> ScoreReport:
        committed = [run for run in self._finished if run.table_version is not None]
        report = replace(
            report,
            resumed=resumed[-1] if resumed else None,
            remaining=report.remaining + sum(run.remaining for run in self._finished),
            counts=sum((run.counts for run in committed), RunCounts()),
            multi_frame=sum(run.multi_frame for run in committed),
            kept=sum(run.kept for run in committed),
            engine=next((run.engine for run in reversed(committed) if run.engine), None),
            published=self._published,
            by_rename=not self._proof.hard_links,
        )
        if not committed:
            return report
        last = committed[-1]
        return replace(
            report,
            run_id=last.run_id,
            runs=tuple(run.run_id for run in committed),
            images_per_second=_overall_rate(committed),
            table_version=last.table_version,
        )


def _overall_rate(committed: list[Finished]) -> float | None:
    """The steady rate of all runs that have one, each weighed with the time that its images took."""
    rated = [(run.counts.images, run.rate) for run in committed if run.rate]
    seconds = sum(images / rate for images, rate in rated)
    return sum(images for images, _ in rated) / seconds if seconds else None
