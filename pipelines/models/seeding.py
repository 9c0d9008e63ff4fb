"""Weights from a seed alone that can be learned on: `--weights none`.

A deep network with random kernels and untouched batch normalisation answers features with a standard deviation of
about 1e-11. Here the kernels are drawn from the seed and every layer is then brought to mean 0 and deviation 1 on
calibration images: through the statistics of its batch normalisation or, where a network has none, through the scale
of its kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.models.golden import golden_images

# More images hardly change the statistics; the widest layers take 5 MB (VGG16: 13 MB) an image and tensor.
MAX_IMAGES = 32
MAX_IMAGES_KERNELS = 12
_EPSILON = 1e-6


def seed_weights(model: Any, seed: int) -> None:
    """Draw every kernel from a normal distribution of variance 2 / fan-in (He et al. 2015); biases 0, scales 1.

    Args:
        model: A built `keras.Model`.
        seed: The same seed gives the same arrays, whatever ran before in this process.
    """
    for number, layer in enumerate(model.layers):
        arrays = layer.get_weights()
        if not arrays or "kernel" not in layer.weights[0].name:
            continue
        kernel = arrays[0]
        depthwise = "Depthwise" in type(layer).__name__
        fan_in = int(np.prod(kernel.shape[:2] if depthwise else kernel.shape[:-1]))
        drawn = np.random.default_rng([seed, number]).standard_normal(kernel.shape) * np.sqrt(2 / fan_in)
        layer.set_weights([drawn.astype(np.float32), *(np.zeros_like(array) for array in arrays[1:])])


def calibrate(model: Any, images: npt.NDArray[np.uint8]) -> None:
    """Bring every layer to mean 0 and deviation 1 on these images and a few synthetic ones.

    The synthetic ones are among them because images of one archive are much alike: a picture of another kind would
    leave each layer a little larger than the last, and EfficientNetV2B0 with features in the thousands.

    Args:
        model: The seeded `keras.Model`, taking pixels 0-255.
        images: uint8 [N, S, S, 3]; the first few are used (`MAX_IMAGES`).
    """
    normalised = any(type(layer).__name__ == "BatchNormalization" for layer in model.layers)
    count = MAX_IMAGES if normalised else MAX_IMAGES_KERNELS
    batch = np.concatenate([golden_images(images.shape[1]), images])[:count].astype(np.float32)
    if normalised:
        _calibrate_statistics(model, batch)
    else:
        _calibrate_kernels(model, batch)


def _calibrate_statistics(model: Any, batch: npt.NDArray[np.float32]) -> None:
    """One pass in training mode in which the moving statistics become those of the batch."""
    names = ("momentum", "rate")
    before = [(layer, name, getattr(layer, name)) for layer in model.layers for name in names if hasattr(layer, name)]
    try:
        for layer, name, _ in before:
            setattr(layer, name, 0.0)  # nothing of the old statistics, and no dropout
        model(batch, training=True)
    finally:
        for layer, name, value in before:
            setattr(layer, name, value)


def _calibrate_kernels(model: Any, batch: npt.NDArray[np.float32]) -> None:
    """For a chain of layers without normalisation: scale each kernel by what its layer answers, channel by channel."""
    inner = model.layers[1:]
    # The scaling of the input happens between the model's input and the input of its first layer.
    flow = type(model)(model.input, inner[0].input)(batch)
    for layer in inner:
        if layer.get_weights():
            activation, layer.activation = layer.activation, lambda value: value
            answer = np.asarray(layer(flow))
            layer.activation = activation
            kernel, bias = layer.get_weights()
            axes = tuple(range(answer.ndim - 1))
            deviation = answer.std(axis=axes) + _EPSILON
            layer.set_weights([kernel / deviation, (bias - answer.mean(axis=axes)) / deviation])
        flow = layer(flow)
