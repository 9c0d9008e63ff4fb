"""The two parts of a cut backbone together are the backbone, wherever it is cut."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from pipelines.models.backbones import BACKBONES, BackboneSpec, build_architecture, build_backbone, import_keras
from pipelines.models.compile import compile_lower
from pipelines.models.cut import count_layers, count_parameters, cut_backbone
from pipelines.models.golden import golden_images
from pipelines.models.heads import HeadSpec, build_head
from pipelines.models.runtime import Scorer, ScorerIO

SIZE = 64
ALPHA = {"mobilenet_v2": 0.35}
LAYERS = {"mobilenet_v2": 154, "resnet50_v2": 190, "efficientnet_v2_b0": 268, "vgg16": 19}


@cache
def built(name: str) -> Any:
    return build_backbone(BackboneSpec(name, ALPHA.get(name, 1.0), SIZE), "none", 3)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_lower_and_upper_part_make_the_backbone(name: str) -> None:
    backbone = built(name)
    pixels = golden_images(SIZE)[:2].astype(np.float32)
    wanted = np.asarray(backbone(pixels, training=False))
    everything = LAYERS[name]
    for layers in (1, 2, 6, 30, everything // 2, everything - 1, everything, 10_000):
        cut = cut_backbone(backbone, layers, "avg")
        assert cut.layers == min(layers, everything)
        crossing = pixels if cut.lower is None else np.asarray(cut.lower(pixels, training=False))
        assert crossing.size == 2 * cut.size
        np.testing.assert_allclose(np.asarray(cut.upper(crossing, training=False)), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_layers_are_those_of_keras_applications(name: str) -> None:
    keras = import_keras()
    width = {"alpha": ALPHA[name]} if name in ALPHA else {}
    make = getattr(keras.applications, BACKBONES[name].function)
    own = dict(BACKBONES[name].arguments)
    theirs = make(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3), **width, **own)
    ours = built(name)
    assert [type(layer) for layer in ours.layers] == [type(layer) for layer in theirs.layers]
    assert len(ours.layers) == LAYERS[name]
    for count in (1, 30, LAYERS[name]):
        # The arrays that Keras itself would train if all layers but the last were frozen.
        for place, layer in enumerate(theirs.layers):
            layer.trainable = place >= len(theirs.layers) - count
        wanted = [tuple(one.shape) for one in theirs.trainable_variables]
        assert [tuple(one.shape) for one in cut_backbone(ours, count, "avg").variables] == wanted


def test_what_crosses_the_cuts_that_are_published() -> None:
    mobilenet = build_architecture(BackboneSpec("mobilenet_v2", 1.0, 224))
    assert cut_backbone(mobilenet, 30, "avg").size == 7 * 7 * 160
    # A shortcut passes this one, so two tensors cross: 4 x 4 x 512 of the branch and 2 x 2 x 2048 beside it.
    resnet = cut_backbone(built("resnet50_v2"), 30, "avg")
    assert resnet.lower.outputs[0].shape[-1] == resnet.size == 12_288


def test_a_network_is_counted_as_the_paper_counts() -> None:
    backbone = build_architecture(BackboneSpec("mobilenet_v2", 1.0, 224))
    spec = HeadSpec(2, "avg", batch_norm=True, dropout=0.4, output="sigmoid")
    for shape in ((7, 7, 1280), (1280,)):
        head = build_head(spec, shape)
        assert count_layers(backbone, head) == 158
        assert count_parameters(backbone, head) == 2_264_385
    names = [type(layer).__name__ for layer in build_head(spec, (7, 7, 1280)).layers]
    assert names == ["InputLayer", "GlobalAveragePooling2D", "BatchNormalization", "Dropout", "Dense"]


def test_training_the_upper_part_trains_the_backbone() -> None:
    import tensorflow as tf

    backbone = build_backbone(BackboneSpec("mobilenet_v2", 0.35, SIZE), "none", 4)
    cut = cut_backbone(backbone, 30, "avg")
    before = [array.copy() for array in backbone.get_weights()]
    crossing = tf.random.stateless_normal((4, cut.size), (1, 2))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(cut.upper(crossing, training=False)))
    variables = [one.value for one in cut.variables]
    gradients = tape.gradient(loss, variables)
    assert all(gradient is not None for gradient in gradients)
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_sub(0.1 * gradient)
    changed = [not np.array_equal(old, new) for old, new in zip(before, backbone.get_weights(), strict=True)]
    trained = {id(one) for one in cut.variables}
    # Scales of a layer whose answers are cut off may have no gradient, but nothing else may change: no statistics.
    assert any(changed)
    assert all(id(one) in trained for one, moved in zip(backbone.weights, changed, strict=True) if moved)


def test_the_lower_part_runs_in_litert() -> None:
    backbone = built("mobilenet_v2")
    for layers in (0, 30):
        cut = cut_backbone(backbone, layers, "avg")
        scorer = Scorer(compile_lower(cut, SIZE), ScorerIO(SIZE, cut.size, outputs="features"))
        images = golden_images(SIZE)[:2]
        wanted = np.asarray(cut.lower(images.astype(np.float32), training=False))
        np.testing.assert_allclose(np.stack([scorer(one) for one in images]), wanted, atol=1e-3, rtol=1e-3)


def test_a_negative_number_of_layers_is_a_defect() -> None:
    with pytest.raises(ValueError, match="-1 layers"):
        cut_backbone(built("vgg16"), -1, "avg")
