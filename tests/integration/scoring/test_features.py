"""Features are scores of a headless model: equal to Keras, in the order of the images, kept for the next time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
import numpy as np, pyarrow as pa
from cluster.session import start_or_join
from pipelines.images.preprocess import Preprocessing
from pipelines.models import backbones, compile
from pipelines.models.runtime import ScorerIO
from pipelines.scoring.features import compute_features
folder, work = sys.argv[1:3]
size = 96
paths = sorted(str(p) for p in Path(folder).iterdir())
preparation = Preprocessing(size)
pixels = {p: preparation.prepare(Path(p).read_bytes()).pixels for p in paths if "broken" not in p}
backbone = backbones.build_backbone(
    backbones.BackboneSpec("mobilenet_v2", 0.35, size, "backbone"), "none", seed=3,
    calibration_images=np.stack(list(pixels.values())[:16]))
model = compile.compile_features(backbone, "avg", size)
length = 1280
images = pa.table({"image_uri": paths[::-1], "image_version": ["1-1"] * len(paths)})
table = compute_features(images, model, ScorerIO(size, length, outputs="features"), length, size, work,
    lambda: start_or_join("local"), lambda progress: None)
assert table["image_uri"].to_pylist() == paths[::-1]
rows = table.to_pylist()
expected = np.asarray(backbone(np.stack([pixels[r["image_uri"]] for r in rows if r["status"] == "scored"])))
expected = expected.mean(axis=(1, 2))
found = np.array([r["features"] for r in rows if r["status"] == "scored"], np.float32)
assert np.abs(found - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max()), np.abs(found - expected).max()
assert found.std() > 0.01
failed = [r for r in rows if r["status"] == "failed"]
assert [(r["error_code"], r["features"], r["perceptual_hash"]) for r in failed] == [("truncated", None, None)]
assert all(len(r["perceptual_hash"]) == 32 for r in rows if r["status"] == "scored")
def no_ray():
    raise AssertionError("the parts are there, no actor is needed")
again = compute_features(images, model, ScorerIO(size, length, outputs="features"), length, size, work, no_ray, print)
assert again.equals(table)
print("equal")
"""


def test_features_equal_keras(tmp_path: Path, draw: Callable, environment: dict[str, str]) -> None:
    paths = draw(tmp_path / "images", 70)
    (tmp_path / "images" / "broken.jpg").write_bytes(paths[0].read_bytes()[:700])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "images"), str(tmp_path / "work")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal" in done.stdout
