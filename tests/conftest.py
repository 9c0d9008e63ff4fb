"""What tests of every kind share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# These machines are shared: how long an example takes says nothing about the code.
settings.register_profile("nightread", deadline=None)
settings.load_profile("nightread")

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of this checkout."""
    return CHECKOUT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout, or where NIGHTREAD_SHARED_DATA says; skips without it."""
    folder = Path(os.environ.get("NIGHTREAD_SHARED_DATA", CHECKOUT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no folder shared/data beside the checkout; NIGHTREAD_SHARED_DATA names another")
    return folder


MAKE_MODEL = """
import sys
import numpy as np
from pipelines.images.preprocess import Preprocessing
from pipelines.models import backbones, compile, golden, heads
from pipelines.models.bundle import write_bundle
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import Scorer, ScorerIO
models, size = sys.argv[1], 96
images = np.random.default_rng(0).integers(0, 255, (16, size, size, 3), dtype=np.uint8)
backbone = backbones.build_backbone(
    backbones.BackboneSpec("mobilenet_v2", 0.35, size, "backbone"), "none", seed=1, calibration_images=images
)
for name, seed in (("cells", 1), ("other", 2)):
    np.random.seed(seed)
    import keras
    keras.utils.set_random_seed(seed)
    head = heads.build_head(heads.HeadSpec(pooling="avg", classes=2), backbone.output_shape[1:])
    data, io = compile.compile_scorer(backbone, head, 1.0, size), ScorerIO(size, 2)
    answers = golden.golden_answers(Scorer(data, io), size)
    write_bundle(models, name, BundleSpec(
        ("benign", "malignant"), ("malignant",), size, Preprocessing(size).id,
        {"float32": ScorerEntry("scorer.tflite", io)},
        thresholds={"image": {"threshold": 0.5, "target_sensitivity": 0.95}},
    ), {"scorer.tflite": data, golden.GOLDEN_FILE: golden.make_golden({"float32": answers}, size)})
"""


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MODELS folder with the real but small models `cells` and `other`: MobileNetV2 0.35, 96 px, seeded weights."""
    folder = tmp_path_factory.mktemp("models")
    script = folder / "make.py"
    script.write_text(MAKE_MODEL)
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "MODELS")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "MODELS"
