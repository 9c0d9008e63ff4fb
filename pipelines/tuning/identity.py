"""What a search is of: points can be compared, and answers reused, where all of this is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version

from pipelines.storage import files, paths
from pipelines.training.dataset import Dataset
from pipelines.training.preparation import Found
from pipelines.tuning.config import TuneConfig

_COLUMNS = ("image_uri", "image_version", "label", "part", "person")
_LIBRARIES = ("keras", "numpy", "tensorflow")


def identity(config: TuneConfig, found: Found) -> dict[str, str]:
    """What the points of a search have in common, by name: a hash or a short text each.

    Args:
        config: Data, base recipe, weights, seed.
        found: The images.

    Raises:
        UsageError, TryLater: If a file of weights cannot be read.
    """
    digest = hashlib.sha256()
    for column in _COLUMNS:
        for value in found.labelled.table[column].to_pylist():
            digest.update(json.dumps(value).encode() + b"\0")
    classes = found.labelled.classes
    return {
        "data": digest.hexdigest(),
        "recipe": _hash(json.dumps(config.train.recipe.values(), sort_keys=True).encode()),
        "weights": ", ".join([_weights(config.train.weights), *_named(config.weights_of)]),
        "positive": ", ".join(classes[number] for number in found.positive),
        "seed": str(config.train.seed),
        "release": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
    }


def split_digest(data: Dataset) -> str:
    """A hash of which images train and validate, and of their labels."""
    return _hash(data.trained_images())


def _named(weights_of: Mapping[str, str]) -> list[str]:
    return [f"{backbone}={_weights(said)}" for backbone, said in sorted(weights_of.items())]


def _weights(weights: str) -> str:
    """Words as they are; of a file its content's hash."""
    if weights in ("imagenet", "none"):
        return weights
    return _hash(files.read_bytes(paths.canonical(weights)))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
