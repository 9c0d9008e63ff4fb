"""What a training worker is told: everything that decides the weights, and where the arrays lie."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from pipelines.training.history import VALIDATION_COLUMNS
from pipelines.training.recipes import Recipe

COMPILED = (
    *("backbone", "alpha", "input_size", "scaling", "trainable_layers", "pooling", "head_start"),
    *("dense_units", "activation", "batch_norm", "dropout", "loss", "label_smoothing"),
    *("optimizer", "momentum", "weight_decay"),
)
"""Keys of a recipe whose values a compiled step holds, or that decide the first weights."""


@dataclass(frozen=True)
class Arrays:
    """Places of the `.npy` files that a fit reads.

    Attributes:
        inputs: Training images as they enter the trained part: `[N, V, D]` float32, float16 or uint8 (V variants of
            each image), or `[N, D]` for one. Pixels are uint8, D = S·S·3.
        labels: Their class numbers, int64 `[N]`.
        keys: A number from each image's content (`image_key`), int64 `[N]`: decides which variant an epoch takes.
        validation_inputs: `[M, 1, D]` or `[M, D]`, never augmented.
        validation_labels: int64 `[M]`.
    """

    inputs: str
    labels: str
    keys: str
    validation_inputs: str
    validation_labels: str


@dataclass(frozen=True)
class FitJob:
    """One fit, the same for every worker; plain data that can be sent anywhere.

    Attributes:
        recipe: How to train.
        classes: K, at least 2.
        positive: Numbers of the positive classes, for the figures of the history.
        class_weights: Weight of each class in the loss, `[K]`.
        seed: Decides order, dropout, augmentation and the head's first weights.
        pixels: Whether the inputs are pixels and the whole backbone runs at each step.
        arrays: Where the images are.
        checkpoint: The one file that is written after epochs and read at the start.
        backbone_weights: `.weights.h5` of the backbone; None where no part of it runs in the worker.
        start: `.npz` of the trained part's first weights, in the order of the trainee's variables; None: those of the
            backbone and a fresh head.
        until: The epoch after which training ends whatever validation says; None: the recipe decides.
        factors: What the learning rate of each epoch is multiplied by, in place of what the plateau would make of
            validation; () for the plateau.

    Raises:
        UsageError: If the recipe's loss is not one of so many classes.
        ValueError: If the parts do not fit together.
    """

    recipe: Recipe
    classes: int
    positive: tuple[int, ...]
    class_weights: tuple[float, ...]
    seed: int
    pixels: bool
    arrays: Arrays
    checkpoint: str
    backbone_weights: str | None = None
    start: str | None = None
    until: int | None = None
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.recipe.check_classes(self.classes)
        if self.classes < 2 or len(self.class_weights) != self.classes or self.seed < 0:
            raise ValueError(f"{self.classes} classes, {len(self.class_weights)} weights, seed {self.seed}")
        if not self.positive or not all(0 <= number < self.classes for number in self.positive):
            raise ValueError(f"positive classes {self.positive} of {self.classes}")
        if self.until is not None and not 1 <= self.until <= self.recipe.epochs:
            raise ValueError(f"until epoch {self.until} of {self.recipe.epochs}")
        if self.factors and len(self.factors) < (self.until or self.recipe.epochs):
            raise ValueError(f"{len(self.factors)} factors of the learning rate")
        if self.fresh and not self.pixels:
            raise ValueError("augmentation drawn afresh needs pixels")
        if self.runs_backbone and self.backbone_weights is None:
            raise ValueError("the backbone's weights are missing")

    @property
    def fresh(self) -> bool:
        """Whether every image is augmented anew at each step, instead of taking a cached variant."""
        return bool(self.recipe.augments) and self.recipe.variants == 0

    @property
    def runs_backbone(self) -> bool:
        """Whether layers of the backbone run at each step."""
        return self.pixels or self.recipe.trainable_layers > 0

    def structure(self) -> str:
        """A hash of what one compiled step is made of, and of the first weights; the rest is told it at each step.

        Told are the learning rate and everything that decides it, the number of epochs and which of them is kept, the
        order, the size and the mixture of the batches, and how images are moved.
        """
        recipe = {key: value for key, value in asdict(self.recipe).items() if key in COMPILED}
        recipe |= {"mixup": self.recipe.mixup > 0, "weight_averaging": self.recipe.weight_averaging > 0}
        said = [recipe, self.classes, self.class_weights, self.seed, self.pixels, asdict(self.arrays)]
        return hashlib.sha256(json.dumps([*said, self.backbone_weights, self.start]).encode()).hexdigest()

    def key(self) -> str:
        """A hash of what decides the weights beside the arrays' content; a checkpoint of another key is not used."""
        said = asdict(self)
        del said["arrays"], said["checkpoint"], said["backbone_weights"], said["start"]
        said["figures"] = list(VALIDATION_COLUMNS)  # the rows of one history have the same columns
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
