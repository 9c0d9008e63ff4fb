from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.training.recipes import RULES, load_recipe, recipe_names


def test_the_default_recipe_names_every_key() -> None:
    recipe = load_recipe()
    assert recipe.name == "default"
    assert list(recipe.values()) == list(RULES)
    assert (recipe.backbone, recipe.input_size, recipe.trainable_layers) == ("mobilenet_v2", 224, 0)
    assert "default" in recipe_names()


def test_overrides_are_read_as_their_keys_type() -> None:
    recipe = load_recipe(
        "default",
        {
            "epochs": "7",
            "dropout": "0",
            "batch_norm": "TRUE",
            "dense_units": "16",
            "exclude": "*_mask*, b*",
            "pooling": "max",
        },
    )
    assert (recipe.epochs, recipe.dropout, recipe.batch_norm) == (7, 0.0, True)
    assert (recipe.exclude, recipe.pooling) == (("*_mask*", "b*"), "max")


def test_a_file_takes_the_rest_from_the_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('epochs = 3\nlearning_rate = 1\nexclude = ["*_mask*"]\n')
    recipe = load_recipe(str(path), {"epochs": "4"})
    assert (recipe.name, recipe.epochs, recipe.learning_rate, recipe.exclude) == ("mine", 4, 1.0, ("*_mask*",))
    assert recipe.backbone == "mobilenet_v2"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"epoch": "3"}, ["'epoch'", "epochs", "dropout"]),
        ({"dropout": "2"}, ["dropout", "0 to 0.95", "2.0"]),
        ({"dropout": "much"}, ["dropout", "'much'"]),
        ({"epochs": "0"}, ["epochs", "from 1"]),
        ({"epochs": "1.5"}, ["epochs", "'1.5'"]),
        ({"batch_norm": "yes"}, ["batch_norm", "true or false"]),
        ({"backbone": "resnet"}, ["backbone", "resnet50_v2", "'resnet'"]),
        ({"learning_rate": "nan"}, ["learning_rate", "nan"]),
        ({"learning_rate": "inf"}, ["learning_rate", "inf"]),
        ({"validation_share": "0.5", "test_share": "0.5"}, ["validation_share", "test_share"]),
        ({"batch_norm": "true"}, ["batch_norm", "dense_units"]),
        ({"trainable_layers": "30"}, ["trainable_layers", "30"]),
    ],
)
def test_what_is_wrong_is_named_with_its_rule(overrides: dict[str, str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("default", overrides)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("text", ["epochs = ", "epochs = true", "dropout = '0.1'", "exclude = [1]", "batch_norm = 1"])
def test_a_file_with_wrong_types_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError):
        load_recipe(str(path))


def test_unknown_names_list_the_recipes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="default"):
        load_recipe("histo")
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(str(tmp_path / "absent.toml"))
