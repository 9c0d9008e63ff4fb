"""What two fits have in common: which keys of a recipe a compiled step holds, and which it is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipelines.training.job import COMPILED, Arrays, FitJob
from pipelines.training.recipe_rules import RULES
from pipelines.training.recipes import load_recipe

TOLD = {
    # at each step, or decided on the host between epochs
    *("learning_rate", "schedule", "warmup_epochs", "head_epochs", "head_learning_rate", "epochs"),
    *("early_stopping", "metric", "restore_best", "reduce_on_plateau", "reduce_factor", "reduce_metric"),
    # by the content of the batches
    *("batch_size", "class_balance", "rotation", "shift", "shear", "zoom", "flip", "fill", "variants"),
    # before or after a fit
    *("flip_at_prediction", "validation_share", "test_share", "exclude"),
}
IN_PART = {"mixup", "weight_averaging"}
"""Whether there is any is compiled; how much is told."""


def job(**settings: str) -> FitJob:
    recipe = load_recipe("skin-lesion", settings)
    places = Arrays("train", "labels", "keys", "validation", "validation labels")
    return FitJob(recipe, 2, (1,), (1.0, 1.0), 0, False, places, "checkpoint")


def test_every_key_is_known_to_be_compiled_or_told() -> None:
    """A new key stands here only after somebody has looked where the step takes it from."""
    assert TOLD | IN_PART | set(COMPILED) == set(RULES)
    assert not TOLD & set(COMPILED)


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"learning_rate": "0.1", "epochs": "7", "batch_size": "8", "early_stopping": "3"}, True),
        ({"dropout": "0.3"}, False),
        ({"dense_units": "7"}, False),
        ({"label_smoothing": "0.1"}, False),
        ({"head_start": "zeros"}, False),
        ({"mixup": "0.2"}, False),
        ({"weight_averaging": "0.9"}, False),
    ],
)
def test_what_a_compiled_step_holds_tells_jobs_apart(settings: dict[str, str], same: bool) -> None:
    assert (job(**settings).structure() == job().structure()) is same


def test_how_much_is_mixed_or_averaged_is_told() -> None:
    assert job(mixup="0.2", weight_averaging="0.9").structure() == job(mixup="0.4", weight_averaging="0.8").structure()


@pytest.mark.parametrize("change", [{"seed": 1}, {"class_weights": (1.0, 2.0)}, {"start": "other weights"}])
def test_other_first_weights_or_weights_of_classes_are_another_structure(change: dict[str, Any]) -> None:
    assert replace(job(), **change).structure() != job().structure()


def test_other_images_are_another_structure() -> None:
    assert replace(job(), arrays=replace(job().arrays, inputs="other")).structure() != job().structure()
    assert replace(job(), checkpoint="other").structure() == job().structure()


@pytest.mark.parametrize("until", [0, 21])
def test_a_fit_ends_within_its_recipes_epochs(until: int) -> None:
    with pytest.raises(ValueError, match="until"):
        replace(job(epochs="20"), until=until)


def test_rates_are_given_for_every_epoch_or_none() -> None:
    with pytest.raises(ValueError, match="factors"):
        replace(job(epochs="20"), until=3, factors=(1.0, 0.5))
    assert replace(job(epochs="20"), until=2, factors=(1.0, 0.5)).key() != job(epochs="20").key()
