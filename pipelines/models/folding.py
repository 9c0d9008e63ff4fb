"""Batch normalisation in inference mode, folded into the convolution before it.

With fixed statistics a normalisation is a scale and an offset of each channel, so that convolution and normalisation
together are one convolution with other weights (Jacob et al., CVPR 2018, 3.2). The trained arrays stay those of both
layers, and gradients reach them through the folded weights. Training needs no pass over the feature maps for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from pipelines.models.backbones import import_keras

Operation = Callable[..., Any]


def fold(model: Any) -> Callable[[Any], Any]:
    """A function that answers what a functional Keras model answers in inference mode, and computes less.

    Args:
        model: With one input; models within it are folded too. Its layers are used as they are at each call.

    Returns:
        Tensor [B, …] to tensor, differentiable with respect to the layers' variables.
    """
    keras = import_keras()
    folded = _foldable(model)
    after = {id(convolution): norm for convolution, norm in folded}
    within = {id(norm) for _, norm in folded}

    def operation(one: Any) -> Operation:
        if id(one) in after:
            return _folded_convolution(one, after[id(one)])
        if id(one) in within:
            return _same
        if isinstance(one, keras.Model):
            inner = fold(one)
            return lambda inputs, **_options: inner(inputs)
        if isinstance(one, keras.layers.Layer) and one._call_has_training_arg:
            return lambda *inputs, **options: one(*inputs, **{**options, "training": False})
        return one  # type: ignore[no-any-return]

    def run(inputs: Any) -> Any:
        return model._run_through_graph(inputs, operation_fn=operation)

    return run


def _same(inputs: Any, **_options: Any) -> Any:
    return inputs


def _foldable(model: Any) -> list[tuple[Any, Any]]:
    """Convolutions whose only taker within the model is a batch normalisation, each with that."""
    layers = import_keras().layers
    kinds = (layers.Conv2D, layers.DepthwiseConv2D)
    nodes = [one for level in model._nodes_by_depth.values() for one in level if one.operation and not one.is_input]
    takers = Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
    takers.update(id(tensor) for tensor in model.outputs)
    makers = {id(tensor): node.operation for node in nodes for tensor in node.outputs}
    linear = import_keras().activations.linear
    found = []
    for node in nodes:
        taken = node.input_tensors[0] if node.input_tensors else None
        maker: Any = makers.get(id(taken))
        alone = type(maker) in kinds and takers[id(taken)] == 1
        if alone and isinstance(node.operation, layers.BatchNormalization) and maker.activation is linear:
            found.append((maker, node.operation))
    return found


def _folded_convolution(layer: Any, norm: Any) -> Operation:
    keras = import_keras()
    ops, depthwise = keras.ops, isinstance(layer, keras.layers.DepthwiseConv2D)

    def run(inputs: Any, **_options: Any) -> Any:
        scale = ops.rsqrt(norm.moving_variance + norm.epsilon)
        if norm.scale:
            scale = scale * norm.gamma
        offset = -norm.moving_mean * scale
        if norm.center:
            offset = offset + norm.beta
        if layer.use_bias:
            offset = offset + layer.bias * scale
        if depthwise:
            kernel = layer.kernel * ops.reshape(scale, (1, 1, -1, layer.depth_multiplier))
            answer = ops.depthwise_conv(
                inputs, kernel, layer.strides, layer.padding, layer.data_format, layer.dilation_rate
            )
        else:
            kernel = layer.kernel * scale
            answer = ops.conv(
                inputs, kernel, list(layer.strides), layer.padding, layer.data_format, layer.dilation_rate
            )
        return answer + offset

    return run
