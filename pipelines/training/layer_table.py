"""A network in a table of its layers and as the boxes of a diagram, the backbone in short and the head whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from pipelines.evaluation.content import Layer, Stage
from pipelines.models.backbones import BACKBONES
from pipelines.models.cut import count_layers, count_parameters
from pipelines.models.heads import build_head
from pipelines.models.rebuild import Rebuilt

_BLOCK = re.compile(r"(block_?\d+[a-z]?|conv\d+_block\d+|expanded_conv)_")
"""What the names of a block's layers begin with, in each of the backbones."""

MOST_CLASSES_NAMED = 6


def layer_table(network: Rebuilt, trainable_layers: int) -> tuple[Layer, ...]:
    """The layers in order, parameters adding up to those of the network.

    The backbone's stand together by block, divided where training begins; the head's stand alone, from the pooling on.

    Args:
        network: Its weights do not matter.
        trainable_layers: How many of the backbone's last layers are trained.
    """
    layers = network.backbone.layers
    first = _first_trained(network, trainable_layers)
    keys = [(block, place >= first) for place, block in enumerate(_blocks(layers))]
    rows: list[Layer] = []
    places = groupby(range(len(layers)), key=keys.__getitem__)
    for (block, trained), group in ((key, list(group)) for key, group in places):
        whole = keys.count((block, trained)) == sum(key[0] == block for key in keys)
        rows.append(_row([layers[place] for place in group], block if whole else "", trained))
    return (*rows, *(_row([layer], "", True) for layer in _head_layers(network)))


def stages(network: Rebuilt, trainable_layers: int, classes: Sequence[str], temperature: float) -> tuple[Stage, ...]:
    """The diagram's boxes from pixels to probabilities.

    Args:
        network: Its weights do not matter.
        trainable_layers: How many of the backbone's last layers are trained.
        classes: Names, in the order of the probabilities.
        temperature: What the logits are divided by.
    """
    spec, layers = network.spec, network.backbone.layers
    side, first = spec.input_size, _first_trained(network, trainable_layers)
    scaling = "scaled to 0–1" if spec.scaling == "0..1" else "scaled as the backbone's weights want"
    boxes = [Stage("Pixels", f"{side} × {side} × 3, {scaling}", False)]
    title = BACKBONES[spec.name].function
    for low, high, trained in ((0, first, False), (first, len(layers), True)):
        if low < high:
            part = f"{title}, layers {low + 1}–{high}" if 0 < first < len(layers) else f"{title}, {high} layers"
            row = _row(layers[low:high], "", trained)
            boxes.append(Stage(part, f"{row.shape}, {_in_words(row.parameters)}", trained))
    for layer in _head_layers(network):
        row = _row([layer], "", True)
        boxes.append(Stage(row.kind, _head_detail(layer, row), row.trainable))
    named = ", ".join(classes) if len(classes) <= MOST_CLASSES_NAMED else f"{len(classes)} classes"
    counted = f"{count_layers(network.backbone, network.head)} layers, {_in_words(_parameters(network))} in all"
    output = "Sigmoid" if network.head_spec.output == "sigmoid" else "Softmax"
    return (*boxes, Stage(output, f"temperature {temperature:.3g}: {named}; {counted}", False))


def totals(network: Rebuilt) -> str:
    """How many layers and parameters there are, in words."""
    return f"{count_layers(network.backbone, network.head)} layers and {_in_words(_parameters(network))}"


def _parameters(network: Rebuilt) -> int:
    return count_parameters(network.backbone, network.head)


def _in_words(parameters: int) -> str:
    return f"{parameters:,} parameter{'' if parameters == 1 else 's'}"


def _first_trained(network: Rebuilt, trainable_layers: int) -> int:
    return max(0, len(network.backbone.layers) - trainable_layers)


def _head_layers(network: Rebuilt) -> list[Any]:
    """The head's layers without its input, the pooling the first of them."""
    head = build_head(network.head_spec, tuple(network.backbone.output_shape[1:]))
    return list(head.layers[1:])


def _blocks(layers: Sequence[Any]) -> list[str]:
    """The block of each layer, "" for none; one without a name of its own amid a block's layers is the block's."""
    found = [match[1] if (match := _BLOCK.match(layer.name)) else "" for layer in layers]
    for place in range(1, len(found)):
        later = next((block for block in found[place:] if block), "")
        if not found[place] and found[place - 1] == later:
            found[place] = later
    return found


def _row(layers: Sequence[Any], block: str, trained: bool) -> Layer:
    """One row for some layers that follow each other."""
    names = [_plain_name(layers[0]), _plain_name(layers[-1])]
    kinds = [type(layer).__name__ for layer in layers]
    convolutions = sum("Conv2D" in kind for kind in kinds)
    many = f"{len(layers)} layers, {convolutions} convolution{'' if convolutions == 1 else 's'}"
    return Layer(
        name=names[0] if len(layers) == 1 else block or f"{names[0]} to {names[1]}",
        kind=kinds[0] if len(layers) == 1 else many,
        shape=" × ".join(str(side) for side in layers[-1].output.shape[1:]),
        trainable=trained and any(layer.trainable_variables for layer in layers),
        parameters=sum(int(layer.count_params()) for layer in layers),
    )


def _plain_name(layer: Any) -> str:
    """A layer's name without the number that Keras gives one of many in a process."""
    stem = re.sub(r"_\d+$", "", layer.name)
    return stem if stem.replace("_", "") == type(layer).__name__.lower() else str(layer.name)


def _head_detail(layer: Any, row: Layer) -> str:
    if row.kind == "Dropout":
        return f"drops {layer.rate:g} of its inputs, in training only"
    numbers = f"{row.shape} number{'' if row.shape == '1' else 's'}" if row.shape.isdigit() else row.shape
    activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
    said = [numbers, *([activation] if activation != "linear" else [])]
    return ", ".join([*said, *([_in_words(row.parameters)] if row.parameters else [])])
