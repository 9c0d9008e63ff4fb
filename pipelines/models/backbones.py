"""The four backbones of `keras.applications`, each with its input scaling inside.

TensorFlow is imported inside the functions: the table alone costs nothing.
"""

from __future__ import annotations

import os
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import UsageError
from pipelines.models.arrays import explain_misfit, read_shapes
from pipelines.models.golden import golden_images
from pipelines.models.quiet import quiet_stderr
from pipelines.models.scaling import Scaling, scaling_of
from pipelines.models.seeding import calibrate, seed_weights
from pipelines.models.weights import obtain_published
from pipelines.storage import files as storage
from pipelines.storage.paths import canonical, is_local, name
from pipelines.storage.scratch import Scratch


@dataclass(frozen=True)
class Backbone:
    """One architecture that can be chosen.

    Attributes:
        function: Its name in `keras.applications`.
        default_size: Side of the picture it was published with, in pixels.
        min_size: The smallest side it takes.
        has_alpha: Whether its width can be set.
        arguments: What is passed to the function beside size, alpha and weights.
    """

    function: str
    default_size: int
    min_size: int = 32
    has_alpha: bool = False
    arguments: tuple[tuple[str, Any], ...] = ()


BACKBONES: dict[str, Backbone] = {
    "mobilenet_v2": Backbone("MobileNetV2", 224, has_alpha=True),
    "resnet50_v2": Backbone("ResNet50V2", 224),
    # Its own scaling layers are left out because ours, of the same numbers, come first.
    "efficientnet_v2_b0": Backbone("EfficientNetV2B0", 224, arguments=(("include_preprocessing", False),)),
    "vgg16": Backbone("VGG16", 224),
}
MAX_SIZE = 1024
MAX_ALPHA = 4.0


@dataclass(frozen=True)
class BackboneSpec:
    """Which backbone.

    Attributes:
        name: A key of `BACKBONES`.
        alpha: Width, for those that have one; 1 for the others.
        input_size: Side of the square picture, in pixels.
        scaling: `backbone` for the scaling its published weights were trained with, or `0..1`.

    Raises:
        UsageError: If a value is not possible.
    """

    name: str = "mobilenet_v2"
    alpha: float = 1.0
    input_size: int = 224
    scaling: str = "backbone"

    def __post_init__(self) -> None:
        if self.name not in BACKBONES:
            raise UsageError(f"There is no backbone {self.name!r}.", f"Say one of: {', '.join(BACKBONES)}.")
        kind = BACKBONES[self.name]
        if not kind.min_size <= self.input_size <= MAX_SIZE:
            raise UsageError(f"{self.name} takes {kind.min_size} to {MAX_SIZE} pixels, not {self.input_size}.")
        if not 0 < self.alpha <= MAX_ALPHA or (self.alpha != 1.0 and not kind.has_alpha):
            rule = f"between 0 and {MAX_ALPHA:g}" if kind.has_alpha else "1: its width is fixed"
            raise UsageError(f"alpha {self.alpha} is not possible: for {self.name} it is {rule}.")
        if self.scaling not in ("backbone", "0..1"):
            raise UsageError(f"There is no scaling {self.scaling!r} of a backbone.", "Say backbone or 0..1.")

    def input_scaling(self) -> Scaling:
        """The numbers of the scaling."""
        return scaling_of(self.name if self.scaling == "backbone" else self.scaling)


def import_keras() -> types.ModuleType:
    """Import Keras on TensorFlow without the notes that both write on the way."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with quiet_stderr():
        import keras
        import tensorflow  # noqa: F401  # makes its notes here and not at the first use
    return keras  # type: ignore[no-any-return]


def build_backbone(
    spec: BackboneSpec,
    weights: str = "imagenet",
    seed: int = 0,
    calibration_images: npt.NDArray[np.uint8] | None = None,
) -> Any:
    """Build a backbone with its weights.

    Args:
        spec: Which one.
        weights: `imagenet`, `none` (drawn from the seed and calibrated) or a `.weights.h5`/`.h5` file.
        seed: For `none`.
        calibration_images: For `none`: uint8 [N, S, S, 3] of the archive; without them synthetic ones are taken.

    Returns:
        A flat `keras.Model`: [B, S, S, 3] uint8 or float32, 0-255, to a feature map [B, h, w, C]. Its scaling is
        inside. Its layers are those of `keras.applications`, so "the last 30" are the paper's.

    Raises:
        UsageError: If the weights are not there or do not fit.
    """
    model = build_architecture(spec)
    if weights == "none":
        seed_weights(model, seed)
        images = _synthetic(spec.input_size) if calibration_images is None else calibration_images
        if images.ndim != 4 or images.shape[1:] != (spec.input_size, spec.input_size, 3) or not len(images):
            raise ValueError(f"calibration images of shape {images.shape}")
        calibrate(model, images)
        return model
    if weights == "imagenet":
        load_weights(model, obtain_published(spec.name, spec.alpha, spec.input_size))
        return model
    with Scratch() as folder:
        load_weights(model, _at_hand(weights, folder))
    return model


def build_architecture(spec: BackboneSpec) -> Any:
    """The same model with arbitrary weights, to load a bundle's into."""
    keras = import_keras()
    kind = BACKBONES[spec.name]
    arguments = dict(kind.arguments)
    if kind.has_alpha:
        arguments["alpha"] = float(spec.alpha)
    pixels = keras.Input((spec.input_size, spec.input_size, 3), dtype="float32")
    make = getattr(keras.applications, kind.function)
    inner = make(include_top=False, weights=None, input_tensor=apply_scaling(pixels, spec.input_scaling()), **arguments)
    return keras.Model(pixels, inner.output, name=spec.name)


def apply_scaling(pixels: Any, scaling: Scaling) -> Any:
    """Scale a float32 tensor [..., 3] of RGB pixels 0-255, symbolic or not."""
    keras = import_keras()
    scaled = pixels * np.array(scaling.scale, np.float32) + np.array(scaling.offset, np.float32)
    return keras.ops.flip(scaled, axis=-1) if scaling.reverse_channels else scaled


def load_weights(model: Any, path: Path) -> None:
    """Load a `.weights.h5` or `.h5` file into a model of the same architecture.

    Raises:
        UsageError: If it is not such a file or does not fit; says what does not.
    """
    shapes = read_shapes(path)
    try:
        with quiet_stderr():
            model.load_weights(str(path))
    except (ValueError, KeyError, OSError, AttributeError, TypeError) as error:
        wanted = [(f"{layer.name} {one.name}", tuple(one.shape)) for layer in model.layers for one in layer.weights]
        raise UsageError(
            explain_misfit(path, shapes, wanted), f"Give weights of {model.name} without its top, of the same alpha."
        ) from error


def weights_to_bytes(model: Any) -> bytes:
    """The content of `weights.weights.h5`: every array of a model, and nothing but arrays."""
    with Scratch() as folder:
        path = folder / "model.weights.h5"
        model.save_weights(str(path))
        return path.read_bytes()


def weights_from_bytes(model: Any, data: bytes) -> None:
    """Undo `weights_to_bytes` into a model of the same architecture.

    Raises:
        UsageError: As `load_weights`.
    """
    with Scratch() as folder:
        path = folder / "model.weights.h5"
        path.write_bytes(data)
        load_weights(model, path)


def _synthetic(size: int) -> npt.NDArray[np.uint8]:
    return np.concatenate([golden_images(size, seed) for seed in range(1, 5)])


def check_weights(weights: str) -> None:
    """Refuse what cannot be a backbone's weights, before anything is computed.

    Args:
        weights: `imagenet`, `none` or a file.

    Raises:
        UsageError: If it is neither of the words nor an `.h5` file that is there.
    """
    if weights in ("imagenet", "none"):
        return
    place = canonical(weights)
    if not place.endswith((".h5", ".hdf5")):
        raise UsageError(f"--weights {weights!r} is not known.", "Say imagenet, none, or a .weights.h5 or .h5 file.")
    if not storage.exists(place):
        raise UsageError(f"The weights file {place} is not there.", "Say imagenet, none, or a file that exists.")


def _at_hand(weights: str, folder: Path) -> Path:
    """The weights file as a local path."""
    check_weights(weights)
    place = canonical(weights)
    if is_local(place):
        return Path(place)
    copy = folder / name(place)
    storage.fetch(place, str(copy))
    return copy
