"""One run to its end: score the shards that have no part yet, cut the run if its time is over, gate, commit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipelines.errors import Stopped, TryLater
from pipelines.models.golden import self_test
from pipelines.models.runtime import Scorer
from pipelines.predictions import commit
from pipelines.predictions.runs import RunFolder, RunRecord
from pipelines.predictions.schema import prediction_schema
from pipelines.scoring import parts
from pipelines.scoring.engines import Engine, open_engine
from pipelines.scoring.gate import Gate, PartMissing
from pipelines.scoring.hours import Closing
from pipelines.scoring.night import Night, Tell
from pipelines.scoring.parts import PlanFile, open_plan
from pipelines.scoring.progress import ProgressFile
from pipelines.scoring.report import NO_ROWS, RunCounts, ScoreProgress, Tally
from pipelines.scoring.rows import RowContext
from pipelines.scoring.scorer import PredictionMaker, Receipt, ShardWork
from pipelines.scoring.silence import Silence, of_storage
from pipelines.scoring.staging import abandon
from pipelines.scoring.timings import Timings
from pipelines.scoring.vanished import STORAGE_SIDE, ArchiveLost
from pipelines.scoring.worker_check import check_nodes
from pipelines.storage import files
from pipelines.storage.leases import Lease

GATE_ROUNDS = 3
ShowRows = Callable[[pa.Table], None]
Connect = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Finished:
    """What became of a run.

    Attributes:
        run_id: The run.
        counts: Its rows.
        rate: Steady rate; None where there is none.
        table_version: The table's version that holds it; None where not one shard was finished.
        multi_frame: Images of which only the first frame was scored.
        kept: Images that kept their old answer, because their bytes are the old ones.
        remaining: Images of its plan that were left to a later run.
        engine: What scored it in this command; {} where nothing was left to score.
        lost: Why it ended early, where the archive went away.
    """

    run_id: str
    counts: RunCounts = NO_ROWS
    rate: float | None = None
    table_version: int | None = None
    multi_frame: int = 0
    kept: int = 0
    remaining: int = 0
    lost: ArchiveLost | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)


class Finisher:
    """Finishes the runs of one command that holds the lease; Ray is started for the first that needs it.

    Args:
        night: The command.
        lease: The right to write.
        connect: Starts or joins Ray for a `with` block and yields its size.
        closing: When the night has to end.
        show_rows: Called with the rows of each finished part; None: parts are not read back.
    """

    def __init__(
        self, night: Night, lease: Lease, connect: Connect, closing: Closing, show_rows: ShowRows | None
    ) -> None:
        self._night = night
        self._lease = lease
        self._connect = connect
        self._closing = closing
        self._show_rows = show_rows
        self._stack = contextlib.ExitStack()
        self._engine: Engine | None = None

    def __enter__(self) -> Finisher:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def finish(self, folder: RunFolder, record: RunRecord) -> Finished:
        """Score what is missing and commit what is finished; the record says so.

        Args:
            folder: The run.
            record: What its record says so far.

        Raises:
            PlanLost: If its plan is gone.
            PartMissing: If its parts are damaged again and again.
            TryLater, UsageError, LeaseLost: Each with its cure.
        """
        account = _Account(record.run_id, Timings(), ProgressFile(folder), self._night.tell)
        files.delete(folder.closing)  # a driver that was killed while it closed the run left it
        rate, lost = None, None
        for left in reversed(range(GATE_ROUNDS)):
            tally, lost = self._score_or_cut(folder, record, lost, account)
            rate = tally.steady_rate if tally else rate
            with open_plan(folder) as plan:
                remaining = plan.whole - plan.images
                if not plan.kept:
                    self._lease.check()
                    counts = abandon(folder, record, self._lease) or NO_ROWS
                    return Finished(record.run_id, counts, remaining=remaining, lost=lost)
                try:
                    account.tell(ScoreProgress("committing", plan.images, plan.images))
                    with account.timings.phase("committing"):
                        version, gate = self._commit(folder, record, plan)
                    break
                except PartMissing:
                    if not left:
                        raise
        closed = replace(
            record,
            status="committed",
            table_version=version,
            counts={**record.counts, **gate.counts.as_record(), "kept": gate.kept, "remaining": remaining},
            timings={**account.timings.as_record(record.timings), "images_per_second": rate, **account.engine_record()},
        )
        # The rows are in the table: what fails from here on is repaired by the next command and must not hide them.
        with contextlib.suppress(TryLater):
            folder.write_record(closed)
            folder.remove_parts()
        return Finished(
            record.run_id, gate.counts, rate, version, gate.multi_frame, gate.kept, remaining, lost, account.engine
        )

    def _score_or_cut(
        self, folder: RunFolder, record: RunRecord, lost: ArchiveLost | None, account: _Account
    ) -> tuple[Tally | None, ArchiveLost | None]:
        """Score what has no part; where that had to end early, cut the run to what is finished and sound."""
        tally = None
        with open_plan(folder) as plan:
            missing = parts.missing_shards(folder, plan)
            account.timings.found_finished(plan.images - plan.images_of(missing))
            if missing and lost is None and not self._closing.over:
                session = _Session(folder)
                try:
                    tally = self._score_shards(folder, record, plan, missing, session, account)
                except ArchiveLost as error:
                    lost = error
                    session.drop_doubtful_parts()
                missing = parts.missing_shards(folder, plan)
            if missing and (lost is not None or self._closing.over):
                self._lease.check()
                folder.write_cut(set(plan.kept).difference(missing))
        return tally, lost

    def _commit(self, folder: RunFolder, record: RunRecord, plan: PlanFile) -> tuple[int, Gate]:
        """Pass the gate and commit; parts that do not pass are deleted, to be scored again.

        Raises:
            PartMissing: If a part does not pass.
        """
        schema = self._context(record, plan).schema
        gate = Gate(folder, plan, schema)
        try:
            for _ in gate:  # all parts are looked at before the table sees a row: a broken append leaves files
                pass
            version = commit.commit_run(
                self._night.results, folder.run_id, schema, gate, before_append=self._lease.check, lease=self._lease
            )
        except PartMissing:
            for shard in gate.damaged:
                files.delete(folder.part(shard))
            raise
        return version, gate

    def _score_shards(
        self,
        folder: RunFolder,
        record: RunRecord,
        plan: PlanFile,
        missing: list[int],
        session: _Session,
        account: _Account,
    ) -> Tally:
        night = self._night
        config, bundle = night.config, night.bundle
        model, io = bundle.scorer(config.precision)
        self_test(bundle, Scorer(model, io), config.precision)
        done = plan.images - plan.images_of(missing)
        account.tell(ScoreProgress("starting", done, plan.images))
        with account.timings.phase("starting"):
            if self._engine is None:
                size = self._stack.enter_context(self._connect())
                if not size.local:
                    check_nodes(night, folder.root, model, io)
                self._engine = self._stack.enter_context(open_engine(config, bundle, size))
            engine = self._engine
        from pipelines.scoring import graph  # only now: a run that finds nothing new never loads Ray

        account.begin(engine)
        actors, rate = engine.at_once, config.requests_per_second
        work = ShardWork(
            folder=folder,
            session=self._lease.number,
            input_size=bundle.input_size,
            make_kernel=engine.kernel,
            make_rows=PredictionMaker(self._context(record, plan)),
            root=night.root,
            listed=not record.configuration["versions_from_manifest"],
            may_close=self._closing.limited,
            patience_seconds=config.patience_seconds,
            requests_per_second=None if rate is None else rate / actors,
        )
        tally = Tally(plan.images, done, min(actors, len(missing)))

        def on_receipt(receipt: Receipt) -> None:
            if self._lease.lost.is_set():
                self._lease.check()
            quiet.broken()
            session.add(receipt)
            if tally.add(receipt):
                account.add(receipt)
                account.tell(tally.progress())
                if self._show_rows and (rows := parts.read_part(folder, receipt.shard)) is not None:
                    self._show_rows(rows)

        def close() -> None:
            self._lease.check()
            files.write_atomic(folder.closing, b"")

        def tell_silence(note: str) -> None:
            account.tell(replace(tally.progress(), note=note))

        quiet = Silence(tell_silence, lambda: of_storage(night.root, night.results) or graph.of_cluster())
        account.tell(tally.progress())
        account.timings.begin_scoring(actors, graph.this_node())
        with account.timings.phase("scoring"), _stoppable(tally), self._closing.announced(close), quiet.watched():
            pool = graph.Pool(engine.least, engine.most, engine.cores)
            graph.score_shards(work, model, missing, plan, pool, on_receipt)
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


@dataclass(frozen=True)
class _Account:
    """What is told of one run: where it stands while it goes on, and of its time when it is over."""

    run_id: str
    timings: Timings
    progress: ProgressFile
    show: Tell
    engine: dict[str, Any] = field(default_factory=dict)

    def begin(self, engine: Engine) -> None:
        """Take note of what scores; what the run's record knew of an earlier command's engine is replaced by it."""
        if not self.engine:
            self.engine.update(engine.facts)

    def add(self, receipt: Receipt) -> None:
        """Count a receipt."""
        self.timings.add(receipt)
        if receipt.stood_in:
            self.engine["stood_in"] = self.engine.get("stood_in", 0) + receipt.stood_in

    def engine_record(self) -> dict[str, Any]:
        """What the run's record says of what scored it: nothing where nothing was left to score."""
        return {"engine": self.engine} if self.engine else {}

    def tell(self, progress: ScoreProgress) -> None:
        """Tell the person who waits, and other hosts."""
        self.show(replace(progress, run_id=self.run_id))
        self.progress.tell(progress)


class _Session:
    """The parts that one driver saw, or did not see, being written: which of them to doubt when the archive is lost."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._before = folder.finished_shards()
        self._sound: set[int] = set()

    def add(self, receipt: Receipt) -> None:
        """Take note of a finished shard."""
        if not receipt.storage_failed:
            self._sound.add(receipt.shard)

    def drop_doubtful_parts(self) -> None:
        """Delete this session's parts that hold a failure of storage; those of which nobody has told are read."""
        for shard in sorted(self._folder.finished_shards() - self._before - self._sound):
            rows = parts.read_part(self._folder, shard)
            if rows is None or not STORAGE_SIDE.isdisjoint(rows.column("error_code").to_pylist()):
                files.delete(self._folder.part(shard))


@contextlib.contextmanager
def _stoppable(tally: Tally) -> Iterator[None]:
    """Ctrl-C ends the scoring with a word on what is kept."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        progress = tally.progress()
        raise Stopped(
            f"Stopped with {progress.done:,} of {progress.total:,} images scored and kept.",
            "The same command goes on from there.",
        ) from interrupt
