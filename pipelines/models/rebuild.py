"""The network of a trained bundle, built again from its record and its arrays; no code comes from a bundle.

A compiled scorer answers and does nothing else. Who wants gradients, the table of layers or another scorer of the same
weights needs the network that it was compiled from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pipelines.errors import ModelRefused, UsageError
from pipelines.models.backbones import BackboneSpec, build_architecture, import_keras, weights_from_bytes
from pipelines.models.bundle import WEIGHTS_FILE, Bundle
from pipelines.models.compile import feature_length
from pipelines.models.heads import HeadSpec, build_head, pool


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """A classifier's network.

    Attributes:
        spec: Which backbone.
        head_spec: Which head.
        backbone: Keras model, pixels 0-255 `[B, S, S, 3]` to a feature map `[B, h, w, C]`; to be called with
            `training=False`, as it was trained.
        head: Keras model, pooled features `[B, D]` to logits `[B, K]`, or `[B, 1]` of the second of two classes;
            uncalibrated: a bundle's temperature divides them.
    """

    spec: BackboneSpec
    head_spec: HeadSpec
    backbone: Any
    head: Any


def why_not_rebuilt(bundle: Bundle) -> str:
    """Why there is no network to build again, one sentence; "" where there is."""
    if bundle.backbone and bundle.head and WEIGHTS_FILE in bundle.files:
        return ""
    return f"The model {bundle.name}@{bundle.version} was imported: it can be asked, but its layers are not known."


def rebuild(bundle: Bundle, arrays: bytes | None = None) -> Rebuilt:
    """The network of a bundle with its trained weights.

    Args:
        bundle: The model.
        arrays: Content of its `WEIGHTS_FILE`, for a process that cannot reach the bundle's folder; None: read there.

    Raises:
        ModelRefused: If the bundle has no network, its record does not describe one of ours, or its arrays are missing,
            altered or of another.
    """
    network = rebuild_untrained(bundle)
    content = bundle.read(WEIGHTS_FILE) if arrays is None else arrays
    try:
        weights_from_bytes(joined(network.backbone, network.head, network.head_spec.pooling), content)
    except UsageError as error:
        raise _refused(bundle, f"{WEIGHTS_FILE} is not of the network that bundle.json describes") from error
    return network


def rebuild_untrained(bundle: Bundle) -> Rebuilt:
    """The same network with arbitrary weights, for those who look at its layers only.

    Raises:
        ModelRefused: If the bundle has no network, or its record does not describe one of ours.
    """
    if reason := why_not_rebuilt(bundle):
        raise ModelRefused(reason, "Take a model that was trained here.")
    try:
        said = bundle.backbone
        spec = BackboneSpec(said["name"], said["alpha"], bundle.input_size, said["scaling"])
        head_spec = _head_spec(bundle.head)
        if head_spec.classes != len(bundle.classes):
            raise ValueError(f"a head of {head_spec.classes} classes")
    except (UsageError, KeyError, TypeError, ValueError) as error:
        raise _refused(bundle, "bundle.json describes no network that can be built") from error
    backbone = build_architecture(spec)
    return Rebuilt(spec, head_spec, backbone, build_head(head_spec, (feature_length(backbone, head_spec.pooling),)))


def joined(backbone: Any, head: Any, pooling: str) -> Any:
    """Backbone, pooling and head as one Keras model, pixels to logits; its arrays are those of `weights.weights.h5`.

    Args:
        backbone: Pixels 0-255 `[B, S, S, 3]` to a feature map.
        head: Pooled features to logits.
        pooling: One of `heads.POOLINGS`.
    """
    return import_keras().Model(backbone.input, head(pool(backbone.output, pooling)))


def _head_spec(said: Mapping[str, Any]) -> HeadSpec:
    known = {field.name for field in fields(HeadSpec)}
    values = {key: value for key, value in said.items() if key in known}
    return HeadSpec(**{**values, "dense_units": tuple(values.get("dense_units", ()))})


def _refused(bundle: Bundle, reason: str) -> ModelRefused:
    return ModelRefused(
        f"The model {bundle.name}@{bundle.version} cannot be built again: {reason}.",
        "Copy the bundle again from where it was made, or train it again.",
    )
