"""Read somebody else's Keras model without running anything of theirs.

The architecture is read from the file as JSON and checked against a list of plain layers before Keras sees it. A
Lambda layer holds code; a custom class would need it.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import ModelRefused

MAX_CONFIG_BYTES = 32 * 1024**2
MAX_WEIGHTS_BYTES = 2 * 1024**3
_WEIGHTS = "model.weights.h5"
_PIECE = 1 << 20

_MODELS = "Functional Sequential Model"
_LAYERS = """
InputLayer Dense EinsumDense Conv1D Conv2D Conv2DTranspose DepthwiseConv2D SeparableConv2D Activation ReLU LeakyReLU
PReLU ELU Softmax BatchNormalization LayerNormalization GroupNormalization UnitNormalization RMSNormalization
MaxPooling2D AveragePooling2D GlobalAveragePooling1D GlobalMaxPooling1D GlobalAveragePooling2D GlobalMaxPooling2D
AdaptiveAveragePooling2D AdaptiveMaxPooling2D Flatten Reshape Permute RepeatVector Identity ZeroPadding2D Cropping2D
UpSampling2D Dropout SpatialDropout1D SpatialDropout2D GaussianNoise GaussianDropout AlphaDropout
ActivityRegularization Add Subtract Multiply Average Maximum Minimum Concatenate Dot Rescaling Normalization Resizing
CenterCrop MultiHeadAttention Attention AdditiveAttention GroupedQueryAttention RandomFlip RandomRotation RandomZoom
RandomTranslation RandomContrast RandomBrightness RandomCrop RandomShear RandomSaturation RandomHue RandomGrayscale
RandomErasing RandomGaussianBlur RandomPerspective RandomSharpness RandomInvert RandomPosterization
"""
_SETTINGS = """
Zeros Ones Constant RandomNormal RandomUniform TruncatedNormal VarianceScaling GlorotNormal GlorotUniform HeNormal
HeUniform LecunNormal LecunUniform Orthogonal OrthogonalInitializer Identity IdentityInitializer STFT L1 L2 L1L2
OrthogonalRegularizer MaxNorm NonNeg UnitNorm MinMaxNorm DTypePolicy FloatDTypePolicy Policy
__tuple__ __keras_tensor__ __numpy__ __tensor__ __ellipsis__ TensorShape
"""
PLAIN = frozenset(f"{_MODELS} {_LAYERS} {_SETTINGS}".split())

_CURE = "Only models of plain Keras layers are imported; export the model with such layers, or as .tflite."


def read_keras_archive(path: Path) -> dict[str, Any]:
    """The checked architecture of a `.keras` file.

    Raises:
        ModelRefused: If it is no such file, too large, or holds anything but plain layers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if sorted(names) != sorted(set(names)) or not {"config.json", _WEIGHTS} <= set(names):
                raise ModelRefused(f"{path.name} is no Keras model: it lacks config.json or {_WEIGHTS}.", _CURE)
            if archive.getinfo("config.json").file_size > MAX_CONFIG_BYTES:
                raise ModelRefused(f"The architecture in {path.name} is larger than {MAX_CONFIG_BYTES} bytes.", _CURE)
            text = archive.read("config.json")
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        raise ModelRefused(f"{path.name} is no readable .keras file.", "Save it again with model.save().") from error
    return plain_config(text, path.name)


def extract_weights(path: Path, target: Path) -> None:
    """Copy the arrays of a `.keras` file to `target`.

    Raises:
        ModelRefused: If they are too large or damaged.
    """
    copied = 0
    try:
        with zipfile.ZipFile(path) as archive, archive.open(_WEIGHTS) as source, target.open("wb") as out:
            while piece := source.read(_PIECE):
                copied += len(piece)
                if copied > MAX_WEIGHTS_BYTES:
                    raise ModelRefused(f"The weights in {path.name} are larger than {MAX_WEIGHTS_BYTES} bytes.", _CURE)
                out.write(piece)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise ModelRefused(f"The weights in {path.name} are damaged.", "Save it again with model.save().") from error


def check_legacy_file(path: Path) -> dict[str, Any]:
    """The checked architecture of a whole model in `.h5`.

    Raises:
        ModelRefused: If it holds no architecture (weights only), or anything but plain layers.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
    except OSError as error:
        raise ModelRefused(f"{path.name} is no readable HDF5 file.", "Save it again with model.save().") from error
    if text is None:
        raise ModelRefused(
            f"{path.name} holds weights without an architecture.",
            "Save the whole model with model.save(); weights alone can be given to train --weights.",
        )
    if len(text) > MAX_CONFIG_BYTES:
        raise ModelRefused(f"The architecture in {path.name} is larger than {MAX_CONFIG_BYTES} bytes.", _CURE)
    return plain_config(text, path.name)


def plain_config(text: str | bytes, file: str) -> dict[str, Any]:
    """Parse and check an architecture.

    Args:
        text: JSON.
        file: The file's name, for messages.

    Returns:
        The architecture without what it was compiled with, which could name functions and is not needed.

    Raises:
        ModelRefused: If something in it is not plain.
    """
    try:
        config = _without_compilation(json.loads(text))
        _check(config, file)
    except (ValueError, RecursionError) as error:
        raise ModelRefused(
            f"The architecture in {file} is no valid JSON.", "Save it again with model.save()."
        ) from error
    if not isinstance(config, dict) or config.get("class_name") not in _MODELS.split():
        raise ModelRefused(f"{file} is no Functional or Sequential model, but one of a class of its own.", _CURE)
    return config


def _without_compilation(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_compilation(item) for key, item in value.items() if key != "compile_config"}
    if isinstance(value, list):
        return [_without_compilation(item) for item in value]
    return value


def _check(value: Any, file: str) -> None:
    if isinstance(value, list):
        for item in value:
            _check(item, file)
    elif isinstance(value, dict):
        if "class_name" in value:
            _check_class(value, file)
        for item in value.values():
            _check(item, file)


def _check_class(value: Mapping[str, Any], file: str) -> None:
    kind = value["class_name"]
    config = value.get("config")
    called = config.get("name") if isinstance(config, dict) else None
    where = f" ({str(called)[:80]!r})" if called is not None else ""
    if kind in ("Lambda", "__lambda__"):
        raise ModelRefused(f"{file} holds a Lambda layer{where}, which is code.", _CURE)
    module, registered = value.get("module"), value.get("registered_name")
    ours = module is None or module in ("keras", "builtins") or str(module).startswith("keras.")
    if not isinstance(kind, str) or kind not in PLAIN or not ours or registered not in (None, kind):
        raise ModelRefused(
            f"{file} holds {str(registered or kind)[:80]!r}{where}, which is no plain Keras layer.", _CURE
        )
