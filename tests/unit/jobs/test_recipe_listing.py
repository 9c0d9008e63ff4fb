"""Recipes as a person and as a program see them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.console import Console
from jobs.recipe_listing import list_recipes, show_recipe
from pipelines.errors import UsageError
from pipelines.training.recipes import load_recipe, read_recipe, recipe_names


def test_the_list_names_each_recipe_with_source_backbone_size_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    list_recipes(Console())
    lines = capsys.readouterr().out.splitlines()
    for name in recipe_names():
        recipe = load_recipe(name)
        row = next(line for line in lines if line.startswith(f"{name} ") and recipe.backbone in line)
        assert str(recipe.input_size) in row
    sarker = next(line for line in lines if line.startswith("histopathology"))
    assert all(word in sarker for word in ("IJCSE 12(7), 2025", "10 images", "0.8 ", "0.6501"))
    assert sum(line.startswith("skin-lesion") for line in lines) == 4
    assert any("vgg16" in line and "0.9497" in line for line in lines)


def test_the_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    list_recipes(Console(json=True))
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(listed) == recipe_names()
    assert listed["default"]["published"] is None
    assert listed["breast-ultrasound"]["input_size"] == 150
    (figures,) = listed["breast-ultrasound"]["published"]["figures"]
    assert figures["values"]["mcc"] == 0.74
    assert figures["confusion_matrix"][2] == [2, 4, 37]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_shown_as_its_file(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    show_recipe(Console(), name)
    shown = capsys.readouterr().out
    assert shown == read_recipe(name)[1]
    (tmp_path / "mine.toml").write_text(shown)
    assert load_recipe(str(tmp_path / "mine.toml")).values() == load_recipe(name).values()


def test_a_recipe_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    show_recipe(Console(json=True), "histopathology")
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == ["name", "recipe", "published", "toml"]
    assert shown["recipe"]["trainable_layers"] == 30
    assert shown["recipe"]["exclude"] == []
    assert shown["published"]["architecture"]["parameters"] == 2264385
    assert shown["toml"] == read_recipe("histopathology")[1]


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="skin-lesion"):
        show_recipe(Console(), "skin")
    (tmp_path / "bad.toml").write_text("epochs = 0")
    with pytest.raises(UsageError, match="epochs"):
        show_recipe(Console(), str(tmp_path / "bad.toml"))
