"""The gate before the commit: rows in parts = images in the plan, image by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.archive.plan_writing import PREVIOUS
from pipelines.errors import TryLater
from pipelines.predictions.runs import RunFolder
from pipelines.scoring.parts import PlanFile, read_part
from pipelines.scoring.report import RunCounts

PART_READERS = 8


class PartMissing(TryLater):
    """Parts are missing or do not hold the plan's images: their shards must be scored again."""

    code = "part_missing"


class Gate:
    """The rows of all parts in the plan's order, each shard's images compared with the plan, one by one.

    What is yielded is what was compared: a part that a dying actor writes late changes nothing.

    Args:
        folder: The run.
        plan: Its plan.
        schema: The table's schema for this run.

    Attributes:
        damaged: Shards whose part is missing, broken, or differs from the plan; the gate is open while there is none.
        complete: True once every row has passed.
        multi_frame: Rows so far whose file holds further frames.
        kept: Rows so far that are an old answer, because the bytes are the old ones.
    """

    def __init__(self, folder: RunFolder, plan: PlanFile, schema: pa.Schema) -> None:
        self._folder = folder
        self._plan = plan
        self._schema = schema
        self._rows = 0
        self._failed: Counter[str] = Counter()
        self.damaged: list[int] = []
        self.complete = False
        self.multi_frame = 0
        self.kept = 0

    @property
    def counts(self) -> RunCounts:
        """Rows that have passed so far."""
        return RunCounts(self._rows - self._failed.total(), dict(self._failed))

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Record batches of the schema; each pass reads, compares and counts anew.

        Raises:
            PartMissing: At the end, if `damaged` names a shard; nothing is yielded behind the first of them.
        """
        self._rows, self.multi_frame, self.kept, self.complete = 0, 0, 0, False
        self._failed.clear()
        self.damaged.clear()
        with ThreadPoolExecutor(PART_READERS, thread_name_prefix="part") as pool:
            for group in range(len(self._plan.groups)):
                images = self._plan.read_group(group)
                tables = pool.map(lambda shard: read_part(self._folder, shard), images)
                for shard, rows in zip(images, tables, strict=True):
                    if rows is None or not self._holds(rows, images[shard]):
                        self.damaged.append(shard)
                    elif not self.damaged:
                        self._count(rows, images[shard])
                        yield from rows.to_batches()
        if self.damaged:
            raise PartMissing(
                f"The parts of {len(self.damaged)} shards of run {self._folder.run_id} are damaged again and again.",
                "Check the disk of the results folder, and that all nodes of the cluster see the same one.",
            )
        self.complete = True

    def _holds(self, rows: pa.Table, images: pa.Table) -> bool:
        """Whether a part has the run's columns and the plan's images, one by one and in order."""
        same = rows.column("image_uri").combine_chunks() if rows.schema == self._schema else None
        return same is not None and same.equals(images.column("image_uri").combine_chunks())

    def _count(self, rows: pa.Table, images: pa.Table) -> None:
        self._rows += rows.num_rows
        self._failed.update(code for code in rows.column("error_code").to_pylist() if code is not None)
        self.multi_frame += pc.sum(pc.greater(rows.column("frames"), 1)).as_py() or 0
        if PREVIOUS in images.column_names:
            known = pc.struct_field(images.column(PREVIOUS), "content_sha256")
            self.kept += pc.sum(pc.equal(known, rows.column("content_sha256"))).as_py() or 0
