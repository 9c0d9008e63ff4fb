"""Keras to LiteRT, checked against Keras when it is made.

`TFLiteConverter` turns a Keras 3 model's variables into files that answer NaN without an error, so they are frozen
into constants first. The result takes uint8 pixels; scaling, temperature and softmax are inside.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import ModelRefused
from pipelines.models.backbones import import_keras
from pipelines.models.cut import Cut
from pipelines.models.golden import golden_images
from pipelines.models.heads import pool
from pipelines.models.operators import operator_outputs
from pipelines.models.quiet import quiet_stderr
from pipelines.models.runtime import Scorer, ScorerIO

# Largest difference of a probability between LiteRT and Keras.
TOLERANCE = 1e-4
# The same of a feature, relative to the largest: Keras itself differs by a tenth of it between batches of 1 and 6.
FEATURE_TOLERANCE = 1e-3
# More change neither the ranges nor the weights of the classes by much, and each takes 50 ms.
CALIBRATION_IMAGES = 100
FLOAT_CONVOLUTIONS = 3
MATCHING_ROUNDS = 200
_LEAST = 1e-7
_HEAD = "classify"
_REPORT = "Report this with the recipe: no model of ours should do so."

Graph = Callable[[Any], Any]


def compile_scorer(
    backbone: Any, head: Any, temperature: float, input_size: int, pooling: str = "avg", flip: bool = False
) -> bytes:
    """Compile a classifier.

    Args:
        backbone: Pixels 0-255 [B, S, S, 3] to a feature map, as `build_backbone` makes it.
        head: Feature map or pooled features to logits [B, K] (or [B, 1]: of the second of two classes).
        temperature: What the logits are divided by.
        input_size: S.
        pooling: How the map becomes a vector where the head takes pooled features.
        flip: Whether the answer is the mean of the probabilities of the picture and of its mirror image; it takes
            twice the time.

    Returns:
        A LiteRT model: uint8 [1, S, S, 3] to calibrated probabilities [1, K].

    Raises:
        ModelRefused: If its answers are not finite or differ from Keras' by more than `TOLERANCE`.
    """
    return compile_graph(classifier_graph(backbone, head, temperature, pooling, flip), input_size, _classes(head))


def compile_scorer_int8(
    backbone: Any,
    head: Any,
    temperature: float,
    input_size: int,
    pooling: str,
    calibration: npt.NDArray[np.uint8],
    float32: bytes,
    flip: bool = False,
) -> tuple[bytes, ScorerIO]:
    """Compile a classifier that computes in 8-bit integers, but for its first convolutions and its head.

    Quantised after training. The first `FLOAT_CONVOLUTIONS` stay in float32: in a genuine MobileNetV2 they halve the
    error of the features, and take no time that could be measured. So does everything behind the pooling, because
    256 steps of a logit are coarse next to a threshold. What is left of the error shifts all images alike, and a
    weight for each class takes that away (see `matching_weights`).

    Args:
        backbone: As for `compile_scorer`.
        head: Likewise.
        temperature: Likewise.
        input_size: Likewise.
        pooling: Likewise.
        calibration: uint8 [N, S, S, 3], images of the training part; the first `CALIBRATION_IMAGES` are used.
        float32: The same classifier as `compile_scorer` makes it: what the mean of each class is matched to.
        flip: As for `compile_scorer`.

    Returns:
        A LiteRT model, uint8 [1, S, S, 3] to calibrated probabilities [1, K], and how it is fed and read. It is not
        compared with Keras, because it answers otherwise; whether it is good enough is for validation to say.

    Raises:
        ModelRefused: If it cannot be compiled, or its answers are not finite.
    """
    pictures = calibration[:CALIBRATION_IMAGES]
    graph = classifier_graph(backbone, head, temperature, pooling, flip)
    io = ScorerIO(input_size, _classes(head))
    # Weights that no model holds by chance: they mark the place where the fitted ones are written afterwards.
    marks = np.random.RandomState(8).uniform(1, 2, io.size).astype(np.float32)
    model = _quantised(lambda pixels: _weighted(graph(pixels), marks), pictures)
    scorer = Scorer(model, io)
    found = np.stack([scorer(picture) for picture in pictures]) / marks
    exact = Scorer(float32, io)
    wanted = np.stack([exact(picture) for picture in pictures])
    weights = matching_weights(found / found.sum(axis=1, keepdims=True), wanted)
    if model.count(marks.tobytes()) != 1:
        raise ModelRefused("The 8-bit model was compiled to another form than expected.", _REPORT)
    model = model.replace(marks.tobytes(), weights.tobytes())
    scorer = Scorer(model, io)
    for picture in golden_images(input_size):
        scorer(picture)  # refuses what is not finite
    return model, io


def matching_weights(
    found: npt.NDArray[np.floating[Any]], wanted: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float32]:
    """Weights of the classes that give changed probabilities the mean that they should have.

    Found by iterative scaling (Deming and Stephan 1940), as one corrects a classifier for another share of the
    classes: a weight is a constant that is added to a logit.

    Args:
        found: Probabilities of some images, [N, K].
        wanted: What they should have been.

    Returns:
        float32 [K]; probabilities times these, divided by their sum, have the means of `wanted`.
    """
    weights = np.ones(found.shape[1])
    target = np.maximum(wanted.mean(axis=0, dtype=np.float64), _LEAST)
    for _ in range(MATCHING_ROUNDS):
        weighted = np.maximum(found, _LEAST) * weights
        weights *= target / (weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0)
        weights /= weights.mean()
    return weights.astype(np.float32)


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
        raise ModelRefused("The compiled model does not answer what Keras answers, so it was not written.", _REPORT)
    return model


def _classes(head: Any) -> int:
    return max(int(head.output_shape[-1]), 2)


def classifier_graph(backbone: Any, head: Any, temperature: float, pooling: str, flip: bool) -> Graph:
    """Put a classifier together: float32 pixels 0-255 [B, S, S, 3] to calibrated probabilities [B, K].

    Operations of the head have `_HEAD` as scope. The arguments are those of `compile_scorer`.
    """
    keras = import_keras()
    import tensorflow as tf

    pooled = len(head.input_shape) == 2 and len(backbone.output_shape) == 4
    features = keras.Model(backbone.input, pool(backbone.output, pooling)) if pooled else backbone

    def once(pixels: Any) -> Any:
        flow = features(pixels, training=False)
        with tf.name_scope(_HEAD):
            return probabilities(head(flow, training=False), "logits", temperature)

    if not flip:
        return once

    def both(pixels: Any) -> Any:
        count = tf.shape(pixels)[0]
        answers = once(tf.concat([pixels, tf.reverse(pixels, [2])], axis=0))
        with tf.name_scope(_HEAD):
            return (answers[:count] + answers[count:]) * np.float32(0.5)

    return both


def _weighted(answers: Any, weights: npt.NDArray[np.float32]) -> Any:
    import tensorflow as tf

    weighted = answers * weights
    return weighted / tf.reduce_sum(weighted, axis=-1, keepdims=True)


def _convert(graph: Graph, input_size: int) -> bytes:
    return _explained(lambda: bytes(_converter(graph, input_size).convert()))


def freeze(graph: Graph, input_size: int, batch: int | None) -> Any:
    """A concrete function of uint8 pixels [batch, S, S, 3] that holds the graph's variables as constants.

    Args:
        graph: float32 [B, S, S, 3], 0-255, to float32 [B, K].
        input_size: S.
        batch: Images that it takes; None: any number.
    """
    traced = _traced(graph, input_size, batch)
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return convert_variables_to_constants_v2(traced)


def _traced(graph: Graph, input_size: int, batch: int | None) -> Any:
    """A concrete function of uint8 pixels [batch, S, S, 3]; its argument's name is that of the compiled input."""
    import_keras()
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([batch, input_size, input_size, 3], tf.uint8)])  # type: ignore[untyped-decorator]
    def answer(pixels: Any) -> Any:
        return graph(tf.cast(pixels, tf.float32))

    return answer.get_concrete_function()


def _converter(graph: Graph, input_size: int) -> Any:
    """A converter of the graph, which it freezes itself, for uint8 pixels [1, S, S, 3]."""
    traced = _traced(graph, input_size, 1)
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_concrete_functions([traced])


def _quantised(graph: Graph, pictures: npt.NDArray[np.uint8]) -> bytes:
    """Convert with 8-bit weights and answers of the layers, but for the first convolutions and the head."""

    def calibrate() -> bytes:
        import tensorflow as tf

        converter = _converter(graph, pictures.shape[1])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([picture[np.newaxis]] for picture in pictures)
        # Quantising apart from calibrating is the only way to name operations that shall stay as they are.
        converter._experimental_calibrate_only = True
        return bytes(converter.convert())

    def quantise(calibrated: bytes) -> bytes:
        from tensorflow.lite.python.convert import mlir_quantize

        return bytes(mlir_quantize(calibrated, denylisted_nodes=_float_operations(calibrated)))

    calibrated = _explained(calibrate)
    return _explained(lambda: quantise(calibrated))


def _float_operations(calibrated: bytes) -> list[str]:
    """Names of the operations that are not quantised: the first convolutions, the head and all behind it."""
    operations = operator_outputs(calibrated)
    convolutions = np.cumsum([is_convolution for is_convolution, _ in operations])
    names = [name for _, name in operations]
    head = next(place for place, name in enumerate(names) if name.startswith(_HEAD))
    return [name for place, name in enumerate(names) if convolutions[place] <= FLOAT_CONVOLUTIONS or place >= head]


def _explained(convert: Callable[[], bytes]) -> bytes:
    """Run the converter without its notes; what it refuses is said in one sentence."""
    import_keras()
    import tensorflow as tf

    try:
        with quiet_stderr(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return convert()
    except (ValueError, RuntimeError, TypeError, NotImplementedError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()
        raise ModelRefused(
            f"The model cannot be compiled for LiteRT: {reason[0][:200] if reason else type(error).__name__}.",
            "It uses an operation that LiteRT does not have.",
        ) from error
