"""What training keeps of images: equal to Keras, in the order of the images, kept for the next time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SCRIPT = """
import os, sys
from contextlib import nullcontext
from pathlib import Path
import numpy as np, pyarrow as pa
from cluster.session import start_or_join
from pipelines.images.augment import Augmentation, image_key
from pipelines.images.preprocess import Preprocessing
from pipelines.models import backbones, compile, cut
from pipelines.models.runtime import ScorerIO
from pipelines.scoring.features import CacheModel, Variants, compute_features
folder, work = sys.argv[1:3]
size = 96
paths = sorted(str(p) for p in Path(folder).iterdir())
preparation = Preprocessing(size)
prepared = {p: preparation.prepare(Path(p).read_bytes()) for p in paths if "broken" not in p}
backbone = backbones.build_backbone(
    backbones.BackboneSpec("mobilenet_v2", 0.35, size, "backbone"), "none", seed=3,
    calibration_images=np.stack([one.pixels for one in prepared.values()][:16]))

def cached(layers, dtype):
    part = cut.cut_backbone(backbone, layers, "avg")
    io = ScorerIO(size, part.size, outputs="features")
    return part, CacheModel(compile.compile_lower(part, size), io, part.size, dtype)

def table_of(paths):
    return pa.table({"image_uri": paths, "image_version": ["1-1"] * len(paths)})

def readable(features):
    status = np.array(features.facts["status"].to_pylist())
    return np.flatnonzero(status == "scored")

def no_ray():
    raise AssertionError("the parts are there, no actor is needed")

with start_or_join(os.environ["NIGHTREAD_SCORE_ADDRESS"]) as cluster:
    connect = lambda: nullcontext(cluster)
    images = table_of(paths[::-1])
    part, cache = cached(0, "float32")
    plain = compute_features(images, cache, size, work, connect, lambda progress: None)
    assert plain.facts["image_uri"].to_pylist() == paths[::-1]
    assert (plain.dtype, plain.shape) == ("float32", (1, 1280))
    rows = plain.facts.to_pylist()
    scored = [r["image_uri"] for r in rows if r["status"] == "scored"]
    pixels = np.stack([prepared[uri].pixels for uri in scored])
    expected = np.asarray(backbone(pixels)).mean(axis=(1, 2))
    found = plain.read(readable(plain))[:, 0]
    assert np.abs(found - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max()), np.abs(found - expected).max()
    assert found.std() > 0.01
    failed = [r for r in rows if r["status"] == "failed"]
    assert [(r["error_code"], r["perceptual_hash"]) for r in failed] == [("truncated", None)]
    plain.save(readable(plain)[3:50], f"{work}/some.npy")
    assert np.array_equal(np.load(f"{work}/some.npy", mmap_mode="r", allow_pickle=False)[:, 0], found[3:50])
    assert all(len(r["perceptual_hash"]) == 32 for r in rows if r["status"] == "scored")
    again = compute_features(images, cache, size, work, no_ray, print)
    assert again.facts.equals(plain.facts) and np.array_equal(again.read(readable(again))[:, 0], found)

    # Moved copies of what crosses a cut, in half precision: against Keras on pictures moved here.
    part, cache = cached(30, "float16")
    variants = Variants(Augmentation(20, 0.1, 0.1, 0.2, "horizontal", "nearest"), 3, 7)
    moved = compute_features(images, cache, size, work, connect, lambda progress: None, variants)
    assert (moved.dtype, moved.shape) == ("float16", (3, part.size))
    assert moved.facts["status"].to_pylist() == plain.facts["status"].to_pylist()
    found = moved.read(readable(moved))
    for number in range(3):
        pictures = np.stack([
            variants.augmentation.apply(prepared[uri].pixels, (7, number, image_key(prepared[uri].content_sha256)))
            for uri in scored])
        expected = np.asarray(part.lower(pictures.astype(np.float32), training=False))
        assert np.abs(found[:, number] - expected).max() < 2e-3 * np.abs(expected).max()
    # The same images in another order, and fewer of them: each has the same copies.
    some = scored[::-1][:9]
    again = compute_features(table_of(some), cache, size, work, connect, lambda progress: None, variants)
    assert np.array_equal(again.read(np.arange(9)), found[::-1][:9])
print("equal")
"""


def test_features_equal_keras(
    tmp_path: Path, draw: Callable, environment: dict[str, str], shared_ray: Callable[[], dict[str, str]]
) -> None:
    paths = draw(tmp_path / "images", 70)
    (tmp_path / "images" / "broken.jpg").write_bytes(paths[0].read_bytes()[:700])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "images"), str(tmp_path / "work")],
        env={**environment, **shared_ray()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal" in done.stdout
