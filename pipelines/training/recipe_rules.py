"""The keys of a recipe: what each means, what it may hold, and which of them contradict each other."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.errors import UsageError
from pipelines.evaluation.metrics import METRIC_NAMES
from pipelines.images.augment import FILLS, FLIPS
from pipelines.models.backbones import BACKBONES, MAX_ALPHA, MAX_SIZE, BackboneSpec
from pipelines.models.heads import ACTIVATIONS, POOLINGS, STARTS

Value = str | int | float | bool | tuple[str, ...]

LOSSES = ("categorical_crossentropy", "binary_crossentropy")
NO_AUGMENTATION: dict[str, Value] = {"rotation": 0.0, "shift": 0.0, "shear": 0.0, "zoom": 0.0, "flip": "none"}
"""The keys that change training images, with the value at which each changes nothing."""


@dataclass(frozen=True)
class Rule:
    """What a key may hold.

    Attributes:
        kind: The type of the value; an int is accepted where a float is asked for.
        text: The rule in words, for the error message and the documentation.
        meaning: What the key decides, for the documentation.
        holds: Whether a value of that type is legal.
        names: All legal values, where they are names.
    """

    kind: type
    text: str
    meaning: str
    holds: Callable[[Value], bool] = lambda _value: True
    names: tuple[str, ...] = ()


def _one_of(names: tuple[str, ...], meaning: str) -> Rule:
    return Rule(str, "one of " + ", ".join(names), meaning, lambda value: value in names, names)


def _yes(meaning: str) -> Rule:
    return Rule(bool, "true or false", meaning)


def _within(kind: type, low: float, high: float, text: str, meaning: str) -> Rule:
    return Rule(kind, text, meaning, lambda value: isinstance(value, int | float) and low <= value <= high)


def _number(low: float, high: float, meaning: str) -> Rule:
    return _within(float, low, high, f"a number from {low:g} to {high:g}", meaning)


def _whole(low: int, high: int, meaning: str) -> Rule:
    return _within(int, low, high, f"a whole number from {low} to {high}", meaning)


def _rate(meaning: str) -> Rule:
    above_zero = "a number above 0 and at most 10"
    return Rule(float, above_zero, meaning, lambda value: isinstance(value, float) and 0 < value <= 10)


RULES: dict[str, Rule] = {
    "backbone": _one_of(tuple(BACKBONES), "the pretrained network that turns pixels into features"),
    "alpha": _number(
        0.05,
        MAX_ALPHA,
        "width of a MobileNetV2, 1 for the others; published weights exist for 0.35, 0.5, 0.75, 1.0, 1.3 and 1.4",
    ),
    "input_size": _whole(32, MAX_SIZE, "side of the square input, pixels"),
    "scaling": _one_of(("backbone", "0..1"), "pixels as the backbone's published weights want them, or 0 to 1"),
    "trainable_layers": _whole(
        0, 10_000, "how many of the backbone's last layers are trained; 0 none, more than there are: all"
    ),
    "pooling": _one_of(POOLINGS, "what turns the feature map into one vector"),
    "dense_units": _whole(0, 8192, "width of a hidden layer; 0 for none"),
    "activation": _one_of(ACTIVATIONS, "of that hidden layer"),
    "batch_norm": _yes("batch normalisation after the hidden layer, or after pooling where there is no hidden layer"),
    "dropout": _number(0.0, 0.95, "share of the inputs of the last layer that training drops"),
    "optimizer": _one_of(("adam", "adamw", "sgd"), "the update rule"),
    "momentum": _number(0.0, 0.99, "of `sgd`; 0 for none"),
    "weight_decay": _number(0.0, 1.0, "of `adamw`; 0 for none"),
    "loss": _one_of(
        LOSSES, "one output a class with softmax, or a single sigmoid unit, which can tell two classes only"
    ),
    "label_smoothing": _number(0.0, 0.5, "share of each label that is spread over all classes"),
    "mixup": _number(
        0.0, 1.0, "alpha of the Beta distribution by which pairs of images are mixed where training begins; 0 for none"
    ),
    "learning_rate": _rate("size of a step, before schedule and plateau"),
    "schedule": _one_of(("constant", "cosine"), "whether the learning rate stays or falls along a half cosine to 0"),
    "warmup_epochs": _whole(0, 100_000, "epochs, after the first phase, over which the learning rate rises from 0"),
    "head_start": _one_of(
        STARTS,
        "weights of the last layer before training: drawn, or none, so that a random head does not shake the backbone",
    ),
    "head_epochs": _whole(0, 100_000, "a first phase of so many of the epochs, in which the head alone is trained"),
    "head_learning_rate": _rate("learning rate of that first phase; without one it has no effect"),
    "epochs": _whole(1, 100_000, "at most so many passes over the training part"),
    "batch_size": _whole(1, 65_536, "images a step, over all workers together"),
    "class_balance": _one_of(
        ("none", "weights", "oversample"),
        "each image counts the same, each class does, or images of rarer classes are drawn again at random",
    ),
    "weight_averaging": _number(
        0.0, 0.9999, "decay of a moving average of the weights, which is then validated and kept; 0 for none"
    ),
    "rotation": _number(0.0, 180.0, "training images are turned by up to so many degrees either way"),
    "shift": _number(0.0, 0.5, "moved by up to this share of their side, along both axes"),
    "shear": _number(0.0, 0.5, "leant to either side by up to this tangent of the angle"),
    "zoom": _number(0.0, 0.9, "scaled by a factor from 1 - zoom to 1 + zoom, each axis by its own"),
    "flip": _one_of(FLIPS, "mirrored at random"),
    "fill": _one_of(FILLS, "what stands where a moved image leaves a gap; `constant` is black"),
    "variants": _whole(
        0,
        1000,
        "how many changed copies of each training image are computed once and taken in turn; "
        "0 draws anew in every epoch and runs the whole network each time",
    ),
    "early_stopping": _whole(0, 100_000, "epochs without improvement of `metric` before training ends; 0 never"),
    "metric": _one_of(METRIC_NAMES, "the figure on validation by which epochs are compared"),
    "restore_best": _yes("whether the weights of the best epoch by `metric` are kept, or those of the last"),
    "reduce_on_plateau": _whole(
        0, 100_000, "epochs without improvement of `reduce_metric` before the learning rate is reduced; 0 never"
    ),
    "reduce_factor": _number(0.01, 0.99, "what the learning rate is then multiplied by"),
    "reduce_metric": _one_of(METRIC_NAMES, "the figure on validation that decides it"),
    "flip_at_prediction": _yes(
        "whether the finished scorer averages an image and its mirror image, at twice the cost a score"
    ),
    "validation_share": _number(
        0.05, 0.5, "share of all images that chooses the epoch and fits temperature and threshold"
    ),
    "test_share": _number(0.0, 0.5, "share of all images that training never sees"),
    "exclude": Rule(
        tuple,
        "a list of glob patterns, none of them empty",
        "files that are no training images, such as `*_mask*`",
        lambda value: isinstance(value, tuple) and all(value),
    ),
}
"""Every key of a recipe, in the order of the documentation."""


def from_toml(key: str, value: Any) -> Value:
    """A TOML value as the type that its key asks for.

    Raises:
        UsageError: If there is no such key, or its value is of another type.
    """
    kind = _rule(key).kind
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if isinstance(value, str | int | float) and type(value) is kind:
        return value
    raise _wrong(key, value)


def from_text(key: str, text: str) -> Value:
    """A value of `--set` as the type that its key asks for.

    Raises:
        UsageError: If there is no such key, or the text is no value of that type.
    """
    kind = _rule(key).kind
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.strip().lower()]
        if kind is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        return text if kind is str else kind(text)
    except (ValueError, KeyError):
        raise _wrong(key, text) from None


def check_values(values: Mapping[str, Value]) -> None:
    """Check every key against its rule, and the keys against each other.

    Raises:
        UsageError: Naming the key, its rule and the value received, or the keys that contradict each other.
    """
    for key, value in values.items():
        rule = RULES[key]
        finite = not isinstance(value, float) or math.isfinite(value)
        if type(value) is not rule.kind or not finite or not rule.holds(value):
            raise _wrong(key, value)
    _check_backbone(values)
    _check_optimizer(values)
    _check_schedule(values)
    _check_batches(values)
    if values["variants"] and not changes_images(values):
        raise UsageError(
            f"variants = {values['variants']} has no meaning in a recipe that leaves training images unchanged.",
            "Set variants to 0, or one of rotation, shift, shear, zoom and flip.",
        )
    validation, test = values["validation_share"], values["test_share"]
    assert isinstance(validation, float) and isinstance(test, float)
    if validation + test > 0.8:
        raise UsageError(
            f"validation_share and test_share leave less than a fifth of the images for training "
            f"({validation:g} + {test:g}).",
            "Make them smaller.",
        )


def changes_images(values: Mapping[str, Value]) -> bool:
    """Whether training images are rotated, shifted, sheared, zoomed or flipped."""
    return any(values[key] != neutral for key, neutral in NO_AUGMENTATION.items())


def _check_backbone(values: Mapping[str, Value]) -> None:
    """Sizes and widths that this backbone does not have; the limits are those of the backbone itself."""
    backbone, alpha, size = values["backbone"], values["alpha"], values["input_size"]
    assert isinstance(backbone, str) and isinstance(alpha, float) and isinstance(size, int)
    try:
        BackboneSpec(backbone, alpha, size)
    except UsageError as error:
        raise UsageError(error.message, error.cure or "Set alpha and input_size to what the backbone takes.") from None


def _check_optimizer(values: Mapping[str, Value]) -> None:
    for key, owner in (("momentum", "sgd"), ("weight_decay", "adamw")):
        if values[key] and values["optimizer"] != owner:
            raise UsageError(
                f"{key} = {values[key]:g} belongs to the optimizer {owner}, and this recipe's is "
                f"{values['optimizer']}.",
                f"Set {key} to 0, or optimizer to {owner}.",
            )


def _check_schedule(values: Mapping[str, Value]) -> None:
    epochs, head, warmup = (values[key] for key in ("epochs", "head_epochs", "warmup_epochs"))
    assert isinstance(epochs, int) and isinstance(head, int) and isinstance(warmup, int)
    if head >= epochs:
        raise UsageError(
            f"head_epochs = {head} leaves nothing of {epochs} epochs for what follows the first phase.",
            f"Set head_epochs to at most {epochs - 1}, or epochs to more than {head}.",
        )
    if warmup and warmup >= epochs - head:
        raise UsageError(
            f"warmup_epochs = {warmup} is all that training has after its first phase ({epochs} epochs, of which "
            f"{head} for the head alone).",
            f"Set warmup_epochs to at most {epochs - head - 1}, or epochs to more than {warmup + head}.",
        )
    if values["reduce_on_plateau"] and values["schedule"] == "cosine":
        raise UsageError(
            f"reduce_on_plateau = {values['reduce_on_plateau']} and schedule = cosine both decide the learning rate.",
            "Set reduce_on_plateau to 0, or schedule to constant.",
        )


def _check_batches(values: Mapping[str, Value]) -> None:
    if values["batch_size"] == 1:
        for key, why in (("mixup", "has nothing to mix an image with"), ("batch_norm", "has nothing to average over")):
            if values[key]:
                raise UsageError(f"{key} {why} in batches of one image.", f"Set batch_size to 2 or more, or {key} off.")


def _rule(key: str) -> Rule:
    if key not in RULES:
        cure = f"{_nearest(key, tuple(RULES))}Its keys are {', '.join(RULES)}."
        raise UsageError(f"A recipe has no key {key!r}.", cure)
    return RULES[key]


def _wrong(key: str, value: object) -> UsageError:
    rule = RULES[key]
    cure = _nearest(value, rule.names).rstrip() or f"Set {key} accordingly."
    return UsageError(f"The recipe's {key} must be {rule.text}; it is {value!r}.", cure)


def _nearest(said: object, names: tuple[str, ...]) -> str:
    """What was probably meant, as a sentence with a space behind it; empty where nothing is near."""
    near = difflib.get_close_matches(said.lower(), names, n=1) if isinstance(said, str) else []
    return f"Did you mean {near[0]}? " if near else ""
