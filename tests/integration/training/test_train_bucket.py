"""A training whose images, caches, checkpoints and models all lie in a bucket: the files of one on a disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.demo.archive import draw_archive
from pipelines.models.registry import resolve
from pipelines.training.config import TrainConfig
from pipelines.training.labelled import DataConfig
from pipelines.training.recipes import load_recipe
from pipelines.training.run import train

pytestmark = pytest.mark.slow


def test_a_training_in_a_bucket_is_the_one_on_a_disk(s3: Any, tmp_path: Path, connect: Callable) -> None:
    drawn = draw_archive(tmp_path / "drawn", 3, labelled=48, archive=1)
    s3.filesystem.put(str(drawn.labelled), f"{s3.bucket}/labelled", recursive=True)
    settings = {"alpha": "0.35", "input_size": "64", "variants": "2", "epochs": "2", "scaling": "backbone"}
    recipe = load_recipe("histopathology", settings)
    made = []
    for data, models, cache in (
        (str(drawn.labelled), str(tmp_path / "models"), None),
        (f"{s3.uri}/labelled", f"{s3.uri}/models", f"{s3.uri}/cache"),
    ):
        config = TrainConfig(DataConfig(data), models, "tissue", recipe, "none", cache=cache)
        made.append(resolve(train(config, connect, lambda _progress: None).path))
    local, remote = made
    assert remote.uri == f"{s3.uri}/models/tissue/v1"
    for name in ("scorer.tflite", "weights.weights.h5", "split.parquet", "validation.parquet"):
        assert local.read(name) == remote.read(name), name
    kept = s3.filesystem.find(f"{s3.bucket}/cache")
    assert kept and not [key for key in kept if "/fit-" in key]
