"""Where in a picture a network finds what speaks for a class: Grad-CAM.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
equations 1 and 2: each channel of the last feature map is weighted by the mean gradient of the class's logit with
respect to it, and what the weighted sum leaves above zero speaks for the class.

It shows where, not why, and no more finely than the feature map: seven by seven places for a picture of 224 pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.models.backbones import import_keras
from pipelines.models.heads import pool
from pipelines.models.rebuild import Rebuilt

Maps = NDArray[np.float32]


def grad_cam(network: Rebuilt, pixels: NDArray[np.uint8], classes: NDArray[np.int64]) -> Maps:
    """Heat maps of some pictures, one class each.

    Args:
        network: With its trained weights; it answers in inference mode.
        pixels: uint8 `[n, S, S, 3]`, as the model sees them.
        classes: Number of the class to explain for each, int64 `[n]`. The single unit of a sigmoid head speaks for
            class 1, and turned round for class 0.

    Returns:
        float32 `[n, h, w]`, 0-1, at the places of the backbone's feature map: 1 where most of each picture's evidence
        lies. A map is all 0 where nothing in the picture speaks for the class.

    Raises:
        ValueError: If pictures and classes do not fit each other or the network.
    """
    side, count = network.spec.input_size, network.head_spec.classes
    if pixels.shape != (len(classes), side, side, 3) or not ((classes >= 0) & (classes < count)).all():
        raise ValueError(f"pictures of shape {pixels.shape} and {len(classes)} classes for {side} px and {count}")
    # One at a time: Keras holds every layer's answer until the last is there, 90 MB for a picture in MobileNetV2.
    maps = [_raw_map(network, picture, int(label)) for picture, label in zip(pixels, classes, strict=True)]
    raw = np.stack(maps) if maps else np.empty((0, *network.backbone.output_shape[1:3]), np.float32)
    highest = raw.max(axis=(1, 2), keepdims=True, initial=0)
    scaled: Maps = np.divide(raw, highest, out=np.zeros_like(raw), where=highest > 0)
    return scaled


def _raw_map(network: Rebuilt, picture: NDArray[np.uint8], label: int) -> Maps:
    """Equation 2 for one picture, before it is brought to 0-1: float32 `[h, w]`, not negative."""
    import_keras()
    import tensorflow as tf

    features = network.backbone(picture[np.newaxis].astype(np.float32), training=False)
    with tf.GradientTape() as tape:
        tape.watch(features)
        logits = network.head(pool(features, network.head_spec.pooling), training=False)
        one = logits.shape[-1] == 1
        spoken_for = logits[0, 0] * (1.0 if label else -1.0) if one else logits[0, label]
    weights = tf.reduce_mean(tape.gradient(spoken_for, features), axis=(1, 2), keepdims=True)
    return np.asarray(tf.nn.relu(tf.reduce_sum(weights * features, axis=-1))[0], np.float32)
