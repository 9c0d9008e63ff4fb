"""Real Keras against LiteRT. One backbone of each kind, small, built once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.errors import ModelRefused, UsageError
from pipelines.models import backbones, compile, heads
from pipelines.models.backbones import BACKBONES, BackboneSpec, build_backbone, import_keras
from pipelines.models.cut import cut_backbone
from pipelines.models.golden import golden_images
from pipelines.models.runtime import Scorer, ScorerIO

SIZE = 64
ALPHA = {"mobilenet_v2": 0.35}


def archive(size: int = SIZE, count: int = 16) -> npt.NDArray[np.uint8]:
    """Pictures that are much alike, as those of one archive are: soft cells on a bright ground."""
    state = np.random.RandomState(5)
    down, across = np.mgrid[:size, :size]
    pictures = np.full((count, size, size, 3), 215.0)
    for picture in pictures:
        for y, x, radius in state.uniform([0, 0, 3], [size, size, 9], (12, 3)):
            cell = np.exp(-((down - y) ** 2 + (across - x) ** 2) / radius**2)[..., np.newaxis]
            picture -= cell * state.uniform([40, 80, 30], [80, 140, 70])
    return np.clip(pictures + state.normal(0, 3, pictures.shape), 0, 255).astype(np.uint8)


@cache
def built(name: str) -> Any:
    return build_backbone(BackboneSpec(name, ALPHA.get(name, 1.0), SIZE), "none", 3, archive())


@cache
def small() -> Any:
    """A backbone of one layer, for what does not depend on which one it is."""
    keras = import_keras()
    keras.utils.set_random_seed(1)
    pixels = keras.Input((SIZE, SIZE, 3))
    flow = keras.layers.Conv2D(10, 5, strides=16, activation="relu")(keras.layers.Rescaling(1 / 255)(pixels))
    return keras.Model(pixels, flow)


def features_by_litert(model: bytes, length: int, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    scorer = Scorer(model, ScorerIO(images.shape[1], length, outputs="features"))
    return np.stack([scorer(picture) for picture in images])


@pytest.mark.parametrize("name", list(BACKBONES))
def test_litert_answers_what_keras_applications_answers(name: str) -> None:
    """Against a model of keras.applications fed by its own preprocess_input: none of our scaling is in it."""
    keras = import_keras()
    backbone = built(name)
    head = heads.build_head(
        heads.HeadSpec(3, dense_units=(8,), batch_norm=True, dropout=0.3), backbone.output_shape[1:]
    )
    model = compile.compile_scorer(backbone, head, 1.7, SIZE)

    module = {"resnet50_v2": "resnet_v2", "efficientnet_v2_b0": "efficientnet_v2"}.get(name, name)
    make = getattr(keras.applications, BACKBONES[name].function)
    width = {"alpha": ALPHA[name]} if name in ALPHA else {}
    theirs = make(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3), **width)
    theirs.set_weights(backbone.get_weights())
    images = np.concatenate([archive()[:4], golden_images(SIZE)[1:3]])
    scaled = getattr(keras.applications, module).preprocess_input(images.astype(np.float32).copy())
    logits = np.asarray(head(theirs(scaled, training=False), training=False)) / 1.7
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scorer = Scorer(model, ScorerIO(SIZE, 3))
    answers = np.stack([scorer(picture) for picture in images])
    np.testing.assert_allclose(answers, powers / powers.sum(axis=1, keepdims=True), atol=1e-4)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_weights_none_give_features_that_can_be_learned_on(name: str) -> None:
    features = np.asarray(built(name)(archive()[:12], training=False)).mean(axis=(1, 2))
    # Keras' own gives 1e-11 here.
    assert 0.01 < features.std(axis=0).mean() < 3
    wild = np.asarray(built(name)(golden_images(SIZE), training=False))
    assert np.isfinite(wild).all() and np.abs(wild).max() < 200


def test_the_seed_alone_decides_the_weights() -> None:
    import_keras().utils.set_random_seed(99)
    spec = BackboneSpec("mobilenet_v2", 0.35, SIZE)
    again = build_backbone(spec, "none", 3, archive())
    for ours, theirs in zip(built("mobilenet_v2").get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other = build_backbone(spec, "none", 4, archive())
    assert not np.array_equal(other.get_weights()[0], again.get_weights()[0])
    head, twin = (heads.build_head(heads.HeadSpec(2, dense_units=(4,)), (10,), seed=7) for _ in range(2))
    for ours, theirs in zip(head.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_mobilenet_has_the_layers_and_parameters_that_are_published() -> None:
    model = backbones.build_architecture(BackboneSpec("mobilenet_v2", 1.0, 224))
    assert len(model.layers) == 154 and model.count_params() == 2_257_984


@pytest.mark.parametrize("pooling", heads.POOLINGS)
def test_features_are_those_of_keras(pooling: str) -> None:
    backbone = small()
    maps = np.asarray(backbone(archive()[:3], training=False))
    expected = {"avg": maps.mean(axis=(1, 2)), "max": maps.max(axis=(1, 2)), "flatten": maps.reshape(3, -1)}[pooling]
    length = compile.feature_length(backbone, pooling)
    model = compile.compile_lower(cut_backbone(backbone, 0, pooling), SIZE)
    np.testing.assert_allclose(features_by_litert(model, length, archive()[:3]), expected, atol=1e-4)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_a_head_on_pooled_features_and_one_on_maps_compile_alike(pooling: str) -> None:
    backbone = small()
    on_maps = heads.build_head(heads.HeadSpec(2, pooling, output="sigmoid"), backbone.output_shape[1:])
    on_features = heads.build_head(heads.HeadSpec(2, pooling, output="sigmoid"), backbone.output_shape[-1:])
    on_features.set_weights(on_maps.get_weights())
    io = ScorerIO(SIZE, 2)
    one = Scorer(compile.compile_scorer(backbone, on_maps, 0.5, SIZE), io)
    other = Scorer(compile.compile_scorer(backbone, on_features, 0.5, SIZE, pooling), io)
    for picture in archive()[:3]:
        answer = one(picture)
        np.testing.assert_allclose(answer, other(picture), atol=1e-6)
        assert answer.sum() == pytest.approx(1, abs=1e-6)
        logit = float(np.asarray(on_maps(backbone(picture[np.newaxis], training=False)))[0, 0]) / 0.5
        assert answer[1] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)


def test_a_model_that_answers_nan_is_not_compiled() -> None:
    backbone = small()
    head = heads.build_head(heads.HeadSpec(2), backbone.output_shape[1:])
    head.set_weights([np.full_like(array, np.nan) for array in head.get_weights()])
    with pytest.raises(ModelRefused):
        compile.compile_scorer(backbone, head, 1.0, SIZE)


# Keras warns of each container before it fails at the first array; a user sees our sentence alone.
@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")
def test_weights_go_through_a_file_and_must_fit(tmp_path: Path) -> None:
    spec = BackboneSpec("mobilenet_v2", 0.35, SIZE)
    path = tmp_path / "own.weights.h5"
    path.write_bytes(backbones.weights_to_bytes(built("mobilenet_v2")))
    again = build_backbone(spec, str(path))
    np.testing.assert_array_equal(again.get_weights()[7], built("mobilenet_v2").get_weights()[7])
    with pytest.raises(UsageError, match=r"Conv1 kernel is of shape .* where the file holds"):
        build_backbone(BackboneSpec("mobilenet_v2", 1.0, SIZE), str(path))
    with pytest.raises(UsageError, match="260 arrays, 26 are wanted"):
        build_backbone(BackboneSpec("vgg16", 1.0, SIZE), str(path))
    for weights, says in ((str(tmp_path / "no.h5"), "not there"), ("imagnet", "not known")):
        with pytest.raises(UsageError, match=says):
            build_backbone(spec, weights)


def test_genuine_weights_are_found_and_equal_keras_own_loading(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTREAD_WEIGHTS", str(shared_data / "weights"))
    ours = build_backbone(BackboneSpec("mobilenet_v2", 0.35, 96), "imagenet")
    path = shared_data / "weights" / "mobilenet_v2_0.35_224_no_top.weights.h5"
    keras = import_keras()
    theirs = keras.applications.MobileNetV2((96, 96, 3), 0.35, include_top=False, weights=str(path))
    images = archive(96, 2)
    expected = np.asarray(theirs(images / np.float32(127.5) - 1, training=False))
    np.testing.assert_allclose(np.asarray(ours(images, training=False)), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["refusing", "silent"])
def test_imagenet_without_internet_says_at_once_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from pipelines.models.weights import obtain_published

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("NIGHTREAD_WEIGHTS", str(tmp_path / "weights"))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if kind == "silent":
            server.listen()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(UsageError) as caught:
            obtain_published("resnet50_v2", 1.0, 224)
        assert time.monotonic() - start < 8
    text = str(caught.value)
    for part in ("resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5", "fac2f116257151a9d068a22e544a4917"):
        assert part in text
    assert str(tmp_path / "weights") in text and "--weights none" in text
    assert not (tmp_path / "keras").exists()


COMPILE_QUIETLY = """
from pipelines.models import backbones, compile, heads
keras = backbones.import_keras()
pixels = keras.Input((32, 32, 3))
backbone = keras.Model(pixels, keras.layers.Conv2D(4, 3)(pixels))
head = heads.build_head(heads.HeadSpec(2), backbone.output_shape[1:])
import sys
open(sys.argv[1], "wb").write(compile.compile_scorer(backbone, head, 1.0, 32))
"""
SCORE = """
import sys
import numpy as np
from pipelines.models import bundle, golden, registry
from pipelines.models.runtime import Scorer, ScorerIO
scorer = Scorer(open(sys.argv[1], "rb").read(), ScorerIO(32, 2))
assert abs(scorer(np.zeros((32, 32, 3), np.uint8)).sum() - 1) < 1e-5
assert not [name for name in sys.modules if name.partition(".")[0] in ("tensorflow", "keras", "ray")]
"""


def test_compiling_is_quiet_and_scoring_needs_no_tensorflow(tmp_path: Path, checkout: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    environment["PYTHONPATH"] = str(checkout)
    for script in (COMPILE_QUIETLY, SCORE):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "model.tflite")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
