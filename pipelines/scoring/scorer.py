"""What one actor does with one shard: read, check, decode, score, write the part, answer with a receipt.

Everything here is a plain function or a plain class on Arrow tables and NumPy arrays and runs without Ray.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.archive.plan_writing import PREVIOUS
from pipelines.errors import ImageFailure
from pipelines.images.child import DecodeChild
from pipelines.images.fingerprint import difference_hash
from pipelines.images.preprocess import Prepared, Preprocessing
from pipelines.models.runtime import Scorer, ScorerIO
from pipelines.predictions.runs import RunFolder
from pipelines.scoring import parts
from pipelines.scoring.ahead import READ_THREADS, ReadAhead
from pipelines.scoring.kernels import Kernel, KnownBlob, fulfilled, score_image
from pipelines.scoring.patience import patiently
from pipelines.scoring.rows import Outcome, RowContext, feature_rows, prediction_rows
from pipelines.scoring.stages import StageClock
from pipelines.scoring.vanished import (
    PATIENCE_SECONDS,
    STORAGE_SIDE,
    ArchiveLost,
    ArchiveWatch,
    is_storage_side,
)
from pipelines.scoring.witnesses import witnesses
from pipelines.storage import files
from pipelines.storage.reading import Blob, ImageReader
from pipelines.storage.throttle import Throttle

LARGEST_FILE = 512 * 1024 * 1024
# The largest picture that the limits allow takes a few seconds; what takes longer hangs.
DECODE_SECONDS = 30.0
# From the second attempt on images are decoded in a child process; after the last one the shard becomes rows.
ATTEMPTS = 4
# Of each shard; the driver keeps the slowest of all.
SLOWEST_OF_SHARD = 3


Answer = TypeVar("Answer")


class KernelMaker(Protocol):
    """Makes, in the actor, what turns one prepared image into its answer."""

    def __call__(self, model: bytes) -> Kernel:
        """Load the model; the answer, or what it promises, is what `RowMaker` takes."""


@dataclass(frozen=True)
class ScoreKernel:
    """Answers what the model answers to the pixels, float32 `[K]`; `io` is how it is fed and read."""

    io: ScorerIO

    def __call__(self, model: bytes) -> Kernel:
        """Load the model."""
        scorer = Scorer(model, self.io)
        return lambda prepared: scorer(prepared.pixels)


class RowMaker(Protocol):
    """Turns a shard's images and outcomes into the rows of its part."""

    def __call__(self, images: pa.Table, outcomes: list[Outcome]) -> pa.Table:
        """Rows in the order of `images`."""


@dataclass(frozen=True)
class PredictionMaker:
    """Makes rows of the predictions table."""

    context: RowContext

    def __call__(self, images: pa.Table, outcomes: list[Outcome]) -> pa.Table:
        """Rows of `context.schema`."""
        return prediction_rows(images, outcomes, self.context)


@dataclass(frozen=True)
class FeatureMaker:
    """Makes rows of features for training; `width` is the length of one image's features in bytes."""

    width: int

    def __call__(self, images: pa.Table, outcomes: list[Outcome]) -> pa.Table:
        """Rows as `feature_rows` describes them."""
        hashes = [difference_hash(o.prepared.pixels) if o.prepared else None for o in outcomes]
        return feature_rows(images, outcomes, hashes, self.width)


@dataclass(frozen=True)
class Receipt:
    """What the driver learns of a finished shard; no pixel and no path crosses the object store.

    Attributes:
        shard: Its number in the plan.
        images: Rows in its part.
        failed: Failed images by error code.
        seconds: From the first read to the written part, on the actor's clock.
        actor: Which actor answered.
        storage_failed: Failed images whose reason lies in storage: when the archive is lost, its absence may be it.
        stages: `seconds` by stage, as `StageClock` gives them; {} from an actor that does not take them.
        slowest: Seconds and row within the shard of its slowest images, the slowest first.
        stood_in: Images that the actor answered itself, because no GPU was there to do so.
    """

    shard: int
    images: int
    failed: dict[str, int]
    seconds: float
    actor: str
    storage_failed: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    slowest: list[tuple[float, int]] = field(default_factory=list)
    stood_in: int = 0


@dataclass(frozen=True)
class ShardWork:
    """All that an actor must know to turn shards into parts.

    Attributes:
        folder: The run's folder; owns every path.
        session: Which driver this is (the lease's number): attempts are counted for each driver on its own.
        input_size: Side of the model's input in pixels.
        make_kernel: From the model's bytes to what answers for an image.
        make_rows: From outcomes to the part's rows.
        root: The archive, to be asked whether it is still there; None where the images have no place in common.
        listed: Whether the plan's versions were seen in storage, so that an image that is not found is missed.
        patience_seconds: How long an archive that went away is waited for.
        may_close: Whether the driver may end the run early, by the file `RunFolder.closing`.
        requests_per_second: How many requests for images an actor may send; None: as many as it needs.
    """

    folder: RunFolder
    session: int
    input_size: int
    make_kernel: KernelMaker
    make_rows: RowMaker
    root: str | None = None
    listed: bool = True
    patience_seconds: float = PATIENCE_SECONDS
    may_close: bool = False
    requests_per_second: float | None = None


@dataclass(frozen=True)
class PlannedImage:
    """A row of the plan.

    Attributes:
        uri: The image.
        version: Its version when the plan was made; "" where it was not there.
        known: SHA-256 of the bytes that the table has an answer for, 64 hexadecimal digits; None where an old answer
            would not do.
    """

    uri: str
    version: str
    known: str | None


@contextlib.contextmanager
def deadly_alarm(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer: the kernel's own alarm, which no hanging library can hold up."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class ShardScorer:
    """Reads, decodes, scores and writes whole shards, one after the other, in one thread.

    Args:
        work: What to do.
        model: Bytes of the LiteRT model; empty where there is none.
        sleep: Instead of the real one, while storage is waited for.
    """

    def __init__(self, work: ShardWork, model: bytes, sleep: Callable[[float], None] = time.sleep) -> None:
        self._work = work
        self._sleep = sleep
        rate = work.requests_per_second
        self._reader = ImageReader(LARGEST_FILE, Throttle(rate) if rate else None, sleep)
        self._watch = ArchiveWatch(
            work.root,
            work.listed,
            work.patience_seconds,
            self._is_readable,
            lambda: witnesses(work.folder, work.root),
            sleep,
        )
        self._ahead = ReadAhead(self._read, ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read"))
        self._prepare = Preprocessing(work.input_size).prepare
        self._clock = StageClock()
        self._kernel = self._clock.timed("score", work.make_kernel(model))
        self._following: list[PlannedImage] = []

    def score(
        self,
        shard: int,
        images: pa.Table,
        suspect: bool = False,
        actor: str = "",
        following: pa.Table | None = None,
    ) -> Receipt:
        """Turn one shard into its part.

        Args:
            shard: The shard's number.
            images: Its rows of the plan.
            suspect: Whether an earlier driver began this shard and did not finish it.
            actor: Name of this actor for the receipt.
            following: The images of the shard that will be scored next, so that reading them may begin.

        Raises:
            ArchiveLost: If the archive went away and did not come back; parts that hold its absence are removed.
            NightreadError: If the part cannot be written.
        """
        self._clock.begin()
        folder = self._work.folder
        attempt = self._patiently(lambda: parts.next_attempt(folder, shard, self._work.session))
        if attempt > 1 and (rows := parts.read_part(folder, shard)) is not None:
            # Ray repeats a whole block when its actor dies; what was finished before stays as it is.
            return self._receipt(shard, rows, actor)
        self._following = [] if following is None else _planned(following)
        if attempt > ATTEMPTS:
            outcomes = self._given_up(images)
        elif suspect or attempt > 1:
            outcomes = self._outcomes_in_child(images)
        else:
            outcomes = self._outcomes(images, self._prepare_here)
        return self._receipt(shard, self._write(shard, images, outcomes), actor, outcomes)

    def _receipt(self, shard: int, rows: pa.Table, actor: str, outcomes: Sequence[Outcome] = ()) -> Receipt:
        failed = Counter(code for code in rows.column("error_code").to_pylist() if code is not None)
        storage_failed = sum(count for code, count in failed.items() if code in STORAGE_SIDE)
        slowest = heapq.nlargest(SLOWEST_OF_SHARD, ((outcome.seconds, row) for row, outcome in enumerate(outcomes)))
        stages = self._clock.seconds()
        total, stood_in = sum(stages.values()), sum(outcome.stood_in for outcome in outcomes)
        return Receipt(shard, rows.num_rows, dict(failed), total, actor, storage_failed, stages, slowest, stood_in)

    def _write(self, shard: int, images: pa.Table, outcomes: list[Outcome]) -> pa.Table:
        self._clock.turn_to("write")
        rows = self._work.make_rows(images, outcomes)
        self._patiently(lambda: parts.write_part(self._work.folder, shard, rows))
        self._watch.wrote(shard, images)
        return rows

    def _patiently(self, action: Callable[[], Answer]) -> Answer:
        return patiently(action, self._work.patience_seconds, self._sleep)

    def _prepare_here(self, data: bytes) -> Prepared:
        with deadly_alarm(DECODE_SECONDS):
            return self._prepare(data)

    def _outcomes(self, images: pa.Table, prepare: Callable[[bytes], Prepared]) -> list[Outcome]:
        """What became of each image, those that failed while the archive was away read again."""
        planned = _planned(images)
        outcomes: dict[int, Outcome] = {}
        rest = list(range(len(planned)))
        while rest:
            if not self._score_some(planned, rest, prepare, outcomes):
                break
            self._wait_for_archive()
            rest = [i for i in range(len(planned)) if i not in outcomes or is_storage_side(outcomes[i].failure)]
        self._clock.turn_to("score")
        return [fulfilled(outcomes[i]) for i in range(len(planned))]

    def _score_some(
        self,
        planned: list[PlannedImage],
        rest: list[int],
        prepare: Callable[[bytes], Prepared],
        outcomes: dict[int, Outcome],
    ) -> bool:
        """Score these images of a shard; True where that was given up because the archive seems to be gone.

        To ask whether it is there is to read: only what waits for it to come back waits.
        """
        blobs = self._ahead.blobs([planned[i] for i in rest], self._following)
        prepare = self._clock.timed("decode", prepare)
        began = self._clock.turn_to("read")
        for i, blob in zip(rest, blobs, strict=True):
            outcome = score_image(blob, prepare, self._kernel)
            outcomes[i] = replace(outcome, seconds=self._clock.turn_to("read") - began)
            if self._watch.saw(planned[i].uri, planned[i].version, outcome.failure):
                return True
            began = self._clock.turn_to("read")
        return self._watch.seems_gone()

    def _read(self, image: PlannedImage) -> Blob:
        blob = self._reader.read(image.uri)
        if image.known is not None and hashlib.sha256(blob.data).hexdigest() == image.known:
            return KnownBlob(blob.data, blob.version)
        return blob

    def _is_readable(self, uri: str) -> bool:
        try:
            self._reader.read(uri)
        except ImageFailure as failure:
            return not is_storage_side(failure)
        return True

    def _wait_for_archive(self) -> None:
        """Wait; then score again what was written while the archive may have been away already."""
        folder = self._work.folder
        self._ahead.forget()
        self._clock.turn_to("wait")
        try:
            self._watch.wait()
        except ArchiveLost:
            for shard in self._watch.doubtful:
                files.delete(folder.part(shard))
            raise
        doubtful = dict(self._watch.doubtful)
        self._watch.doubtful.clear()
        for shard in doubtful:
            files.delete(folder.part(shard))
        for shard, images in doubtful.items():
            self._write(shard, images, self._outcomes(images, self._prepare_here))

    def _outcomes_in_child(self, images: pa.Table) -> list[Outcome]:
        child = DecodeChild(self._work.input_size, DECODE_SECONDS)
        try:
            return self._outcomes(images, child.prepare)
        finally:
            child.close()

    def _given_up(self, images: pa.Table) -> list[Outcome]:
        message = f"The worker died {ATTEMPTS} times on the shard of this image; the next run tries it again."
        return [Outcome("", failure=ImageFailure("worker_lost", message)) for _ in range(images.num_rows)]


def _planned(images: pa.Table) -> list[PlannedImage]:
    rows = images.num_rows
    known = [None] * rows
    if PREVIOUS in images.column_names:
        known = pc.struct_field(images.column(PREVIOUS), "content_sha256").to_pylist()
    uris, versions = images.column("image_uri").to_pylist(), images.column("image_version").to_pylist()
    return [PlannedImage(*values) for values in zip(uris, versions, known, strict=True)]
