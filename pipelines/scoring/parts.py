"""A run on disk while it runs: its plan read in pieces, its attempts marked, its parts written whole."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.archive.plan_writing import PREVIOUS
from pipelines.errors import NightreadError, NoAnswer
from pipelines.predictions.runs import RunFolder
from pipelines.storage import files, paths

ASK_SECONDS = 1.0


def next_attempt(folder: RunFolder, shard: int, session: int) -> int:
    """Leave a marker of this attempt at a shard and say which one it is: 1 for this driver's first.

    A marker outlives the process that left it, so that a shard that kills its worker is met with care the next time.
    Attempts are counted for each driver on its own: a night that is killed five times blames no image.
    """
    attempt = 1
    whose = f"{os.getpid()} {secrets.token_hex(8)}".encode()
    while not files.create_exclusive(folder.marker(shard, session, attempt), whose):
        attempt += 1
    return attempt


def write_part(folder: RunFolder, shard: int, rows: pa.Table) -> None:
    """Write a shard's rows, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd", use_dictionary=False, write_statistics=False)
    files.write_atomic(folder.part(shard), buffer.getvalue())


def read_part(folder: RunFolder, shard: int) -> pa.Table | None:
    """A shard's rows, or None where the part is missing or is no Parquet file."""
    try:
        return pq.read_table(io.BytesIO(files.read_bytes(folder.part(shard))))
    except (FileNotFoundError, pa.ArrowInvalid):
        return None


class ClosingFile:
    """Tells an actor whether its run starts no further shard (`RunFolder.closing`).

    Args:
        folder: The run.
        clock: Monotonic seconds.
    """

    def __init__(self, folder: RunFolder, clock: Callable[[], float] = time.monotonic) -> None:
        self._place = folder.closing
        self._clock = clock
        # A request for each shard of quick images would be a second one for every few images.
        self._pause = 0.0 if paths.is_local(folder.closing) else ASK_SECONDS
        self._next = clock()
        self._seen = False

    def __call__(self) -> bool:
        """Whether it is said; in a bucket asked once a second at most."""
        if not self._seen and self._clock() >= self._next:
            self._next = self._clock() + self._pause
            with contextlib.suppress(FileNotFoundError, NoAnswer):
                files.size(self._place)
                self._seen = True
        return self._seen


class PlanLost(NightreadError):
    """A run's plan is gone or damaged: the run cannot be finished, and its images are to be planned anew."""

    exit_code = 75
    code = "plan_lost"


@contextlib.contextmanager
def open_plan(folder: RunFolder) -> Iterator[PlanFile]:
    """Open a run's plan for a `with` block.

    Raises:
        PlanLost: If it is missing or no Parquet file.
        TryLater: If storage fails.
    """
    with contextlib.ExitStack() as stack:
        try:
            handle = stack.enter_context(files.open_input(folder.plan))
            plan = PlanFile(handle, folder.plan, folder.read_cut())
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise PlanLost(
                f"The plan of run {folder.run_id} is missing or damaged.",
                "Start the same command again: it plans anew.",
            ) from error
        yield plan


class PlanFile:
    """A run's plan.parquet, read one row group (16 shards) at a time.

    Args:
        handle: The file.
        place: Its name for messages.
        kept: The shards that the run was cut to; None: all of the file.

    Attributes:
        whole: Images of the file, those of shards that were cut off among them.
        shards: How many shards the file has.
        kept: The shards of the plan, in order.
        images: How many images they hold.
    """

    def __init__(self, handle: IO[bytes], place: str = "the plan", kept: Collection[int] | None = None) -> None:
        self._place = place
        with files.explaining(place):
            self._file = pq.ParquetFile(handle)
        metadata = self._file.metadata
        self.whole = metadata.num_rows
        column = self._file.schema_arrow.get_field_index("shard")
        self._bounds = [
            (stats.min, stats.max)
            for stats in (metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups))
        ]
        self.shards = self._bounds[-1][1] + 1 if self._bounds else 0
        self._only = kept
        self.kept = [shard for shard in range(self.shards) if kept is None or shard in kept]
        self.images = self.whole if kept is None else self.images_of(self.kept)

    @property
    def carried(self) -> pa.Schema:
        """The manifest's own columns that the plan carries."""
        ours = {"shard", "image_uri", "image_version", PREVIOUS}
        return pa.schema([field for field in self._file.schema_arrow if field.name not in ours])

    def images_of(self, shards: Iterable[int]) -> int:
        """How many images some shards hold together."""
        wanted = set(shards)
        total = 0
        for group, (first, last) in enumerate(self._bounds):
            if wanted.issuperset(range(first, last + 1)):
                total += self._file.metadata.row_group(group).num_rows
            elif not wanted.isdisjoint(range(first, last + 1)):
                total += sum(rows.num_rows for shard, rows in self.read_group(group).items() if shard in wanted)
        return total

    @property
    def groups(self) -> Sequence[tuple[int, int]]:
        """First and last shard of each row group."""
        return self._bounds

    def group_of(self, shard: int) -> int:
        """The row group that holds a shard."""
        return bisect_left(self._bounds, shard, key=lambda bounds: bounds[1])

    def read_group(self, group: int) -> dict[int, pa.Table]:
        """The images of each shard of the plan in a row group, without the column `shard`."""
        with files.explaining(self._place):
            table = self._file.read_row_group(group)
        numbers = table.column("shard").to_numpy()
        images = table.drop_columns(["shard"])
        first, last = self._bounds[group]
        starts = numbers.searchsorted(range(first, last + 2))
        return {
            shard: images.slice(start, stop - start)
            for shard, start, stop in zip(range(first, last + 1), starts[:-1], starts[1:], strict=True)
            if self._only is None or shard in self._only
        }


def missing_shards(folder: RunFolder, plan: PlanFile) -> list[int]:
    """Shards of the plan without a part, in order."""
    finished = folder.finished_shards()
    return [shard for shard in plan.kept if shard not in finished]


def blocks_of(shards: Iterable[int], plan: PlanFile, most: int) -> Iterator[list[int]]:
    """Group shards into blocks of at most `most`, none across two row groups of the plan.

    An actor reads the plan one row group at a time, so a block costs it one read.
    """
    pending = iter(sorted(shards))
    block: list[int] = []
    for shard in pending:
        if block and (len(block) >= most or plan.group_of(shard) != plan.group_of(block[0])):
            yield block
            block = []
        block.append(shard)
    if block:
        yield block
