"""What an actor keeps of images for training, without Ray and without a model: pixels and moved copies of them."""

from __future__ import annotations

import contextlib
import hashlib
import resource
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import TryLater
from pipelines.images.augment import Augmentation, image_key
from pipelines.images.preprocess import Preprocessing
from pipelines.predictions.runs import RunFolder
from pipelines.scoring import parts
from pipelines.scoring.features import SHARD_BYTES, CacheKernel, CacheModel, Variants, compute_features
from pipelines.scoring.scorer import FeatureMaker, ShardScorer, ShardWork

SIZE = 32
LENGTH = SIZE * SIZE * 3
PIXELS = CacheModel(None, None, LENGTH, "uint8")
VARIANTS = Variants(Augmentation(rotation=30, flip="horizontal"), 4, 11)


@pytest.fixture
def images(tmp_path: Path) -> pa.Table:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(5):
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    (folder / "3.png").write_bytes(b"no picture")
    (folder / "4.png").write_bytes((folder / "0.png").read_bytes())
    return pa.table({"image_uri": [str(folder / f"{number}.png") for number in range(5)], "image_version": ["1"] * 5})


def kept(folder: Path, images: pa.Table, variants: Variants | None) -> pa.Table:
    width = LENGTH * (variants.count if variants else 1)
    work = ShardWork(RunFolder(str(folder), "run"), 1, SIZE, CacheKernel(PIXELS, variants), FeatureMaker(width))
    ShardScorer(work, b"").score(0, images)
    rows = parts.read_part(work.folder, 0)
    assert rows is not None
    return rows


def test_pixels_are_kept_as_they_are_prepared(tmp_path: Path, images: pa.Table) -> None:
    rows = kept(tmp_path / "work", images, None).to_pylist()
    for row in rows[:3]:
        expected = Preprocessing(SIZE).prepare(Path(row["image_uri"]).read_bytes()).pixels
        assert row["features"] == expected.tobytes()
    assert [(row["error_code"], row["features"]) for row in rows if row["status"] == "failed"] == [
        ("not_an_image", None)
    ]


def test_moved_copies_depend_on_seed_number_and_content_alone(tmp_path: Path, images: pa.Table) -> None:
    rows = kept(tmp_path / "one", images, VARIANTS).to_pylist()
    turned = kept(tmp_path / "two", images.take([4, 3, 2, 1, 0]), VARIANTS).to_pylist()
    assert [row["features"] for row in turned] == [row["features"] for row in rows[::-1]]
    assert rows[4]["features"] == rows[0]["features"]  # the same bytes under another name
    data = Path(rows[1]["image_uri"]).read_bytes()
    pixels = Preprocessing(SIZE).prepare(data).pixels
    copies = np.frombuffer(rows[1]["features"], np.uint8).reshape(4, SIZE, SIZE, 3)
    for number, copy in enumerate(copies):
        key = (11, number, image_key(hashlib.sha256(data).hexdigest()))
        np.testing.assert_array_equal(copy, VARIANTS.augmentation.apply(pixels, key))
    assert len({copy.tobytes() for copy in copies}) == 4
    other = kept(tmp_path / "three", images, Variants(VARIANTS.augmentation, 4, 12)).to_pylist()
    assert other[1]["features"] != rows[1]["features"]


def test_what_half_precision_cannot_hold_is_its_largest_number(tmp_path: Path) -> None:
    class Prepared:
        pixels = np.array([0.1, -1e6, 1e6, 65504.0], np.float32)

    kernel = CacheKernel(CacheModel(None, None, 4, "float16"), None)(b"")
    answer = kernel(Prepared())  # type: ignore[arg-type]
    assert answer.dtype == np.float16 and answer.tolist() == [float(np.float16(0.1)), -65504, 65504, 65504]


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does, done by the kernel: no file of this process may grow beyond it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_in_one_sentence_and_leaves_no_part(tmp_path: Path, images: pa.Table) -> None:
    work = tmp_path / "work"
    with files_of_at_most(8000), pytest.raises(TryLater, match="The disk is full"):
        kept(work, images, VARIANTS)
    assert not [path for path in work.rglob("*") if path.suffix in (".parquet", ".tmp")]

    def no_ray() -> contextlib.AbstractContextManager[None]:
        raise AssertionError("nothing was planned")

    with files_of_at_most(100), pytest.raises(TryLater, match="The disk is full"):
        compute_features(images, PIXELS, SIZE, str(tmp_path / "other"), no_ray, print)
    assert not [path for path in (tmp_path / "other").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("size", "count", "expected"), [(1280 * 4, 1, 32), (7840 * 2, 100, 21), (7840 * 2, 1000, 2), (3 * 1024**2, 1000, 1)]
)
def test_shards_are_smaller_where_an_image_takes_more(
    tmp_path: Path, images: pa.Table, size: int, count: int, expected: int
) -> None:
    class Planned(Exception):
        """Ray would be started now."""

    def no_ray() -> contextlib.AbstractContextManager[None]:
        raise Planned

    many = pa.concat_tables([images] * 20)
    with pytest.raises(Planned):
        compute_features(
            many,
            CacheModel(None, None, size, "uint8"),
            SIZE,
            str(tmp_path),
            no_ray,
            print,
            Variants(Augmentation(), count, 0),
        )
    (plan,) = tmp_path.rglob("plan.parquet")
    assert pa.parquet.read_table(plan)["shard"].to_pylist().count(0) == expected
    assert expected == 1 or expected * size * count <= SHARD_BYTES
