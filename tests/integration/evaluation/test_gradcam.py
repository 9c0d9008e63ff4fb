"""Grad-CAM against a backward pass written out in NumPy, and whether the heat lies where the evidence does."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from pipelines.evaluation.gradcam import grad_cam
from pipelines.models.backbones import BackboneSpec, build_backbone, import_keras
from pipelines.models.compile import feature_length
from pipelines.models.golden import golden_images
from pipelines.models.heads import HeadSpec, build_head, pool
from pipelines.models.rebuild import Rebuilt

SIZE = 96
SPEC = BackboneSpec("mobilenet_v2", 0.35, SIZE)
RNG = np.random.default_rng(4)


@cache
def backbone() -> Any:
    return build_backbone(SPEC, "none", 5)


def network(**head: Any) -> Rebuilt:
    """A network whose head's arrays are all drawn, statistics of its normalisation among them."""
    spec = HeadSpec(**{"classes": 3} | head)
    made = build_head(spec, (feature_length(backbone(), spec.pooling),), 7)
    made.set_weights([np.abs(a) + 0.3 if "variance" in v.name else a + RNG.normal(0, 0.2, a.shape)
                      for v, a in zip(made.weights, made.get_weights(), strict=True)])  # fmt: skip
    return Rebuilt(SPEC, spec, backbone(), made)


def through_head(net: Rebuilt, features: np.ndarray, label: int) -> tuple[float, np.ndarray]:
    """The logit of a class from one feature map `[h, w, C]`, and its gradient with respect to it, by the chain rule."""
    pooling = net.head_spec.pooling
    flow = {"avg": features.mean(axis=(0, 1)), "max": features.max(axis=(0, 1)), "flatten": features.ravel()}[pooling]
    backwards: list[Callable[[np.ndarray], np.ndarray]] = []
    for layer in net.head.layers:
        arrays = [np.asarray(array, np.float64) for array in layer.get_weights()]
        if type(layer).__name__ == "Dense":
            flow = flow @ arrays[0] + arrays[1]
            backwards.append(lambda back, kernel=arrays[0]: kernel @ back)
            if layer.name != "logits":
                backwards.append(lambda back, on=flow > 0: back * on)
                flow = np.maximum(flow, 0)
        elif type(layer).__name__ == "BatchNormalization":
            gamma, beta, mean, variance = arrays
            scale = gamma / np.sqrt(variance + layer.epsilon)
            flow = (flow - mean) * scale + beta
            backwards.append(lambda back, scale=scale: back * scale)
    if net.head_spec.output == "sigmoid":
        back, logit = np.array([1.0 if label else -1.0]), flow[0] * (1 if label else -1)
    else:
        back, logit = np.eye(len(flow))[label], flow[label]
    for step in reversed(backwards):
        back = step(back)
    if pooling == "flatten":
        return float(logit), back.reshape(features.shape)
    share = np.full(features.shape, 1 / features[..., 0].size)
    if pooling == "max":
        highest = features == features.max(axis=(0, 1))
        share = highest / highest.sum(axis=(0, 1))
    return float(logit), share * back


HEADS: list[dict[str, Any]] = [
    {},
    {"pooling": "avg", "batch_norm": True, "dropout": 0.4, "classes": 2, "output": "sigmoid"},
    {"pooling": "avg", "dense_units": (6,)},
    {"pooling": "flatten", "dense_units": (5,), "batch_norm": True, "dropout": 0.5},
    {"pooling": "flatten", "classes": 2, "output": "sigmoid"},
    {"pooling": "max", "dense_units": (6,)},
]


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_the_maps_are_those_of_the_paper(head: dict[str, Any]) -> None:
    net = network(**head)
    pictures = golden_images(SIZE)[:4]
    classes = np.arange(4) % net.head_spec.classes
    found = grad_cam(net, pictures, classes)
    pixels = pictures.astype(np.float32)
    maps = np.asarray(net.backbone(pixels, training=False), np.float64)
    answers = np.asarray(net.head(pool(maps.astype(np.float32), net.head_spec.pooling), training=False))
    for place, label in enumerate(classes.tolist()):
        logit, gradient = through_head(net, maps[place], label)
        own = answers[place]
        assert logit == pytest.approx((own[0] if label else -own[0]) if len(own) == 1 else own[label], abs=1e-4)
        wanted = np.maximum((gradient.mean(axis=(0, 1)) * maps[place]).sum(axis=-1), 0)
        np.testing.assert_allclose(found[place], wanted / wanted.max() if wanted.max() else wanted, atol=1e-3)
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() == 1


def test_the_gradient_is_that_of_small_steps() -> None:
    """The chain rule above itself, held against differences of the network's own logit."""
    net = network(pooling="avg", dense_units=(6,), batch_norm=True)
    features = np.asarray(net.backbone(golden_images(SIZE)[:1].astype(np.float32), training=False))[0]
    _, gradient = through_head(net, features.astype(np.float64), 2)
    step = 0.05
    for place in ((0, 0, 3), (1, 2, 700), (2, 1, 1279)):
        ends = []
        for sign in (1, -1):
            moved = features.copy()
            moved[place] += sign * step
            ends.append(float(np.asarray(net.head(moved.mean(axis=(0, 1))[None]))[0, 2]))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(gradient[place], rel=0.02, abs=2e-5)


def test_heat_lies_where_the_evidence_does() -> None:
    """A backbone whose features are the mean colours of nine parts: nothing is mirrored, turned or exchanged."""
    keras = import_keras()
    pixels = keras.Input((SIZE, SIZE, 3))
    means = keras.Model(pixels, keras.layers.AveragePooling2D(SIZE // 3)(pixels))
    spec = HeadSpec(3)
    head = build_head(spec, (3,))
    head.layers[-1].set_weights([np.eye(3, dtype=np.float32), np.zeros(3, np.float32)])
    net = Rebuilt(SPEC, spec, means, head)
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    picture[32:64, 64:96, 0] = 200  # red, in the middle of the right side
    picture[64:96, 0:32, 1] = 100  # green, at the bottom on the left
    picture[64:96, 32:64, 1] = 50
    red, green, blue = grad_cam(net, np.stack([picture] * 3), np.array([0, 1, 2]))
    np.testing.assert_array_equal(red, [[0, 0, 0], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(green, [[0, 0, 0], [0, 0, 0], [1, 0.5, 0]])
    assert (blue == 0).all()


def test_nothing_speaks_for_a_class() -> None:
    net = network(classes=2, output="sigmoid")
    net.head.layers[-1].set_weights([np.full((1280, 1), -1.0), np.array([3.0])])
    pictures = golden_images(SIZE)[:2]
    # The last features are not negative, so that all of them speak against class 1, and for class 0.
    heat = grad_cam(net, pictures, np.array([1, 0]))
    assert (heat[0] == 0).all() and heat[1].max() == 1


def test_many_and_none_at_once() -> None:
    net = network()
    pictures, classes = golden_images(SIZE), np.array([0, 1, 2, 0, 1, 2])
    together = grad_cam(net, pictures, classes)
    for place in (1, 4):
        alone = grad_cam(net, pictures[place : place + 1], classes[place : place + 1])[0]
        np.testing.assert_array_equal(together[place], alone)
    assert grad_cam(net, pictures[:0], classes[:0]).shape == (0, 3, 3)
    for wrong in (np.array([3]), np.array([-1])):
        with pytest.raises(ValueError, match="1 classes for 96 px"):
            grad_cam(net, pictures[:1], wrong)
    with pytest.raises(ValueError):
        grad_cam(net, pictures[:2], np.array([0]))
