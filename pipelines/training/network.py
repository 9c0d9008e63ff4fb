"""The network of a recipe: its frozen backbone with the weights asked for, compiled for features; its head."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ImageFailure, UsageError
from pipelines.images.preprocess import Preprocessing
from pipelines.models.backbones import BackboneSpec, build_backbone, import_keras
from pipelines.models.compile import compile_features, feature_length
from pipelines.models.heads import HeadSpec, pool
from pipelines.models.runtime import ScorerIO
from pipelines.storage.reading import ImageReader
from pipelines.training.recipes import Recipe

LARGEST_FILE = 512 * 1024**2


@dataclass(frozen=True)
class Network:
    """A backbone, ready to compute features.

    Attributes:
        spec: Which architecture.
        backbone: Keras model.
        feature_model: The same for LiteRT, with the recipe's pooling: uint8 `[1, S, S, 3]` to float32 `[D]`.
        io: How that is fed and read.
        weights_sha256: Hash of all arrays of the backbone.
    """

    spec: BackboneSpec
    backbone: Any
    feature_model: bytes
    io: ScorerIO
    weights_sha256: str


def backbone_spec(recipe: Recipe) -> BackboneSpec:
    """The architecture that a recipe asks for."""
    return BackboneSpec(recipe.backbone, recipe.alpha, recipe.input_size, recipe.scaling)


def head_spec(recipe: Recipe, classes: int) -> HeadSpec:
    """The head that a recipe asks for."""
    return HeadSpec(
        classes=classes,
        pooling=recipe.pooling,
        dense_units=(recipe.dense_units,) if recipe.dense_units else (),
        activation=recipe.activation,
        batch_norm=recipe.batch_norm,
        dropout=recipe.dropout,
    )


def build_network(recipe: Recipe, weights: str, seed: int, calibration: NDArray[np.uint8] | None) -> Network:
    """Build the backbone and compile it.

    Args:
        recipe: Which one.
        weights: `imagenet`, `none` or a file.
        seed: Of the initialisation, for `none`.
        calibration: Training images for `none`, uint8 `[N, S, S, 3]`.

    Raises:
        UsageError: If the weights are not there or do not fit.
        ModelRefused: If the compiled backbone does not answer as Keras does.
    """
    # Keras numbers its layers through the process, and the numbers would end in the compiled file: count afresh, so
    # that the same training gives the same file, and cached features are found again.
    import_keras().utils.clear_session()
    spec = backbone_spec(recipe)
    backbone = build_backbone(spec, weights, seed, calibration)
    digest = hashlib.sha256()
    for array in backbone.get_weights():
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    model = compile_features(backbone, recipe.pooling, recipe.input_size)
    io = ScorerIO(recipe.input_size, feature_length(backbone, recipe.pooling), outputs="features")
    return Network(spec, backbone, model, io, digest.hexdigest())


def joined(backbone: Any, head: Any, pooling: str) -> Any:
    """Backbone, pooling and head as one Keras model: pixels to logits; its weights are the bundle's."""
    keras = import_keras()
    return keras.Model(backbone.input, head(pool(backbone.output, pooling)))


def prepared_pixels(uris: Sequence[str], input_size: int, at_most: int | None = None) -> NDArray[np.uint8]:
    """Pixels of images as a model sees them; unreadable ones are passed over.

    Args:
        uris: Canonical image URIs.
        input_size: S.
        at_most: Stop after so many.

    Returns:
        uint8 `[N, S, S, 3]`.

    Raises:
        UsageError: If not one of them can be read.
    """
    reader, preprocessing = ImageReader(LARGEST_FILE), Preprocessing(input_size)
    pixels: list[NDArray[np.uint8]] = []
    for uri in uris:
        if at_most is not None and len(pixels) >= at_most:
            break
        try:
            pixels.append(preprocessing.prepare(reader.read(uri).data).pixels)
        except ImageFailure:
            continue  # compute_features meets it again and names it
    if not pixels:
        raise UsageError(f"Not one of {len(uris)} images could be read.", "Check that the data hold images.")
    return np.stack(pixels)
