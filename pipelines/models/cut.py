"""A backbone cut in two below its trained layers, so that what stays as it is runs once an image and not once an epoch.

The last N layers are counted as `keras.applications` lists them. Every tensor that the upper part takes from the lower
one crosses the cut: one in a chain, two where a shortcut passes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.models.backbones import import_keras
from pipelines.models.heads import pool


@dataclass(frozen=True)
class Cut:
    """The two parts of a backbone; they share its layers, so that training the upper one changes the backbone.

    Attributes:
        layers: How many of the backbone's last layers are trained, 0 to all.
        lower: Keras model of what stays as it is: pixels 0-255 [B, S, S, 3] to [B, size]; None where all is trained.
        upper: Keras model [B, size] (pixels [B, S, S, 3] where all is trained) to the feature map [B, h, w, C]; None
            where nothing of the backbone is trained. To be called with `training=False`: batch normalisation then
            normalises by its published statistics, while its scale and offset are trained like every other array.
        size: Numbers of one image that enter the trained part: D of the pooled features, all crossing tensors
            flattened one after the other, or S*S*3 pixels.
        variables: The trained arrays of the backbone in the order of its layers; no moving statistics.
    """

    layers: int
    lower: Any | None
    upper: Any | None
    size: int
    variables: tuple[Any, ...]


def cut_backbone(backbone: Any, trainable_layers: int, pooling: str) -> Cut:
    """Cut a backbone below its last layers.

    Args:
        backbone: As `build_backbone` makes it.
        trainable_layers: How many of its last layers are trained; more than it has are all.
        pooling: One of `heads.POOLINGS`; where nothing is trained, the lower part ends with it.

    Raises:
        ValueError: For a negative number of layers.
    """
    if trainable_layers < 0:
        raise ValueError(f"{trainable_layers} layers")
    keras = import_keras()
    if not trainable_layers:
        lower = keras.Model(backbone.input, pool(backbone.output, pooling))
        return Cut(0, lower, None, int(lower.output_shape[-1]), ())
    trained = backbone.layers[-trainable_layers:]
    variables = tuple(one for layer in trained for one in layer.trainable_variables)
    if trained[0] is backbone.layers[0]:
        return Cut(len(trained), None, backbone, int(np.prod(backbone.input_shape[1:])), variables)
    crossing = _crossing(backbone, trained[0])
    flat = [keras.layers.Flatten()(tensor) for tensor in crossing]
    joined = flat[0] if len(flat) == 1 else keras.layers.Concatenate()(flat)
    lower = keras.Model(backbone.input, joined)
    return Cut(len(trained), lower, _upper(backbone, crossing), int(lower.output_shape[-1]), variables)


def _crossing(backbone: Any, first: Any) -> list[Any]:
    """The tensors that the operations from `first` on take from those before it, in the order in which they do.

    Keras lists operations by their distance from the output, so that none takes anything from a later one.
    """
    tree = import_keras().tree
    operations = backbone.operations
    above = operations[next(place for place, one in enumerate(operations) if one is first) :]
    made = {id(tensor) for one in above for tensor in tree.flatten(one.output)}
    taken = {id(tensor): tensor for one in above for tensor in tree.flatten(one.input)}
    # Whatever passes the cut to the output without an operation of its own crosses it too.
    taken.update({id(tensor): tensor for tensor in tree.flatten(backbone.output)})
    return [tensor for key, tensor in taken.items() if key not in made]


def _upper(backbone: Any, crossing: list[Any]) -> Any:
    """From the crossing tensors, flattened and concatenated, to the feature map."""
    keras = import_keras()
    shapes = [tuple(int(side) for side in tensor.shape[1:]) for tensor in crossing]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes]).tolist()
    flat = keras.Input((ends[-1],))
    parts = [
        keras.ops.reshape(flat[:, end - int(np.prod(shape)) : end], (-1, *shape))
        for shape, end in zip(shapes, ends, strict=True)
    ]
    inner = keras.Model(crossing, backbone.output)
    return keras.Model(flat, inner(parts, training=False))


def count_layers(backbone: Any, head: Any) -> int:
    """Layers of the whole network as `keras.applications` and the papers count: its input once, pooling as one.

    Args:
        backbone: Pixels to a feature map.
        head: As `build_head` makes it, of feature maps or of pooled features.
    """
    return len(backbone.layers) + len(head.layers) - 1 + (len(head.input_shape) == 2)


def count_parameters(backbone: Any, head: Any) -> int:
    """Numbers in all arrays of the network, moving statistics among them."""
    return int(backbone.count_params() + head.count_params())
