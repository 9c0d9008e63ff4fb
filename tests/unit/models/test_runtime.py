from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

from pipelines.errors import ModelRefused
from pipelines.models.bundle import write_bundle
from pipelines.models.golden import GOLDEN_FILE, golden_answers, golden_images, make_golden, self_test
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import Quantisation, Scorer, ScorerIO, _probabilities

MakeTflite = Callable[..., bytes]
PIXELS = np.random.RandomState(0).randint(0, 256, (8, 8, 3)).astype(np.uint8)
MEANS = PIXELS.mean(axis=(0, 1))


def test_pixels_that_the_graph_takes_as_they_are(make_tflite: MakeTflite) -> None:
    scorer = Scorer(make_tflite(dtype="pixels"), ScorerIO(8, 3))
    first = scorer(PIXELS)
    assert first.dtype == np.float32
    np.testing.assert_allclose(first, MEANS, rtol=1e-5)
    scorer(np.zeros_like(PIXELS))
    np.testing.assert_allclose(first, MEANS, rtol=1e-5)  # the caller's own, not a view of the model's memory


def test_scaling_and_channel_order_outside_the_graph(make_tflite: MakeTflite) -> None:
    io = ScorerIO(8, 3, "float32", (0.5, 2.0, 1.0), (1.0, -3.0, 0.0), outputs="features")
    expected = MEANS * [0.5, 2.0, 1.0] + [1.0, -3.0, 0.0]
    np.testing.assert_allclose(Scorer(make_tflite(), io)(PIXELS), expected, rtol=1e-5)
    turned = Scorer(make_tflite(), replace(io, reverse_channels=True))
    np.testing.assert_allclose(turned(PIXELS), expected[::-1], rtol=1e-5)


@pytest.mark.parametrize(("dtype", "zero_point"), [("uint8", 128), ("int8", 0)])
def test_quantised_input_and_output(make_tflite: MakeTflite, dtype: str, zero_point: int) -> None:
    step = Quantisation(1 / 127.5, zero_point)
    io = ScorerIO(8, 3, dtype, (1 / 127.5,) * 3, (-1.0,) * 3, False, step, step, "features")
    scorer = Scorer(make_tflite(dtype=dtype, scale=step.scale, zero_point=zero_point), io)
    np.testing.assert_allclose(scorer(PIXELS), MEANS / 127.5 - 1, atol=1.5 / 127.5)


def test_softmax_and_temperature_outside_the_graph(make_tflite: MakeTflite) -> None:
    io = ScorerIO(8, 3, "float32", (1 / 255,) * 3, outputs="logits", temperature=0.3)
    np.testing.assert_allclose(Scorer(make_tflite(), io)(PIXELS), softmax(MEANS / 255 / 0.3), atol=1e-6)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=5), st.floats(0.2, 5))
def test_logits_become_probabilities(logits: list[float], temperature: float) -> None:
    answer = np.array(logits)
    io = ScorerIO(8, len(logits), outputs="logits", temperature=temperature)
    np.testing.assert_allclose(_probabilities(answer, io), softmax(answer / temperature), atol=1e-12)
    # Calibrated probabilities are what calibrated logits would have given.
    again = _probabilities(softmax(answer), replace(io, outputs="probabilities", temperature=temperature))
    np.testing.assert_allclose(again, softmax(np.log(np.clip(softmax(answer), 1e-12, 1)) / temperature), atol=1e-9)


@given(st.floats(-30, 30), st.floats(0.2, 5))
def test_one_unit_is_the_second_of_two_classes(logit: float, temperature: float) -> None:
    io = ScorerIO(8, 2, outputs="logits", sigmoid_unit=True, temperature=temperature)
    p = expit(logit / temperature)
    np.testing.assert_allclose(_probabilities(np.array([logit]), io), [1 - p, p], atol=1e-12)
    plain = replace(io, outputs="probabilities", temperature=1.0)
    np.testing.assert_allclose(_probabilities(np.array([p]), plain), [1 - p, p], atol=1e-11)
    calibrated = _probabilities(np.array([expit(logit)]), replace(io, outputs="probabilities"))
    if abs(logit) < 20:
        np.testing.assert_allclose(calibrated, [1 - p, p], atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_refuses_the_model(make_tflite: MakeTflite, value: float) -> None:
    scorer = Scorer(make_tflite(), ScorerIO(8, 3, "float32", offset=(value, 0.0, 0.0)))
    with pytest.raises(ModelRefused, match="not finite"):
        scorer(PIXELS)


def test_a_model_that_is_not_what_its_record_says_is_refused(make_tflite: MakeTflite) -> None:
    for io in (ScorerIO(8, 2, "float32"), ScorerIO(8, 3, "uint8"), ScorerIO(8, 2, "float32", sigmoid_unit=True)):
        with pytest.raises(ModelRefused, match="declares"):
            Scorer(make_tflite(), io)
    with pytest.raises(ModelRefused, match="cannot load"):
        Scorer(b"no model", ScorerIO(8, 3))


def test_the_description_travels(make_tflite: MakeTflite) -> None:
    io = ScorerIO(8, 3, "int8", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), True, Quantisation(0.5, -3), None, "logits")
    assert pickle.loads(pickle.dumps(io)) == io
    assert ScorerIO.from_json(json.loads(json.dumps(io.to_json()))) == io
    for wrong in ({"input_dtype": "float64"}, {"outputs": "x"}, {"size": 0}, {"temperature": 0.0}):
        with pytest.raises(ValueError):
            ScorerIO.from_json({**io.to_json(), **wrong})


def test_golden_images_are_the_same_for_ever() -> None:
    import hashlib

    images = golden_images(32)
    assert images.shape == (6, 32, 32, 3) and images.dtype == np.uint8
    assert hashlib.sha256(images.tobytes()).hexdigest() == GOLDEN_32
    assert golden_images(1).shape == (6, 1, 1, 3)


GOLDEN_32 = "725371ca29e6874dfbe29ffe8474452b7998a30d01bf0c80fad46f0e5de4b0ee"


def test_the_self_test_finds_a_model_that_answers_otherwise(make_tflite: MakeTflite, tmp_path: Path) -> None:
    io = ScorerIO(8, 3, "float32", (1 / 255,) * 3, outputs="logits")
    scorer = Scorer(make_tflite(), io)
    spec = BundleSpec(("a", "b", "c"), ("c",), 8, "p", {"float32": ScorerEntry("scorer.tflite", io)})
    golden = make_golden({"float32": golden_answers(scorer, 8)}, 8)
    bundle = write_bundle(str(tmp_path), "cells", spec, {"scorer.tflite": make_tflite(), GOLDEN_FILE: golden})
    assert self_test(bundle, Scorer(*bundle.scorer("float32")))
    assert not self_test(bundle, scorer, "int8")

    def shifted(by: float) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
        return lambda pixels: (scorer(pixels) + np.float32(by)).astype(np.float32)

    assert self_test(bundle, shifted(5e-5))
    for by in (2e-4, float("nan")):
        with pytest.raises(ModelRefused, match="self-test"):
            self_test(bundle, shifted(by))


def test_a_bundle_without_or_with_a_broken_golden_file(make_tflite: MakeTflite, tmp_path: Path) -> None:
    io = ScorerIO(8, 3, "float32")
    spec = BundleSpec(("a", "b", "c"), ("c",), 8, "p", {"float32": ScorerEntry("scorer.tflite", io)})
    files = {"scorer.tflite": make_tflite()}
    scorer = Scorer(make_tflite(), io)
    assert not self_test(write_bundle(str(tmp_path), "cells", spec, files), scorer)
    good = json.loads(make_golden({"float32": golden_answers(scorer, 8)}, 8))
    for broken in (b"no json", b"{}", json.dumps({**good, "images_sha256": "0"}).encode()):
        with pytest.raises(ModelRefused):
            self_test(write_bundle(str(tmp_path), "cells", spec, {**files, GOLDEN_FILE: broken}), scorer)
