"""Recipes: everything that decides how a model is trained, but the data and the seed, as flat keys of a TOML file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from pipelines.errors import UsageError
from pipelines.models.backbones import BACKBONES, MAX_ALPHA
from pipelines.models.heads import ACTIVATIONS, POOLINGS

METRICS = ("log_loss", "accuracy", "balanced_accuracy", "roc_auc")

Value = str | int | float | bool | tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """What a key may hold.

    Attributes:
        kind: The type of the value; an int is accepted where a float is asked for.
        text: The rule in words, for the error message.
        holds: Whether a value of that type is legal.
    """

    kind: type
    text: str
    holds: Callable[[Value], bool] = lambda _value: True


def _one_of(*names: str) -> Rule:
    return Rule(str, "one of " + ", ".join(names), lambda value: value in names)


def _within(kind: type, low: float, high: float, text: str) -> Rule:
    return Rule(kind, text, lambda value: isinstance(value, int | float) and low <= value <= high)


RULES: dict[str, Rule] = {
    "backbone": _one_of(*BACKBONES),
    "alpha": _within(float, 0.05, MAX_ALPHA, f"a number from 0.05 to {MAX_ALPHA:g}"),
    "input_size": _within(int, 32, 1024, "a whole number of pixels from 32 to 1024"),
    "scaling": _one_of("backbone", "0..1"),
    "trainable_layers": _within(int, 0, 0, "0: this release trains the head on a frozen backbone"),
    "pooling": _one_of(*POOLINGS),
    "dense_units": _within(int, 0, 8192, "a whole number from 0 (no hidden layer) to 8192"),
    "activation": _one_of(*ACTIVATIONS),
    "batch_norm": Rule(bool, "true or false"),
    "dropout": _within(float, 0.0, 0.95, "a number from 0 to 0.95"),
    "optimizer": _one_of("adam", "adamw", "sgd"),
    "learning_rate": Rule(
        float, "a number above 0 and at most 10", lambda value: isinstance(value, float) and 0 < value <= 10
    ),
    "epochs": _within(int, 1, 100_000, "a whole number from 1"),
    "batch_size": _within(int, 1, 65_536, "a whole number from 1 to 65536"),
    "class_balance": _one_of("none", "weights"),
    "early_stopping": _within(int, 0, 100_000, "epochs without improvement, a whole number; 0 switches it off"),
    "metric": _one_of(*METRICS),
    "validation_share": _within(float, 0.05, 0.5, "a share from 0.05 to 0.5"),
    "test_share": _within(float, 0.0, 0.5, "a share from 0 to 0.5"),
    "exclude": Rule(tuple, "a list of glob patterns"),
}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; it checks itself.

    Attributes:
        name: Where it comes from: a published name, or the name of the file.
        backbone: A key of the backbones' table.
        alpha: Width of a MobileNetV2; the others ignore it.
        input_size: Side of the square input, pixels.
        scaling: Pixels as the backbone's own weights want them, or 0 to 1.
        trainable_layers: How many of the backbone's last layers are trained.
        pooling: What turns the feature map into one vector.
        dense_units: Width of a hidden layer; 0 for none.
        activation: Of that hidden layer.
        batch_norm: Whether the hidden layer is followed by batch normalisation.
        dropout: Share of the head's inputs that is dropped while training.
        optimizer: Name of the update rule.
        learning_rate: Constant step size.
        epochs: At most so many passes over the training part.
        batch_size: Images a step.
        class_balance: `weights` weighs each class by the inverse of its frequency.
        early_stopping: Epochs without improvement of `metric` on validation before training ends; 0 never.
        metric: What validation is judged by; the best epoch's weights are kept.
        validation_share: Share of all images that fits temperature and threshold and stops training.
        test_share: Share of all images that training never sees.
        exclude: Glob patterns of files that are no training images.
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
    learning_rate: float
    epochs: int
    batch_size: int
    class_balance: str
    early_stopping: int
    metric: str
    validation_share: float
    test_share: float
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every key against its rule.

        Raises:
            UsageError: Naming the key, its rule and the value received.
        """
        for key in RULES:
            _check(key, getattr(self, key))
        if self.batch_norm and not self.dense_units:
            raise UsageError(
                "The recipe's batch_norm belongs to the hidden layer, and dense_units is 0.", "Set one of the two."
            )
        if self.validation_share + self.test_share > 0.8:
            raise UsageError(
                f"validation_share and test_share leave less than a fifth of the images for training "
                f"({self.validation_share} + {self.test_share}).",
                "Make them smaller.",
            )

    def values(self) -> dict[str, Value]:
        """Every key and its value, in the order of the documentation."""
        return {key: getattr(self, key) for key in RULES}


def recipe_names() -> list[str]:
    """Names of the recipes that come with the program, sorted."""
    files = resources.files("pipelines.training") / "recipes"
    return sorted(file.name.removesuffix(".toml") for file in files.iterdir() if file.name.endswith(".toml"))


def load_recipe(name_or_file: str = "default", overrides: Mapping[str, str] | None = None) -> Recipe:
    """Load a recipe by name or from a TOML file.

    Args:
        name_or_file: A published name, or the path of a `.toml` file; keys that a file leaves out are `default`'s.
        overrides: `--set`: keys and values as text.

    Raises:
        UsageError: For an unknown name, key or value, listing what is legal.
    """
    default = _parse(_published("default"), "default")
    if name_or_file.endswith(".toml"):
        try:
            text = Path(name_or_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"The recipe file {name_or_file} cannot be read.", "Check its path.") from error
        name, own = Path(name_or_file).stem, _parse(text, name_or_file)
    elif name_or_file in recipe_names():
        name, own = name_or_file, _parse(_published(name_or_file), name_or_file)
    else:
        raise UsageError(
            f"There is no recipe {name_or_file!r}.",
            f"Take one of {', '.join(recipe_names())}, or the path of a .toml file.",
        )
    said = {key: _from_text(key, text) for key, text in (overrides or {}).items()}
    known = {**default, **own, **said}
    values: dict[str, Any] = {field.name: known[field.name] for field in fields(Recipe) if field.name != "name"}
    return Recipe(name=name, **values)


def _published(name: str) -> str:
    file = resources.files("pipelines.training") / "recipes" / f"{name}.toml"
    return file.read_text(encoding="utf-8")


def _parse(text: str, where: str) -> dict[str, Value]:
    """Read TOML text to keys and values of their proper types."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"The recipe {where} is no TOML: {error}.", "Correct it.") from error
    return {key: _typed(key, value) for key, value in table.items()}


def _rule(key: str) -> Rule:
    if key not in RULES:
        raise UsageError(f"A recipe has no key {key!r}.", f"Its keys are {', '.join(RULES)}.")
    return RULES[key]


def _typed(key: str, value: Any) -> Value:
    """A TOML value as the type that its key asks for; what does not fit is left as it is, for `_check` to refuse."""
    kind = _rule(key).kind
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if isinstance(value, str | int | float) and type(value) is kind:
        return value
    raise _wrong(key, value)


def _from_text(key: str, text: str) -> Value:
    """A value of `--set` as the type that its key asks for."""
    kind = _rule(key).kind
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.strip().lower()]
        if kind is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        return text if kind is str else kind(text)
    except (ValueError, KeyError):
        raise _wrong(key, text) from None


def _check(key: str, value: Value) -> None:
    rule = RULES[key]
    finite = not isinstance(value, float) or math.isfinite(value)
    if type(value) is not rule.kind or not finite or not rule.holds(value):
        raise _wrong(key, value)


def _wrong(key: str, value: object) -> UsageError:
    return UsageError(f"The recipe's {key} must be {RULES[key].text}; it is {value!r}.", f"Set {key} accordingly.")
