"""Features are scores of a headless model: the same actors, the same kernel, another kind of row."""

from __future__ import annotations

import datetime
import hashlib
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import IMAGE_ERRORS
from pipelines.models.runtime import ScorerIO
from pipelines.predictions.runs import RunFolder
from pipelines.scoring import parts
from pipelines.scoring.config import SHARDS_PER_GROUP, PoolSize
from pipelines.scoring.gate import PartMissing
from pipelines.scoring.parts import PlanFile
from pipelines.scoring.report import ScoreProgress, Tally
from pipelines.scoring.scorer import FeatureMaker, Receipt, ShardWork
from pipelines.storage import files

SHARD_SIZE = 32


@dataclass(frozen=True)
class CacheModel:
    """What training keeps of an image.

    Attributes:
        model: LiteRT bytes, uint8 `[1, S, S, 3]` to float32 `[1, size]`; None where the pixels themselves are kept.
        io: How that is fed and read; None for pixels.
        size: D, or S*S*3 for pixels.
        dtype: What is kept of each number: `float32`, `float16`, or `uint8` for pixels.
    """

    model: bytes | None
    io: ScorerIO | None
    size: int
    dtype: str


def compute_features(
    images: pa.Table,
    feature_model: bytes,
    io: ScorerIO,
    size: int,
    input_size: int,
    work_folder: str,
    connect: Callable[[], AbstractContextManager[Any]],
    tell: Callable[[ScoreProgress], None],
) -> pa.Table:
    """Features of labelled images, computed by the actors that score archives.

    Finished parts stay in the work folder: the same images and model again cost nothing but reading them.

    Args:
        images: image_uri, image_version; one row an image.
        feature_model: LiteRT bytes, uint8 `[1, S, S, 3]` to float32 `[D]`.
        io: How the model is fed and read.
        size: D.
        input_size: S.
        work_folder: Where parts are kept, safe to delete.
        connect: Starts or joins Ray; not called where all parts are there.
        tell: Called with progress.

    Returns:
        The rows of `feature_rows`, in the order of `images`.
    """
    folder = RunFolder(work_folder, f"features-{_key(images, feature_model)}")
    _write_plan(images, folder)
    with parts.open_plan(folder) as plan:
        _forget_passing_failures(folder)
        missing = parts.missing_shards(folder, plan)
        if missing:
            work = ShardWork(folder, _session(), input_size, io, FeatureMaker(size))
            with connect() as cluster:
                _score(work, feature_model, missing, plan, cluster.cpus, tell)
        tables = [parts.read_part(folder, shard) for shard in range(plan.shards)]
    rows = pa.concat_tables([table for table in tables if table is not None])
    if not rows.column("image_uri").combine_chunks().equals(images.column("image_uri").combine_chunks()):
        raise PartMissing(
            f"The features in {folder.root} are not those of the images.", "Remove that folder; it is safe to delete."
        )
    return rows


def _forget_passing_failures(folder: RunFolder) -> None:
    """Remove kept parts that are damaged, or hold an image that storage failed to give: it may have come back."""
    for shard in sorted(folder.finished_shards()):
        rows = parts.read_part(folder, shard)
        codes = set() if rows is None else set(rows.column("error_code").to_pylist()) - {None}
        if rows is None or not all(IMAGE_ERRORS[code].lies_in_image for code in codes):
            files.delete(folder.part(shard))


def _score(
    work: ShardWork,
    model: bytes,
    missing: list[int],
    plan: PlanFile,
    cpus: int,
    tell: Callable[[ScoreProgress], None],
) -> None:
    from pipelines.scoring import graph  # only now: Ray reads its environment when it is imported

    least, most = PoolSize().within(cpus)
    tally = Tally(plan.images, plan.images - plan.images_of(missing), min(most, len(missing)))

    def on_receipt(receipt: Receipt) -> None:
        if tally.add(receipt):
            tell(tally.progress())

    graph.score_shards(work, model, missing, plan, graph.Pool(least, most), on_receipt)


def _key(images: pa.Table, model: bytes) -> str:
    digest = hashlib.sha256(model)
    for column in ("image_uri", "image_version"):
        for value in images.column(column).to_pylist():
            digest.update(value.encode() + b"\0")
    return digest.hexdigest()[:16]


def _session() -> int:
    """A number that no earlier driver used; a training holds no lease."""
    return int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)


def _write_plan(images: pa.Table, folder: RunFolder) -> None:
    shard = pa.array(np.arange(images.num_rows, dtype=np.int32) // SHARD_SIZE)
    plan = images.select(["image_uri", "image_version"]).add_column(0, "shard", shard)
    with tempfile.TemporaryDirectory(prefix="nightread-plan-") as temporary:
        path = Path(temporary) / "plan.parquet"
        pq.write_table(plan, path, row_group_size=SHARD_SIZE * SHARDS_PER_GROUP)
        files.put(str(path), folder.plan)
