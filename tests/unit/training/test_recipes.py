"""Recipes by name and from files: what they hold, what they refuse, and that published ones stand by themselves."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.archive.globs import glob_expression
from pipelines.errors import UsageError
from pipelines.evaluation.metrics import METRIC_NAMES
from pipelines.training.published import published
from pipelines.training.recipe_rules import RULES, Value, from_text
from pipelines.training.recipes import Recipe, load_recipe, parse_toml, read_recipe, recipe_names

PAPERS = ["breast-resnet50v2", "breast-ultrasound", "histopathology", "skin-lesion"]
PLAIN = "breast-resnet50v2"
"""A recipe with nothing switched on, whose values do not change when those of `default` do."""


def as_toml(values: dict[str, Value]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def as_text(value: Value) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def test_the_recipes_that_come_with_the_program() -> None:
    assert {"default", *PAPERS} <= set(recipe_names())
    assert recipe_names() == sorted(recipe_names())
    assert load_recipe().name == "default"
    assert load_recipe() == load_recipe("default")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_spells_every_key(name: str) -> None:
    """So that a better `default` changes no published recipe."""
    table = parse_toml(read_recipe(name)[1], name)
    assert [key for key in table if key != "published"] == list(RULES)
    recipe = load_recipe(name)
    assert list(recipe.values()) == list(RULES) == [field.name for field in dataclasses.fields(Recipe)][1:]


@pytest.mark.parametrize("name", recipe_names())
def test_what_is_shown_of_a_recipe_is_a_recipe(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(read_recipe(name)[1])
    assert load_recipe(str(path)).values() == load_recipe(name).values()
    assert load_recipe(str(path)).name == "mine"
    assert published(str(path)) == published(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "histopathology",
            {
                "backbone": "mobilenet_v2",
                "input_size": 224,
                "trainable_layers": 30,
                "pooling": "avg",
                "batch_norm": True,
                "dropout": 0.4,
                "dense_units": 0,
                "loss": "binary_crossentropy",
                "optimizer": "adam",
                "learning_rate": 1e-5,
                "batch_size": 8,
                "epochs": 50,
                "rotation": 20.0,
                "zoom": 0.2,
                "shear": 0.1,
                "flip": "horizontal",
                "fill": "nearest",
                "scaling": "0..1",
                "early_stopping": 5,
                "metric": "accuracy",
                "reduce_on_plateau": 3,
                "reduce_factor": 0.5,
                "reduce_metric": "log_loss",
                "validation_share": 0.2,
                "test_share": 0.0,
            },
        ),
        (
            "breast-resnet50v2",
            {
                "backbone": "resnet50_v2",
                "input_size": 224,
                "trainable_layers": 0,
                "pooling": "avg",
                "dropout": 0.2,
                "loss": "binary_crossentropy",
                "optimizer": "adam",
                "learning_rate": 1e-3,
                "batch_size": 32,
                "epochs": 20,
                "validation_share": 0.1,
                "test_share": 0.1,
            },
        ),
        (
            "skin-lesion",
            {
                "backbone": "mobilenet_v2",
                "input_size": 224,
                "trainable_layers": 0,
                "dense_units": 100,
                "activation": "relu",
                "optimizer": "adam",
                "learning_rate": 0.005,
                "epochs": 20,
                "batch_size": 32,
                "schedule": "constant",
                "early_stopping": 0,
                "restore_best": False,
                "validation_share": 0.16,
                "test_share": 0.2,
            },
        ),
        (
            "breast-ultrasound",
            {
                "backbone": "mobilenet_v2",
                "input_size": 150,
                "trainable_layers": 0,
                "pooling": "flatten",
                "dense_units": 1024,
                "activation": "relu",
                "dropout": 0.5,
                "loss": "categorical_crossentropy",
                "optimizer": "adam",
                "learning_rate": 1e-4,
                "epochs": 50,
                "batch_size": 32,
                "class_balance": "oversample",
                "rotation": 20.0,
                "shift": 0.1,
                "shear": 0.1,
                "zoom": 0.0,
                "flip": "horizontal",
                "scaling": "0..1",
                "exclude": ("*_mask*",),
            },
        ),
    ],
)
def test_a_published_recipe_is_what_its_paper_describes(name: str, expected: dict[str, Value]) -> None:
    values = load_recipe(name).values()
    assert {key: values[key] for key in expected} == expected


def test_which_recipes_change_training_images() -> None:
    assert [name for name in PAPERS if load_recipe(name).augments] == ["breast-ultrasound", "histopathology"]
    for overrides in ({"rotation": "1"}, {"shift": "0.1"}, {"shear": "0.1"}, {"zoom": "0.1"}, {"flip": "both"}):
        assert load_recipe(PLAIN, overrides).augments
    assert not load_recipe(PLAIN, {"fill": "wrap", "mixup": "0.2"}).augments


def test_the_masks_beside_ultrasound_images_are_left_out() -> None:
    (pattern,) = load_recipe("breast-ultrasound").exclude
    names = ["normal/normal (1).png", "normal/normal (1)_mask.png", "benign/benign (4)_mask_1.png", "malignant/m.png"]
    masks = [bool(re.search(glob_expression(pattern), name)) for name in names]
    assert masks == [False, True, True, False]


def test_a_sigmoid_tells_two_classes_only() -> None:
    binary = load_recipe(PLAIN)
    binary.check_classes(2)
    with pytest.raises(UsageError, match=r"have 3.*categorical_crossentropy"):
        binary.check_classes(3)
    for count in (2, 3, 100):
        load_recipe("breast-ultrasound").check_classes(count)


def test_overrides_are_read_as_their_keys_type() -> None:
    said = {"epochs": "7", "dropout": "0", "batch_norm": "TRUE", "exclude": "*_mask*, b*", "pooling": "max"}
    recipe = load_recipe(PLAIN, said)
    assert (recipe.epochs, recipe.dropout, recipe.batch_norm) == (7, 0.0, True)
    assert (recipe.exclude, recipe.pooling) == (("*_mask*", "b*"), "max")


def test_a_file_takes_the_rest_from_the_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('dropout = 0.1\nlearning_rate = 1\nexclude = ["*_mask*"]\n')
    recipe = load_recipe(str(path), {"dropout": "0.3"})
    assert (recipe.name, recipe.dropout, recipe.learning_rate, recipe.exclude) == ("mine", 0.3, 1.0, ("*_mask*",))
    said = {"dropout", "learning_rate", "exclude"}
    default = load_recipe().values()
    assert all(value == default[key] for key, value in recipe.values().items() if key not in said)


@given(st.data())
def test_every_legal_value_survives_text_and_toml(data: st.DataObject) -> None:
    """Whatever `--set` or a file says of a key that has no dealings with others is what the recipe holds."""
    shares = st.floats(0, 0.5).map(lambda value: round(value, 6))
    values: dict[str, Value] = {
        "dense_units": data.draw(st.integers(0, 8192)),
        "dropout": data.draw(st.floats(0, 0.95)),
        "learning_rate": data.draw(st.floats(1e-9, 10)),
        "label_smoothing": data.draw(shares),
        "mixup": data.draw(st.floats(0, 1)),
        "metric": data.draw(st.sampled_from(METRIC_NAMES)),
        "reduce_metric": data.draw(st.sampled_from(METRIC_NAMES)),
        "rotation": data.draw(st.floats(0, 180)),
        "restore_best": data.draw(st.booleans()),
        "exclude": data.draw(st.lists(st.sampled_from(["*_mask*", "b/*", "c?.png"])).map(tuple)),
    }
    text = {key: as_text(value) for key, value in values.items()}
    assert {key: from_text(key, text[key]) for key in values} == values
    kept = load_recipe(PLAIN, text).values()
    assert {key: kept[key] for key in values} == values
    table = parse_toml(as_toml(values), "mine")
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()} == values


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"epoch": "3"}, ["'epoch'", "Did you mean epochs?", "dropout", "restore_best"]),
        ({"published": "3"}, ["'published'", "epochs"]),
        ({"dropout": "2"}, ["dropout", "0 to 0.95", "2.0"]),
        ({"dropout": "much"}, ["dropout", "'much'"]),
        ({"epochs": "0"}, ["epochs", "from 1"]),
        ({"epochs": "1.5"}, ["epochs", "'1.5'"]),
        ({"batch_norm": "yes"}, ["batch_norm", "true or false"]),
        ({"backbone": "resnet"}, ["backbone", "resnet50_v2", "'resnet'"]),
        ({"optimizer": "adamW"}, ["optimizer", "'adamW'", "Did you mean adamw?"]),
        ({"learning_rate": "nan"}, ["learning_rate", "nan"]),
        ({"learning_rate": "inf"}, ["learning_rate", "inf"]),
        ({"learning_rate": "0"}, ["learning_rate", "above 0"]),
        ({"trainable_layers": "-1"}, ["trainable_layers", "-1"]),
        ({"metric": "auc"}, ["metric", "roc_auc", "mcc", "'auc'"]),
        ({"class_balance": "smote"}, ["class_balance", "oversample"]),
        ({"weight_averaging": "1"}, ["weight_averaging", "0.9999"]),
        ({"flip": "sideways"}, ["flip", "horizontal"]),
        ({"variants": "1001"}, ["variants", "1000"]),
        ({"shear": "0.6"}, ["shear", "0 to 0.5"]),
    ],
)
def test_what_is_wrong_is_named_with_its_rule(overrides: dict[str, str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(PLAIN, overrides)
    assert all(word in str(caught.value) for word in words)
    assert caught.value.cure


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"validation_share": "0.5", "test_share": "0.5"}, ["validation_share", "test_share", "0.5 + 0.5"]),
        ({"momentum": "0.9"}, ["momentum = 0.9", "sgd", "adam"]),
        ({"optimizer": "adamw", "momentum": "0.9"}, ["momentum = 0.9", "adamw"]),
        ({"weight_decay": "0.01"}, ["weight_decay = 0.01", "adamw"]),
        ({"optimizer": "sgd", "weight_decay": "0.01"}, ["weight_decay = 0.01", "sgd"]),
        ({"head_epochs": "20"}, ["head_epochs = 20", "at most 19"]),
        ({"warmup_epochs": "20"}, ["warmup_epochs = 20", "at most 19"]),
        ({"warmup_epochs": "15", "head_epochs": "5"}, ["warmup_epochs = 15", "at most 14", "more than 20"]),
        ({"schedule": "cosine", "reduce_on_plateau": "3"}, ["reduce_on_plateau = 3", "cosine"]),
        ({"variants": "4"}, ["variants = 4", "rotation"]),
        ({"mixup": "0.2", "batch_size": "1"}, ["mixup", "batch_size"]),
        ({"batch_norm": "true", "batch_size": "1"}, ["batch_norm", "batch_size"]),
        ({"alpha": "0.5"}, ["alpha 0.5", "resnet50_v2"]),
        ({"backbone": "vgg16", "alpha": "1.4"}, ["alpha 1.4", "vgg16"]),
    ],
)
def test_keys_that_contradict_each_other_are_refused_with_a_cure(overrides: dict[str, str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(PLAIN, overrides)
    assert all(word in str(caught.value) for word in words)
    assert caught.value.cure


@pytest.mark.parametrize(
    "overrides",
    [
        {"optimizer": "sgd", "momentum": "0.9"},
        {"optimizer": "adamw", "weight_decay": "0.05", "schedule": "cosine", "warmup_epochs": "3"},
        {"head_epochs": "5", "head_learning_rate": "0.001", "trainable_layers": "30"},
        {"head_epochs": "5", "warmup_epochs": "14"},
        {"batch_norm": "true"},
        {"flip": "horizontal", "variants": "8", "mixup": "0.2", "label_smoothing": "0.1"},
        {"class_balance": "oversample", "weight_averaging": "0.99"},
        {"schedule": "cosine", "early_stopping": "5"},
        {"trainable_layers": "9999"},
        {"backbone": "mobilenet_v2", "alpha": "0.35", "input_size": "96"},
        {"flip_at_prediction": "true", "restore_best": "true"},
        {"reduce_on_plateau": "2", "warmup_epochs": "2"},
        {"epochs": "1"},
    ],
)
def test_what_makes_sense_together_is_taken(overrides: dict[str, str]) -> None:
    values = load_recipe(PLAIN, overrides).values()
    assert {key: as_text(values[key]).lower() for key in overrides} == {
        key: as_text(from_text(key, text)).lower() for key, text in overrides.items()
    }


@pytest.mark.parametrize(
    "text",
    [
        "epochs = ",
        "epochs = true",
        "dropout = '0.1'",
        "exclude = [1]",
        "exclude = ['']",
        "batch_norm = 1",
        "published = 3",
        "[training]\nepochs = 3",
    ],
)
def test_a_file_with_wrong_types_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError):
        load_recipe(str(path))


def test_unknown_names_list_the_recipes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"histopathology, skin-lesion"):
        load_recipe("histo")
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(str(tmp_path / "absent.toml"))
