"""Keras to LiteRT, checked against Keras when it is made.

`TFLiteConverter` turns a Keras 3 model's variables into files that answer NaN without an error, so they are frozen
into constants first. The result takes uint8 pixels; scaling, temperature and softmax are inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipelines.errors import ModelRefused
from pipelines.models.backbones import import_keras
from pipelines.models.cut import Cut
from pipelines.models.golden import golden_images
from pipelines.models.heads import pool
from pipelines.models.quiet import quiet_stderr
from pipelines.models.runtime import Scorer, ScorerIO

# Largest difference of a probability between LiteRT and Keras.
TOLERANCE = 1e-4
# The same of a feature, relative to the largest: Keras itself differs by a tenth of it between batches of 1 and 6.
FEATURE_TOLERANCE = 1e-3

Graph = Callable[[Any], Any]


def compile_scorer(backbone: Any, head: Any, temperature: float, input_size: int, pooling: str = "avg") -> bytes:
    """Compile a classifier.

    Args:
        backbone: Pixels 0-255 [B, S, S, 3] to a feature map, as `build_backbone` makes it.
        head: Feature map or pooled features to logits [B, K] (or [B, 1]: of the second of two classes).
        temperature: What the logits are divided by.
        input_size: S.
        pooling: How the map becomes a vector where the head takes pooled features.

    Returns:
        A LiteRT model: uint8 [1, S, S, 3] to calibrated probabilities [1, K].

    Raises:
        ModelRefused: If its answers are not finite or differ from Keras' by more than `TOLERANCE`.
    """
    joined = _joined(backbone, head, pooling)
    classes = max(int(joined.output_shape[-1]), 2)

    def graph(pixels: Any) -> Any:
        return probabilities(joined(pixels, training=False), "logits", temperature)

    return compile_graph(graph, input_size, classes)


def compile_lower(cut: Cut, input_size: int) -> bytes:
    """Compile what runs once an image: the part of a backbone below its trained layers.

    Args:
        cut: One that has a lower part.
        input_size: S.

    Returns:
        A LiteRT model: uint8 [1, S, S, 3] to float32 [1, cut.size].

    Raises:
        ModelRefused: As `compile_scorer`, relative to the largest feature.
    """
    lower: Any = cut.lower
    return compile_graph(lambda pixels: lower(pixels, training=False), input_size, cut.size, outputs="features")


def feature_length(backbone: Any, pooling: str) -> int:
    """D: how many features an image has."""
    height, width, channels = backbone.output_shape[1:]
    return int(height * width * channels if pooling == "flatten" else channels)


def probabilities(answer: Any, outputs: str, temperature: float = 1.0) -> Any:
    """Tensor [B, K] or [B, 1] to calibrated probabilities [B, K]; one unit becomes [1 - p, p].

    Args:
        answer: What the network answers.
        outputs: `logits` or `probabilities` (which no temperature is applied to).
        temperature: What logits are divided by.
    """
    import tensorflow as tf

    one = answer.shape[-1] == 1
    if outputs == "probabilities":
        return tf.concat([1.0 - answer, answer], axis=-1) if one else answer
    scaled = answer * np.float32(1 / temperature)
    # The sigmoid of both signs, not 1 - p: a small probability keeps its digits.
    return tf.concat([tf.sigmoid(-scaled), tf.sigmoid(scaled)], axis=-1) if one else tf.nn.softmax(scaled)


def compile_graph(graph: Graph, input_size: int, size: int, outputs: str = "probabilities") -> bytes:
    """Freeze and convert a graph, and check the result against the graph itself.

    Args:
        graph: float32 [B, S, S, 3], 0-255, to float32 [B, K].
        input_size: S.
        size: K.
        outputs: `probabilities` or `features`.

    Raises:
        ModelRefused: If it cannot be converted, or the result answers otherwise.
    """
    model = _convert(graph, input_size)
    images = golden_images(input_size)
    wanted = np.asarray(graph(images.astype(np.float32)), dtype=np.float32)
    scorer = Scorer(model, ScorerIO(input_size, size, outputs=outputs))
    answers = np.stack([scorer(picture) for picture in images])
    allowed = TOLERANCE if outputs == "probabilities" else FEATURE_TOLERANCE * max(1.0, float(np.abs(wanted).max()))
    if answers.shape != wanted.shape or not float(np.abs(answers - wanted).max()) <= allowed:
        raise ModelRefused(
            "The compiled model does not answer what Keras answers, so it was not written.",
            "Report this with the recipe: no model of ours should do so.",
        )
    return model


def _convert(graph: Graph, input_size: int) -> bytes:
    import_keras()
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    @tf.function(input_signature=[tf.TensorSpec([1, input_size, input_size, 3], tf.uint8)])  # type: ignore[untyped-decorator]
    def answer(pixels: Any) -> Any:
        return graph(tf.cast(pixels, tf.float32))

    try:
        with quiet_stderr():
            frozen = convert_variables_to_constants_v2(answer.get_concrete_function())
            return bytes(tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert())
    except (ValueError, RuntimeError, TypeError, NotImplementedError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()
        raise ModelRefused(
            f"The model cannot be compiled for LiteRT: {reason[0][:200] if reason else type(error).__name__}.",
            "It uses an operation that LiteRT does not have.",
        ) from error


def _joined(backbone: Any, head: Any, pooling: str) -> Any:
    """Backbone and head as one model, pooled in between where the head takes vectors."""
    keras = import_keras()
    flow = backbone.output
    if len(head.input_shape) == 2 and len(backbone.output_shape) == 4:
        flow = pool(flow, pooling)
    return keras.Model(backbone.input, head(flow))
