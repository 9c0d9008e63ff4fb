"""The network of a recipe: its backbone with the weights asked for, cut below what is trained; its head."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ImageFailure, UsageError
from pipelines.images.preprocess import Preprocessing
from pipelines.models.backbones import BackboneSpec, build_architecture, build_backbone, import_keras
from pipelines.models.bundle import WEIGHTS_FILE, Bundle
from pipelines.models.compile import compile_lower, feature_length
from pipelines.models.cut import Cut, cut_backbone
from pipelines.models.heads import HeadSpec, build_head
from pipelines.models.rebuild import joined, rebuild
from pipelines.models.runtime import ScorerIO
from pipelines.scoring.features import CacheModel
from pipelines.scoring.scorer import LARGEST_FILE
from pipelines.storage.reading import ImageReader
from pipelines.training.recipes import Recipe
from pipelines.training.trainee import Trainee, build_trainee

ANSWERED_AT_ONCE = 64


@dataclass(frozen=True)
class Network:
    """A backbone with its weights and its head, cut for training.

    Attributes:
        spec: Which backbone.
        head_spec: Which head.
        backbone: Keras model, pixels 0-255 `[B, S, S, 3]` to a feature map.
        head: Keras model of pooled features.
        cut: The backbone cut below its trained layers; its parts share the backbone's layers.
        cache: What is kept of an image: the lower part's answer by LiteRT, or its pixels where all is trained or each
            epoch moves them afresh.
        weights_sha256: Hash of all arrays of the backbone before training.
    """

    spec: BackboneSpec
    head_spec: HeadSpec
    backbone: Any
    head: Any
    cut: Cut
    cache: CacheModel
    weights_sha256: str

    def trainee(self) -> Trainee:
        """What training changes; it shares this network's layers, so that its arrays are the network's."""
        return build_trainee(self.cut, self.head, self.head_spec)

    def logits(self, kept: NDArray[Any]) -> NDArray[np.float32]:
        """What the network answers to what is kept of images, `[n, D]`: logits `[n, K]`, in inference mode."""
        side = self.spec.input_size
        pixels = self.cache.model is None
        answer = joined(self.backbone, self.head, self.head_spec.pooling) if pixels else self.trainee().answer
        answers = []
        for first in range(0, len(kept), ANSWERED_AT_ONCE):
            batch = kept[first : first + ANSWERED_AT_ONCE].astype(np.float32)
            answers.append(np.asarray(answer(batch.reshape(-1, side, side, 3) if pixels else batch)))
        return np.concatenate(answers)


def with_head(network: Network, recipe: Recipe, seed: int) -> Network:
    """The same backbone under the fresh head of another recipe, which agrees with the first one up to the cut.

    Args:
        network: Whose layers are shared.
        recipe: Says the head.
        seed: Of its first weights.
    """
    import_keras().utils.clear_session()  # as in `build_network`
    how = head_spec(recipe, network.head_spec.classes)
    head = build_head(how, (feature_length(network.backbone, how.pooling),), seed, recipe.head_start)
    return replace(network, head_spec=how, head=head)


def backbone_spec(recipe: Recipe) -> BackboneSpec:
    """The architecture that a recipe asks for."""
    return BackboneSpec(recipe.backbone, recipe.alpha, recipe.input_size, recipe.scaling)


def head_spec(recipe: Recipe, classes: int) -> HeadSpec:
    """The head that a recipe asks for.

    Raises:
        UsageError: For a sigmoid unit and another number of classes than two.
    """
    return HeadSpec(
        classes=classes,
        pooling=recipe.pooling,
        dense_units=(recipe.dense_units,) if recipe.dense_units else (),
        activation=recipe.activation,
        batch_norm=recipe.batch_norm,
        dropout=recipe.dropout,
        output="sigmoid" if recipe.loss == "binary_crossentropy" else "softmax",
    )


def build_network(
    recipe: Recipe,
    classes: int,
    weights: str,
    seed: int,
    calibration: NDArray[np.uint8] | None,
    start: Bundle | None = None,
    keep_head: bool = True,
) -> Network:
    """Build the network of a recipe and compile what runs once an image.

    Args:
        recipe: Which one.
        classes: How many.
        weights: The backbone's: `imagenet`, `none` or a file; of no meaning with `start`.
        seed: Of the head's initialisation, and of the backbone's for `none`.
        calibration: Training images for `none`, uint8 `[N, S, S, 3]`.
        start: A trained bundle whose arrays are taken instead: the backbone's, and the head's where all its arrays
            have the same shapes.
        keep_head: Whether the head of `start` tells the same classes, and may be kept.

    Raises:
        UsageError: If the weights are not there or do not fit, or `start` is no bundle of this backbone.
        ModelRefused: If the compiled backbone does not answer as Keras does.
    """
    # Keras numbers its layers through the process, and the numbers would end in the compiled file: count afresh, so
    # that the same training gives the same file, and cached features are found again.
    import_keras().utils.clear_session()
    spec, how = backbone_spec(recipe), head_spec(recipe, classes)
    if start is not None:
        _refuse_other_backbone(start, spec)
    backbone = build_architecture(spec) if start else build_backbone(spec, weights, seed, calibration)
    head = build_head(how, (feature_length(backbone, how.pooling),), seed, recipe.head_start)
    if start is not None:
        _take_arrays(start, backbone, head, keep_head)
    digest = hashlib.sha256()
    for array in backbone.get_weights():
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    cut = cut_backbone(backbone, recipe.trainable_layers, how.pooling)
    fresh = recipe.augments and not recipe.variants
    return Network(spec, how, backbone, head, cut, _cache_model(cut, spec, fresh), digest.hexdigest())


def _cache_model(cut: Cut, spec: BackboneSpec, fresh: bool) -> CacheModel:
    """What is kept of an image; its pixels where all is trained, or where each epoch moves them afresh."""
    if cut.lower is None or fresh:
        return CacheModel(None, None, spec.input_size**2 * 3, "uint8")
    io = ScorerIO(spec.input_size, cut.size, outputs="features")
    # Half the room, and training does not notice: with a genuine MobileNetV2 cut at its last 30 layers, 400 X-rays and
    # five epochs, float16 moved the validation loss by at most 0.0013, and another order of the images by 0.1.
    return CacheModel(compile_lower(cut, spec.input_size), io, cut.size, "float16" if cut.layers else "float32")


def _refuse_other_backbone(start: Bundle, spec: BackboneSpec) -> None:
    """Refuse to start from a bundle whose arrays do not fit this backbone, or were trained on other scaled pixels."""
    if WEIGHTS_FILE not in start.files or not start.backbone:
        raise UsageError(
            f"The model {start.name}@{start.version} was imported and has no weights to start from.",
            "Start from a version that was trained here, or give --weights instead of --from.",
        )
    for key, wanted in (("name", spec.name), ("alpha", spec.alpha), ("scaling", spec.scaling)):
        found = start.backbone.get(key)
        if found != wanted:
            option = "backbone" if key == "name" else key
            raise UsageError(
                f"{start.name}@{start.version} has the {option} {found}, and the recipe has {wanted}.",
                f"Say --set {option}={found}, or start from another version.",
            )


def _take_arrays(start: Bundle, backbone: Any, head: Any, keep_head: bool) -> None:
    """Load a bundle's arrays into the backbone, and into the head where all of them have the same shapes."""
    theirs = rebuild(start)
    backbone.set_weights(theirs.backbone.get_weights())
    if keep_head and [one.shape for one in theirs.head.weights] == [one.shape for one in head.weights]:
        for ours, one in zip(head.weights, theirs.head.weights, strict=True):
            ours.assign(one)


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
