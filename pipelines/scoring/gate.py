"""The gate before the commit: rows in parts = images in the plan, image by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import TryLater
from pipelines.predictions.runs import RunFolder
from pipelines.scoring.parts import PlanFile, read_part
from pipelines.scoring.report import RunCounts

PART_READERS = 8


class PartMissing(TryLater):
    """A shard's part is missing or does not hold the plan's images: the shard must be scored again.

    Args:
        message: What is wrong.
        cure: What to do.
        shard: Its number.
    """

    code = "part_missing"

    def __init__(self, message: str, cure: str = "", shard: int = -1) -> None:
        super().__init__(message, cure)
        self.shard = shard


class Gate:
    """The rows of all parts in the plan's order, each shard's images compared with the plan, one by one.

    What is yielded is what was compared: a part that a dying actor writes late changes nothing.

    Args:
        folder: The run.
        plan: Its plan.
        schema: The table's schema for this run.

    Attributes:
        missing: Why the gate did not open; None while it is open.
        complete: True once every row has passed.
        multi_frame: Rows so far whose file holds further frames.
    """

    def __init__(self, folder: RunFolder, plan: PlanFile, schema: pa.Schema) -> None:
        self._folder = folder
        self._plan = plan
        self._schema = schema
        self._rows = 0
        self._failed: Counter[str] = Counter()
        self.missing: PartMissing | None = None
        self.complete = False
        self.multi_frame = 0

    @property
    def counts(self) -> RunCounts:
        """Rows that have passed so far."""
        return RunCounts(self._rows - self._failed.total(), dict(self._failed))

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Record batches of the schema; each pass reads, compares and counts anew.

        Raises:
            PartMissing: At the first shard whose part is missing, broken, or differs from the plan.
        """
        self._rows, self.multi_frame, self.complete = 0, 0, False
        self._failed.clear()
        try:
            with ThreadPoolExecutor(PART_READERS, thread_name_prefix="part") as pool:
                for group in range(len(self._plan.groups)):
                    for rows in self._verified_group(pool, self._plan.read_group(group)):
                        self._count(rows)
                        yield from rows.to_batches()
        except PartMissing as missing:
            self.missing = missing
            raise
        self.complete = True

    def _verified_group(self, pool: ThreadPoolExecutor, images: dict[int, pa.Table]) -> list[pa.Table]:
        tables = pool.map(lambda shard: read_part(self._folder, shard), images)
        return [self._verified(shard, images[shard], rows) for shard, rows in zip(images, tables, strict=True)]

    def _verified(self, shard: int, images: pa.Table, rows: pa.Table | None) -> pa.Table:
        if rows is None:
            raise PartMissing(f"Shard {shard} has no readable part.", shard=shard)
        if rows.schema != self._schema:
            raise PartMissing(f"The part of shard {shard} has other columns than the run.", shard=shard)
        if not rows.column("image_uri").combine_chunks().equals(images.column("image_uri").combine_chunks()):
            raise PartMissing(f"The part of shard {shard} does not hold the images of the plan.", shard=shard)
        return rows

    def _count(self, rows: pa.Table) -> None:
        self._rows += rows.num_rows
        self._failed.update(code for code in rows.column("error_code").to_pylist() if code is not None)
        self.multi_frame += pc.sum(pc.greater(rows.column("frames"), 1)).as_py() or 0
