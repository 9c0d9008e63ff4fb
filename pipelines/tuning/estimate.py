"""About how long a plan takes, before anything was built or read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.training.recipes import Recipe
from pipelines.tuning.plan import PIXELS, Pass, Plan
from pipelines.tuning.points import Training


@dataclass(frozen=True)
class Rate:
    """What a backbone costs on one core, at 224 px and width 1.

    Attributes:
        answered: Seconds an image by LiteRT.
        forward: Seconds an image in inference mode by TensorFlow.
        trained: Seconds an image of a training step of all of it.
        built: Seconds to build and compile it.
        layers: How many it has, as `trainable_layers` counts them.
        features: Channels of its feature map.
    """

    answered: float
    forward: float
    trained: float
    built: float
    layers: int
    features: int


RATES = {
    "mobilenet_v2": Rate(0.0063, 0.0147, 0.0259, 5, 154, 1280),
    "efficientnet_v2_b0": Rate(0.0164, 0.0169, 0.0509, 7, 268, 1280),
    "resnet50_v2": Rate(0.0733, 0.0727, 0.1224, 15, 190, 2048),
    "vgg16": Rate(0.2866, 0.1939, 0.3729, 13, 19, 512),
}
"""Measured with drawn weights on one core of a machine with AVX-512, batches of 8, seconds of the processor."""

_UNKNOWN = RATES["resnet50_v2"]
_MEASURED_SIDE, _STRIDE = 224, 32
_WIDTH = 1.3
"""Power of alpha that the seconds grow with: widths 0.35 and 1.4 take 0.36 and 2.0 times those of width 1."""

_READ = 0.003
"""To read and scale one image of about a megapixel."""
_STARTED = 10.0
"""Ray and TensorFlow, once."""
_BEGUN = 0.5
"""A training in an actor that ran one before: most of it is TensorFlow tracing the step."""
_EPOCH = 0.005
"""Beside the steps: to draw the order and measure validation."""
_STEP, _STEP_NUMBER, _IMAGE_NUMBER = 0.00012, 4e-9, 6e-11
"""A step of a head; and for each number in its layers, to update it once a step and to multiply with it once an image.

Measured on 2,110 images in batches of 32: 12 ms an epoch without a hidden layer, 48 ms with one of 100 units, 570 ms
with one of 1,024; batches of 8 and 256 with 100 units take 140 and 24 ms.
"""
_CALIBRATED, _COMPILED, _SMALL = 800, 3, 1.5
"""Of the best of a backbone: forward passes that calibrate its 8-bit scorer, what all compiling takes of building, and
what both scorers take of one."""


def estimate(plan: Plan, images: int, cpus: int) -> float:
    """Seconds that a plan takes, roughly.

    From rates that were measured on one core of one machine (see `RATES`), with seconds in proportion to the area of
    the input, to the trained share of the backbone's layers, and to the cores. Ten head trainings on that machine took
    0.7 to 1.6 times what is said here, and the recipe `default` on 2,000 images 0.95 times. It is further off on
    another processor or a GPU, with images that come from far, where early stopping ends trainings, where images are
    drawn again to balance classes, where the data have a split of their own, and where other work shares the cores.

    Args:
        plan: What is left to do.
        images: How many there are in all parts.
        cpus: Cores of the cluster, at least 1.

    Returns:
        Seconds; 0 where nothing is left.
    """
    if not plan.trainings:
        return 0.0
    trainings = [_training(training, images) for training in plan.trainings]
    finishing: dict[str, float] = {}
    for training in plan.trainings:
        backbone, seconds = training.recipe.backbone, _finishing(training.recipe, images, cpus)
        finishing[backbone] = max(finishing.get(backbone, 0.0), seconds)
    return (
        _STARTED
        + sum(_pass(one, images, cpus) for one in plan.passes)
        + max(sum(trainings) / cpus, *trainings)
        + sum(finishing.values())
    )


def _pass(one: Pass, images: int, cpus: int) -> float:
    """To keep what trainings read; moved copies are made of training images, and each is answered by itself."""
    recipe, rate = one.recipe, _rate(one.recipe)
    copies = one.copies * _train_share(recipe)
    answered = 0.0 if one.kind == PIXELS else rate.answered * _lower_share(recipe)
    return rate.built + images * (_READ + (1 + copies) * answered) / cpus


def _training(training: Training, images: int) -> float:
    """Its epochs, on one core."""
    recipe = training.recipe
    train = images * _train_share(recipe)
    steps = train / recipe.batch_size
    numbers = _head_numbers(recipe)
    head = steps * (_STEP + numbers * _STEP_NUMBER) + train * numbers * _IMAGE_NUMBER
    return _BEGUN + recipe.epochs * (_EPOCH + head + _layers(recipe, train, images * recipe.validation_share))


def _layers(recipe: Recipe, train: float, validated: float) -> float:
    """What the backbone's layers cost an epoch: those above the cut, and all where pixels are kept."""
    rate, fresh = _rate(recipe), recipe.augments and not recipe.variants
    trained = 1 - _lower_share(recipe)
    forward = 1.0 if fresh else trained
    return train * (trained * rate.trained + (forward - trained) * rate.forward) + validated * forward * rate.forward


def _finishing(recipe: Recipe, images: int, cpus: int) -> float:
    """To compile the best of a backbone, and to answer validation by its scorers."""
    rate = _rate(recipe)
    validated = images * recipe.validation_share * (_READ + _SMALL * rate.answered)
    return _COMPILED * rate.built + _CALIBRATED * rate.answered + validated / cpus


def _rate(recipe: Recipe) -> Rate:
    """The backbone's, at the recipe's size and width; one that nobody measured is taken for a ResNet50V2."""
    rate = RATES.get(recipe.backbone, _UNKNOWN)
    work = (recipe.input_size / _MEASURED_SIDE) ** 2 * recipe.alpha**_WIDTH
    return Rate(rate.answered * work, rate.forward * work, rate.trained * work, rate.built, rate.layers, rate.features)


def _lower_share(recipe: Recipe) -> float:
    """The share of the backbone that stays as it is."""
    return 1 - min(1.0, recipe.trainable_layers / _rate(recipe).layers)


def _train_share(recipe: Recipe) -> float:
    return 1 - recipe.validation_share - recipe.test_share


def _head_numbers(recipe: Recipe) -> float:
    """Numbers in the layers of the head, of two classes."""
    positions = math.ceil(recipe.input_size / _STRIDE) ** 2 if recipe.pooling == "flatten" else 1
    features = _rate(recipe).features * max(1.0, recipe.alpha) * positions
    return features * recipe.dense_units + recipe.dense_units * 2 if recipe.dense_units else features * 2
