"""Keras' `ImageDataGenerator` moves pictures as we do, and draws between the same limits."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.images.augment import Augmentation, Movement, warp
from pipelines.models.backbones import import_keras

SIDE = 40


# `wrap` is left out: SciPy, which Keras takes, repeats a picture one pixel short.
@pytest.mark.parametrize("fill", ["nearest", "reflect", "constant"])
def test_a_movement_is_that_of_keras(fill: str) -> None:
    import_keras()
    import tensorflow as tf

    picture = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    moved = Movement(degrees=17, right=0.1, down=-0.05, across=0.85, along=1.2)
    # Keras' shifts say where a pixel comes from.
    expected = tf.keras.preprocessing.image.apply_affine_transform(
        picture.astype(np.float32), 17, -0.1 * SIDE, 0.05 * SIDE, 0, 0.85, 1.2, 0, 1, 2, fill, 0.0, order=1
    )
    difference = np.abs(warp(picture, moved, fill).astype(np.float32) - expected)
    # SciPy does not interpolate between the edge of the picture and the black around it.
    assert (difference > 0.51).mean() <= (0.07 if fill == "constant" else 0) and np.median(difference) < 0.3


def test_the_limits_are_those_of_keras() -> None:
    import_keras()
    import tensorflow as tf

    theirs = tf.keras.preprocessing.image.ImageDataGenerator(
        rotation_range=20, width_shift_range=0.1, height_shift_range=0.1, zoom_range=0.2, horizontal_flip=True
    )
    drawn = [theirs.get_random_transform((SIDE, SIDE, 3), seed=number) for number in range(2000)]
    ours = [Augmentation(20, 0.1, 0, 0.2, "horizontal").draw((number,)) for number in range(2000)]
    # Two samples of 2,000 from one uniform distribution: their extremes are within 2 % of its width.
    for name, mine, scale in (
        ("theta", "degrees", 1),
        ("tx", "right", SIDE),
        ("ty", "down", SIDE),
        ("zx", "across", 1),
    ):
        his, own = [one[name] / scale for one in drawn], [getattr(one, mine) for one in ours]
        width = max(his) - min(his)
        assert min(own) == pytest.approx(min(his), abs=0.02 * width)
        assert max(own) == pytest.approx(max(his), abs=0.02 * width)
    assert abs(sum(one["flip_horizontal"] for one in drawn) - sum(one.mirrored for one in ours)) < 150
