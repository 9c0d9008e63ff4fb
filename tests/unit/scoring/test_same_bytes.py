"""Images whose bytes are the old ones keep the old answer, and nothing of them is decoded."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from pipelines.archive.plan_writing import PREVIOUS
from pipelines.models.bundle import Bundle
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import ScorerIO
from pipelines.predictions.runs import RunFolder
from pipelines.predictions.schema import prediction_schema
from pipelines.scoring import parts
from pipelines.scoring.kernels import Kernel
from pipelines.scoring.rows import RowContext
from pipelines.scoring.scorer import PredictionMaker, ShardScorer, ShardWork
from pipelines.storage.reading import local_version

SIZE = 8
CLASSES = ("benign", "malignant")
OF_THE_RUN = ("run_id", "scored_at", "scored_date", "image_version")
ANSWERS = (
    "content_sha256", "width", "height", "mean_intensity", "frames", "predicted_class", "score", "p_benign",
    "p_malignant", "p_positive", "decision", "in_training_set", "decoder",
)  # fmt: skip


class ByBrightness:
    """A kernel that answers with an image's brightness and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, model: bytes) -> Kernel:
        def kernel(prepared: object) -> np.ndarray:
            self.asked += 1
            bright = np.float32(prepared.pixels.mean() / 255)  # type: ignore[attr-defined]
            return np.array([1 - bright, bright], np.float32)

        return kernel


def write(path: Path, level: int) -> None:
    path.write_bytes(cv2.imencode(".png", np.full((9, 11, 3), level, np.uint8))[1].tobytes())


def run(base: Path, run_id: str, day: int, images: pa.Table, kernel: ByBrightness) -> pa.Table:
    """Score one shard; its part."""
    spec = BundleSpec(
        CLASSES, CLASSES[1:], SIZE, "p", {"float32": ScorerEntry("s", ScorerIO(SIZE, 2))},
        thresholds={"image": {"threshold": 0.5}},
    )  # fmt: skip
    bundle = Bundle("/m/cells/v1", "cells", "v1", "0" * 64, spec, {})
    carried = pa.schema([("site", pa.string())])
    context = RowContext(
        run_id, datetime.date(2026, 1, day), bundle, "float32", frozenset(), False, prediction_schema(CLASSES, carried)
    )
    folder = RunFolder(str(base), run_id)
    receipt = ShardScorer(ShardWork(folder, 1, SIZE, kernel, PredictionMaker(context)), b"").score(0, images)
    rows = parts.read_part(folder, 0)
    assert rows is not None and receipt.images == images.num_rows and rows.schema == context.schema
    return rows


@pytest.fixture
def archive(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "archive"
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        write(path, 40 * number)
    return paths


def planned(paths: list[Path], site: str) -> pa.Table:
    uris = [str(path) for path in paths]
    versions = [local_version(path.stat()) if path.exists() else "" for path in paths]
    return pa.table({"image_uri": uris, "image_version": versions, "site": [site] * len(uris)})


def test_the_old_answer_holds_for_the_old_bytes_and_for_no_others(archive: list[Path], tmp_path: Path) -> None:
    kernel = ByBrightness()
    old = run(tmp_path / "results", "first", 1, planned(archive, "north"), kernel)
    assert kernel.asked == 6
    # Touched: the same bytes. Then other bytes, broken ones, none; and one that has no old answer.
    for path in archive:
        os.utime(path, ns=(0, 12345))
    write(archive[2], 200)
    archive[3].write_bytes(archive[3].read_bytes()[:40])
    archive[4].unlink()
    struct = pa.StructArray.from_arrays(
        # A table holds columns of other models, and its types may be wider than those of the rows.
        [*(old[name].combine_chunks() for name in ANSWERS), pa.nulls(6, pa.float32())],
        names=[*ANSWERS, "p_of_another_model"],
    )
    previous = pa.array([None if number == 5 else struct[number].as_py() for number in range(6)], struct.type)
    images = planned(archive, "south").append_column(PREVIOUS, previous)
    kernel = ByBrightness()
    new = run(tmp_path / "results", "second", 2, images, kernel)

    assert kernel.asked == 2  # the image with other bytes, and the one without an old answer
    assert new["error_code"].to_pylist() == [None, None, None, "truncated", "not_found", None]
    assert set(new["site"].to_pylist()) == {"south"} and set(new["run_id"].to_pylist()) == {"second"}
    assert set(new["scored_date"].to_pylist()) == {datetime.date(2026, 1, 2)}
    same = [name for name in new.column_names if name not in (*OF_THE_RUN, "site")]
    for number in (0, 1, 5):
        assert new.select(same).slice(number, 1).to_pylist() == old.select(same).slice(number, 1).to_pylist()
    assert new["image_version"].to_pylist()[:3] == [local_version(path.stat()) for path in archive[:3]]
    assert new["p_malignant"][2].as_py() == pytest.approx(200 / 255, abs=1e-6)
    assert new["content_sha256"][2].as_py() != old["content_sha256"][2].as_py()


def test_a_plan_without_one_old_answer_changes_nothing(archive: list[Path], tmp_path: Path) -> None:
    plain = planned(archive, "north")
    kind = pa.struct([("content_sha256", pa.string()), ("score", pa.float32())])
    expected = run(tmp_path / "results", "one", 1, plain, ByBrightness())
    found = run(tmp_path / "results", "two", 1, plain.append_column(PREVIOUS, pa.nulls(6, kind)), ByBrightness())
    varying = ["run_id", "scored_at"]
    assert found.drop_columns(varying).equals(expected.drop_columns(varying))
