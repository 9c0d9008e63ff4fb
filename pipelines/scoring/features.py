"""What training keeps of images: features, what crosses a cut, or pixels, each also of moved copies.

They are scores of a headless model: the same actors, another kind of row.
"""

from __future__ import annotations

import datetime
import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.errors import IMAGE_ERRORS
from pipelines.images.augment import Augmentation, image_key
from pipelines.images.preprocess import Prepared, Preprocessing
from pipelines.models.runtime import Scorer, ScorerIO
from pipelines.predictions.runs import RunFolder
from pipelines.scoring import parts
from pipelines.scoring.config import SHARDS_PER_GROUP, PoolSize
from pipelines.scoring.gate import PartMissing
from pipelines.scoring.kernels import Kernel
from pipelines.scoring.parts import PlanFile
from pipelines.scoring.report import ScoreProgress, Tally
from pipelines.scoring.scorer import FeatureMaker, Receipt, ShardWork
from pipelines.storage import files

MOST_IN_SHARD = 32
# An actor holds a shard's features about three times while it writes them.
SHARD_BYTES = 32 << 20


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


@dataclass(frozen=True)
class Variants:
    """Moved copies that are kept of each image instead of the image itself.

    Copy v of an image is moved by the key (seed, v, its content), so that it depends neither on the other images nor on
    who computes it.

    Attributes:
        augmentation: How far they are moved.
        count: How many of each image, at least 1.
        seed: Decides the movements.
    """

    augmentation: Augmentation
    count: int
    seed: int


@dataclass(frozen=True, eq=False)
class Features:
    """What is kept of some images.

    Attributes:
        facts: The rows of `feature_rows` without `features`, one an image.
        folder: Where the parts lie.
        shards: How many there are.
        dtype: Of the numbers.
        shape: (V, D): copies kept of each image, 1 without variants, and numbers of each.
    """

    facts: pa.Table
    folder: RunFolder
    shards: int
    dtype: str
    shape: tuple[int, int]

    def save(self, rows: NDArray[np.int64], place: str) -> None:
        """Write some images' numbers as a `.npy` file `[n, V, D]`, one part after the other.

        Args:
            rows: Numbers of readable images in `facts`, rising.
            place: The file's path or URI.

        Raises:
            PartMissing: If a part was lost meanwhile.
            TryLater: If the disk is full or storage does not answer.
        """
        # Not mapped to memory: a full disk would end the process without a word.
        with files.filling(place) as path, open(path, "wb") as file:
            head = {"descr": np.lib.format.dtype_to_descr(np.dtype(self.dtype)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**head, "shape": (len(rows), *self.shape)})
            for block in self._blocks(rows):
                file.write(block.data)

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Some images' numbers, `[n, V, D]`; as `save`."""
        blocks = list(self._blocks(rows))
        return np.concatenate(blocks) if blocks else np.empty((0, *self.shape), self.dtype)

    def _blocks(self, rows: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
        first = 0
        width = self.shape[0] * self.shape[1] * np.dtype(self.dtype).itemsize
        for table in _tables(self.folder, self.shards):
            last = first + table.num_rows
            own = rows[np.searchsorted(rows, first) : np.searchsorted(rows, last)] - first
            first = last
            if len(own):
                column = table.column("features").combine_chunks()
                data = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * width :]
                whole = data[: len(column) * width].reshape(len(column), width)
                yield whole[own].view(self.dtype).reshape(len(own), *self.shape)


def _tables(folder: RunFolder, shards: int) -> Iterator[pa.Table]:
    for shard in range(shards):
        table = parts.read_part(folder, shard)
        if table is None:
            raise _damaged(folder)
        yield table


@dataclass(frozen=True)
class CacheKernel:
    """Answers what is kept of an image: `[size]`, or `[count * size]` with variants one after the other.

    Attributes:
        cache: What is kept; its `model` may be None, because the actor gets those bytes apart.
        variants: Which moved copies; None for the image itself.
    """

    cache: CacheModel
    variants: Variants | None

    def __call__(self, model: bytes) -> Kernel:
        """Load the model, if there is one."""
        how, dtype = self.cache.io, np.dtype(self.cache.dtype)
        answer = (lambda pixels: pixels.reshape(-1)) if how is None else Scorer(model, how)
        if self.variants is None:
            return lambda prepared: _narrowed(answer(prepared.pixels), dtype)
        augmentation, count, seed = self.variants.augmentation, self.variants.count, self.variants.seed

        def of_variants(prepared: Prepared) -> np.ndarray:
            kept = np.empty((count, self.cache.size), dtype)
            content = image_key(prepared.content_sha256)
            for number in range(count):
                moved = augmentation.apply(prepared.pixels, (seed, number, content))
                kept[number] = _narrowed(answer(moved), dtype)
            return kept.reshape(-1)

        return of_variants


def _narrowed(numbers: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """As `dtype`; what float16 cannot hold becomes its largest number, and not infinite."""
    if dtype == np.float16:
        largest = np.finfo(np.float16).max
        numbers = np.clip(numbers, -largest, largest)
    kept: np.ndarray = numbers.astype(dtype, copy=False)
    return kept


def compute_features(
    images: pa.Table,
    cache: CacheModel,
    input_size: int,
    work_folder: str,
    connect: Callable[[], AbstractContextManager[Any]],
    tell: Callable[[ScoreProgress], None],
    variants: Variants | None = None,
) -> Features:
    """Features of labelled images, computed by the actors that score archives.

    Finished parts stay in the work folder: the same images and model again cost nothing but reading them.

    Args:
        images: image_uri, image_version; one row an image.
        cache: What is kept of each image.
        input_size: S.
        work_folder: Where parts are kept, safe to delete.
        connect: Starts or joins Ray; not called where all parts are there.
        tell: Called with progress.
        variants: Moved copies to keep instead of the images themselves.

    Returns:
        What was found, in the order of `images`; the numbers themselves stay in their parts until they are asked for.

    Raises:
        TryLater: If the disk is full or storage fails; what was finished is kept.
        UsageError: If the work folder cannot be written.
    """
    count = variants.count if variants else 1
    width = count * cache.size * np.dtype(cache.dtype).itemsize
    folder = RunFolder(work_folder, f"features-{_key(images, cache, input_size, variants)}")
    _write_plan(images, folder, max(1, min(MOST_IN_SHARD, SHARD_BYTES // width)))
    with parts.open_plan(folder) as plan:
        _forget_passing_failures(folder)
        missing = parts.missing_shards(folder, plan)
        if missing:
            kernel = CacheKernel(replace(cache, model=None), variants)
            work = ShardWork(folder, _session(), input_size, kernel, FeatureMaker(width))
            with connect() as cluster:
                _score(work, cache.model or b"", missing, plan, cluster.cpus, tell)
        shards = plan.shards
    facts = pa.concat_tables([table.drop_columns(["features"]) for table in _tables(folder, shards)])
    if not facts.column("image_uri").combine_chunks().equals(images.column("image_uri").combine_chunks()):
        raise _damaged(folder)
    return Features(facts, folder, shards, cache.dtype, (count, cache.size))


def _damaged(folder: RunFolder) -> PartMissing:
    return PartMissing(
        f"The features in {folder.root} are not those of the images.", "Remove that folder; it is safe to delete."
    )


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


def _key(images: pa.Table, cache: CacheModel, input_size: int, variants: Variants | None) -> str:
    """What the features depend on: pixels, model, how it is called and kept, how they are moved, which images."""
    digest = hashlib.sha256(cache.model or b"")
    # Two versions may differ in the temperature alone, which can lie outside of the graph.
    digest.update(f"{Preprocessing(input_size).id} {cache.size} {cache.dtype} {cache.io}\0".encode())
    if variants is not None:
        # Another release of numpy may draw other movements.
        digest.update(f"{variants} numpy {np.__version__}\0".encode())
    for column in ("image_uri", "image_version"):
        for value in images.column(column).to_pylist():
            digest.update(value.encode() + b"\0")
    return digest.hexdigest()[:16]


def _session() -> int:
    """A number that no earlier driver used; a training holds no lease."""
    return int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)


def _write_plan(images: pa.Table, folder: RunFolder, in_shard: int) -> None:
    shard = pa.array(np.arange(images.num_rows, dtype=np.int32) // in_shard)
    plan = images.select(["image_uri", "image_version"]).add_column(0, "shard", shard)
    buffer = io.BytesIO()
    pq.write_table(plan, buffer, row_group_size=in_shard * SHARDS_PER_GROUP)
    files.write_atomic(folder.plan, buffer.getvalue())
