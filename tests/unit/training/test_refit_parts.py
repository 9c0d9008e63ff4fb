"""Training and validation joined for a second training, and the rates that it repeats."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipelines.training.audit import LeakAudit
from pipelines.training.dataset import Dataset, PartImages
from pipelines.training.recipes import Recipe, load_recipe
from pipelines.training.refit import join_parts, rate_factors
from pipelines.training.schedules import Plateau, learning_rates


def part(rows: list[int], labels: list[int]) -> PartImages:
    contents = pa.table({"content_sha256": [f"content {row}" for row in rows]})
    return PartImages(np.array(rows), np.array(labels), tuple(f"group {row}" for row in rows), contents)


def dataset(train: PartImages, val: PartImages) -> Dataset:
    audit = LeakAudit.__new__(LeakAudit)  # nothing of it is read
    return Dataset(("a", "b"), {"train": train, "val": val}, pa.table({}), {}, (), audit)


def test_both_parts_train_each_image_once_with_its_own_label_and_group() -> None:
    joined = join_parts(dataset(part([0, 3, 5], [0, 1, 1]), part([1, 4], [1, 0])))
    both = joined.part("train")
    assert both.rows.tolist() == [0, 1, 3, 4, 5]
    assert both.labels.tolist() == [0, 1, 1, 0, 1]
    assert both.groups == tuple(f"group {row}" for row in both.rows)
    assert both.images["content_sha256"].to_pylist() == [f"content {row}" for row in both.rows]


def test_the_validation_part_stays_to_be_watched() -> None:
    val = part([1, 4], [1, 0])
    assert join_parts(dataset(part([0], [0]), val)).part("val") is val


def recipe(**settings: str) -> Recipe:
    return load_recipe("skin-lesion", {"schedule": "constant", **settings})


def test_a_plateaus_reductions_are_found_again_in_the_history() -> None:
    own = recipe(reduce_on_plateau="2", reduce_factor="0.5", reduce_metric="log_loss", epochs="9", warmup_epochs="2")
    watched = [0.7, 0.6, 0.6, 0.6, 0.6, 0.6, 0.5, 0.5, 0.5]
    plateau, factors, history = Plateau(), [], []
    for epoch, value in enumerate(watched, 1):
        factors.append(plateau.factor)
        rate = learning_rates(own, epoch, 7)[-1] * plateau.factor
        history.append({"epoch": epoch, "learning_rate": float(rate)})
        plateau = plateau.after(value, own)
    assert len(set(factors)) > 1
    assert rate_factors(own, history) == pytest.approx(factors, rel=1e-6)


def test_a_recipe_without_a_plateau_needs_no_factors() -> None:
    assert rate_factors(recipe(), [{"epoch": 1, "learning_rate": 0.005}]) == ()
