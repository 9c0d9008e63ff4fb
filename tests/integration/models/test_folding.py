"""Folded normalisation: the same answers and the same gradients as Keras' own layers."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.models.backbones import BACKBONES, BackboneSpec, build_backbone
from pipelines.models.cut import cut_backbone
from pipelines.models.folding import fold


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_answers_and_gradients_are_those_of_the_layers(name: str) -> None:
    import tensorflow as tf

    backbone = build_backbone(BackboneSpec(name, 0.35 if name == "mobilenet_v2" else 1.0, 48), "none", seed=2)
    cut = cut_backbone(backbone, len(backbone.layers) // 2, "avg")
    assert cut.lower is not None and cut.upper is not None
    pixels = np.random.default_rng(0).integers(0, 255, (3, 48, 48, 3)).astype(np.float32)
    flat = cut.lower(pixels, training=False)
    np.testing.assert_allclose(fold(cut.lower)(pixels), flat, rtol=1e-3, atol=1e-3 * float(np.abs(flat).max()))
    found = []
    for answer in (lambda x: cut.upper(x, training=False), fold(cut.upper)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(answer(flat) ** 2)
        found.append((loss, tape.gradient(loss, [one.value for one in cut.variables])))
    (loss, gradients), (folded_loss, folded_gradients) = found
    assert float(folded_loss) == pytest.approx(float(loss), rel=1e-4)
    for one, other in zip(gradients, folded_gradients, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-2, atol=1e-3 * float(np.abs(one).max()) + 1e-7)


def test_a_changed_array_is_seen_at_the_next_call() -> None:
    backbone = build_backbone(BackboneSpec("mobilenet_v2", 0.35, 48), "none", seed=2)
    answer = fold(backbone)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 48, 48, 3)).astype(np.float32)
    before = np.asarray(answer(pixels))
    for layer in backbone.layers[-10:]:
        layer.set_weights([array * 1.1 for array in layer.get_weights()])
    after = np.asarray(answer(pixels))
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_allclose(after, backbone(pixels, training=False), rtol=1e-3, atol=1e-3)
