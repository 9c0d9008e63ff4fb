"""Recipes: everything that decides how a model is trained, but the data and the seed, as flat keys of a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from pipelines.errors import UsageError
from pipelines.training.recipe_rules import RULES, Value, changes_images, check_values, from_text, from_toml

PUBLISHED = "published"
"""The one table that a recipe's file may hold beside its keys: what its paper reports, which decides nothing."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; it checks itself.

    Every attribute but the name is a key of `RULES`, which says what it means and may hold.

    Attributes:
        name: Where it comes from: a published name, or the name of the file.
    """

    name: str
    backbone: str
    alpha: float
    input_size: int
    scaling: str
    trainable_layers: int
    pooling: str
    dense_units: int
    activation: str
    batch_norm: bool
    dropout: float
    optimizer: str
    momentum: float
    weight_decay: float
    loss: str
    label_smoothing: float
    mixup: float
    learning_rate: float
    schedule: str
    warmup_epochs: int
    head_start: str
    head_epochs: int
    head_learning_rate: float
    epochs: int
    batch_size: int
    class_balance: str
    weight_averaging: float
    rotation: float
    shift: float
    shear: float
    zoom: float
    flip: str
    fill: str
    variants: int
    early_stopping: int
    metric: str
    restore_best: bool
    reduce_on_plateau: int
    reduce_factor: float
    reduce_metric: str
    flip_at_prediction: bool
    validation_share: float
    test_share: float
    exclude: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check every key against its rule, and the keys against each other.

        Raises:
            UsageError: Naming the key, its rule and the value received, or the keys that contradict each other.
        """
        check_values(self.values())

    def values(self) -> dict[str, Value]:
        """Every key and its value, in the order of the documentation."""
        return {key: getattr(self, key) for key in RULES}

    @property
    def augments(self) -> bool:
        """Whether training images are rotated, shifted, sheared, zoomed or flipped."""
        return changes_images(self.values())

    def check_classes(self, count: int) -> None:
        """Check what only the data decide: whether the recipe can tell so many classes.

        Args:
            count: How many classes the labels name.

        Raises:
            UsageError: If a single sigmoid unit is asked to tell more than two.
        """
        if self.loss == "binary_crossentropy" and count != 2:
            raise UsageError(
                f"The recipe's loss binary_crossentropy tells two classes, and the data have {count}.",
                "Set loss to categorical_crossentropy.",
            )


def recipe_names() -> list[str]:
    """Names of the recipes that come with the program, sorted."""
    files = resources.files("pipelines.training") / "recipes"
    return sorted(file.name.removesuffix(".toml") for file in files.iterdir() if file.name.endswith(".toml"))


def read_recipe(name_or_file: str) -> tuple[str, str]:
    """Read a recipe's file.

    Args:
        name_or_file: A published name, or the path of a `.toml` file.

    Returns:
        The recipe's name and the text of its file.

    Raises:
        UsageError: If there is no such recipe, or the file cannot be read.
    """
    if name_or_file.endswith(".toml"):
        try:
            return Path(name_or_file).stem, Path(name_or_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"The recipe file {name_or_file} cannot be read.", "Check its path.") from error
    if name_or_file not in recipe_names():
        raise UsageError(
            f"There is no recipe {name_or_file!r}.",
            f"Take one of {', '.join(recipe_names())}, or the path of a .toml file.",
        )
    file = resources.files("pipelines.training") / "recipes" / f"{name_or_file}.toml"
    return name_or_file, file.read_text(encoding="utf-8")


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Read TOML text.

    Raises:
        UsageError: If it is none, with the line.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"The recipe {where} is no TOML: {error}.", "Correct it.") from error


def load_recipe(name_or_file: str = "default", overrides: Mapping[str, str] | None = None) -> Recipe:
    """Load a recipe by name or from a TOML file.

    Args:
        name_or_file: A published name, or the path of a `.toml` file; keys that a file leaves out are `default`'s.
        overrides: `--set`: keys and values as text.

    Raises:
        UsageError: For an unknown name, key or value, listing what is legal, and for keys that contradict each other.
    """
    name, text = read_recipe(name_or_file)
    default = _keys(read_recipe("default")[1], "default")
    said = {key: from_text(key, value) for key, value in (overrides or {}).items()}
    known = {**default, **_keys(text, name_or_file), **said}
    values: dict[str, Any] = {field.name: known[field.name] for field in fields(Recipe) if field.name != "name"}
    return Recipe(name=name, **values)


def _keys(text: str, where: str) -> dict[str, Value]:
    """Keys and values of a recipe's file, of their proper types, without what its paper reports."""
    table = parse_toml(text, where)
    return {key: from_toml(key, value) for key, value in table.items() if (key, type(value)) != (PUBLISHED, dict)}
