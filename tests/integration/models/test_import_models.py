"""Models as others save them: real Keras and real converters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.errors import ModelRefused, UsageError
from pipelines.models.backbones import import_keras
from pipelines.models.golden import golden_images, self_test
from pipelines.models.importer import import_model
from pipelines.models.registry import list_models, resolve
from pipelines.models.runtime import Scorer

SIZE = 32
ABC = ("a", "b", "c")
Network = Callable[..., Any]


def network(units: int, activation: str | None, inside: tuple[str, ...] = ()) -> Any:
    keras = import_keras()
    layers = keras.layers
    keras.utils.set_random_seed(units)
    picture = keras.Input((SIZE, SIZE, 3))
    flow = layers.RandomFlip("horizontal")(picture)
    if "lambda" in inside:
        flow = layers.Lambda(lambda value: value * 2)(flow)
    flow = layers.Conv2D(4, 3, activation="relu")(flow)
    flow = layers.BatchNormalization()(flow)
    flow = layers.GlobalAveragePooling2D()(flow)
    return keras.Model(picture, layers.Dense(units, activation=activation)(layers.Dropout(0.3)(flow)))


def imported(path: Path, classes: tuple[str, ...], scaling: str, outputs: str = "probabilities") -> Any:
    made = import_model(
        str(path), str(path.parent / "MODELS"), "theirs", classes, SIZE, scaling, outputs, ["a"], preprocessing_id="p"
    )
    return resolve(made.uri)


def answers(bundle: Any) -> npt.NDArray[np.float32]:
    (precision,) = bundle.spec.scorers
    scorer = Scorer(*bundle.scorer(precision))
    assert self_test(bundle, scorer, precision)
    return np.stack([scorer(picture) for picture in golden_images(SIZE)])


def scaled(name: str) -> npt.NDArray[np.float32]:
    pixels = golden_images(SIZE).astype(np.float32)
    return {"0..1": pixels / 255, "-1..1": pixels / 127.5 - 1, "none": pixels}[name]


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("scaling", ["0..1", "-1..1"])
def test_a_keras_model_answers_as_it_did(tmp_path: Path, suffix: str, scaling: str) -> None:
    model = network(3, "softmax")
    model.compile("adam", "categorical_crossentropy")
    model.save(tmp_path / f"m{suffix}")
    bundle = imported(tmp_path / f"m{suffix}", ABC, scaling)
    np.testing.assert_allclose(answers(bundle), np.asarray(model(scaled(scaling), training=False)), atol=1e-4)
    assert {"weights.weights.h5", "architecture.json", "golden.json", "scorer.tflite"} == set(bundle.files)


def test_bgr_models_get_their_means_taken_off(tmp_path: Path) -> None:
    model = network(3, "softmax")
    model.save(tmp_path / "m.keras")
    pixels = import_keras().applications.vgg16.preprocess_input(scaled("none").copy())
    expected = np.asarray(model(pixels, training=False))
    np.testing.assert_allclose(answers(imported(tmp_path / "m.keras", ABC, "vgg16")), expected, atol=1e-4)


def test_one_sigmoid_unit_is_the_second_class(tmp_path: Path) -> None:
    for activation, outputs in (("sigmoid", "probabilities"), (None, "logits")):
        model = network(1, activation)
        model.save(tmp_path / "m.keras")
        p = np.asarray(model(scaled("0..1"), training=False))[:, 0]
        p = p if activation else 1 / (1 + np.exp(-p))
        bundle = imported(tmp_path / "m.keras", ("b", "a"), "0..1", outputs)
        np.testing.assert_allclose(answers(bundle), np.stack([1 - p, p], axis=1), atol=1e-4)


def test_logits_go_through_softmax(tmp_path: Path) -> None:
    model = network(3, None)
    model.save(tmp_path / "m.keras")
    logits = np.asarray(model(scaled("0..1"), training=False))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    bundle = imported(tmp_path / "m.keras", ABC, "0..1", "logits")
    np.testing.assert_allclose(answers(bundle), powers / powers.sum(axis=1, keepdims=True), atol=1e-4)
    with pytest.raises(UsageError, match="no probabilities"):
        imported(tmp_path / "m.keras", ABC, "0..1")


def test_code_and_classes_of_their_own_are_refused(tmp_path: Path) -> None:
    keras = import_keras()

    @keras.saving.register_keras_serializable("theirs")
    class Own(keras.layers.Dense):  # type: ignore[name-defined, misc]
        pass

    for suffix in (".keras", ".h5"):
        network(3, "softmax", ("lambda",)).save(tmp_path / f"lambda{suffix}")
        with pytest.raises(ModelRefused, match="Lambda"):
            imported(tmp_path / f"lambda{suffix}", ABC, "0..1")
    keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Flatten(), Own(3)]).save(tmp_path / "own.keras")
    with pytest.raises(ModelRefused, match="theirs>Own"):
        imported(tmp_path / "own.keras", ABC, "0..1")
    network(3, "softmax").save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(ModelRefused, match="weights without an architecture"):
        imported(tmp_path / "only.weights.h5", ABC, "0..1")
    assert list_models(str(tmp_path / "MODELS")) == []


def test_the_wrong_size_or_number_of_classes_is_named(tmp_path: Path) -> None:
    network(3, "softmax").save(tmp_path / "m.keras")
    with pytest.raises(UsageError, match="answers 3 numbers"):
        imported(tmp_path / "m.keras", ("a", "b"), "0..1")
    with pytest.raises(UsageError, match="takes 32×32"):
        import_model(
            str(tmp_path / "m.keras"), str(tmp_path), "n", ABC, 48, "0..1", positive=["a"], preprocessing_id="p"
        )


def converted(model: Any, quantise: str | None = None) -> bytes:
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    from pipelines.models.quiet import quiet_stderr

    function = tf.function(
        lambda pixels: model(pixels, training=False), input_signature=[tf.TensorSpec([1, SIZE, SIZE, 3])]
    )
    with quiet_stderr():
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [convert_variables_to_constants_v2(function.get_concrete_function())]
        )
        if quantise is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([picture[np.newaxis]] for picture in scaled("0..1"))
            converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(quantise)
        return bytes(converter.convert())


@pytest.mark.parametrize("quantise", [None, "uint8", "int8"])
def test_a_tflite_is_kept_and_scaled_outside(tmp_path: Path, quantise: str | None) -> None:
    model = network(3, "softmax")
    theirs = converted(model, quantise)
    (tmp_path / "m.tflite").write_bytes(theirs)
    bundle = imported(tmp_path / "m.tflite", ABC, "0..1")
    ((precision, entry),) = bundle.spec.scorers.items()
    assert bundle.read(entry.file) == theirs and precision == ("int8" if quantise else "float32")
    expected = np.asarray(model(scaled("0..1"), training=False))
    np.testing.assert_allclose(answers(bundle), expected, atol=0.06 if quantise else 1e-4)


@pytest.mark.parametrize("kind", ["custom", "Flex"])
def test_operators_that_litert_does_not_bring_are_refused(tmp_path: Path, kind: str) -> None:
    import tensorflow as tf

    from pipelines.models.quiet import quiet_stderr

    def graph(pixels: Any) -> Any:
        if kind == "custom":
            return tf.math.igamma(pixels[:, 0, 0, :], pixels[:, 0, 0, :])
        return tf.reshape(tf.linalg.inv(pixels[:, :3, :3, 0])[:, 0], [1, 3])

    function = tf.function(graph, input_signature=[tf.TensorSpec([1, SIZE, SIZE, 3])])
    with quiet_stderr():
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
        converter.allow_custom_ops = kind == "custom"
        if kind == "Flex":
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
        (tmp_path / "m.tflite").write_bytes(converter.convert())
    with pytest.raises(ModelRefused, match=kind):
        imported(tmp_path / "m.tflite", ABC, "0..1")


def test_models_live_in_a_bucket(s3: Any, tmp_path: Path) -> None:
    from pipelines.models.bundle import load_bundle
    from pipelines.models.registry import champion, promote

    network(3, "softmax").save(tmp_path / "m.keras")
    theirs = f"{s3.bucket}/theirs.keras"
    s3.filesystem.put_file(str(tmp_path / "m.keras"), theirs)
    models = f"{s3.uri}/models"
    for _ in range(2):
        made = import_model(f"s3://{theirs}", models, "n", ABC, SIZE, "0..1", positive=["a"], preprocessing_id="p")
    assert [(entry.version, entry.champion) for entry in list_models(models)] == [("v1", True), ("v2", False)]
    promote(f"{models}/n@v2")
    crowned = champion(models, "n")
    assert crowned is not None and [entry.version for entry in crowned.history] == ["v1", "v2"]
    assert resolve(f"{models}/n") == made

    cache = str(tmp_path / "cache")
    cached = load_bundle(made.uri, cache)
    assert self_test(cached, Scorer(*cached.scorer("float32")))
    Path(cache, cached.model_id, "scorer.tflite").write_bytes(b"altered here")
    assert load_bundle(made.uri, cache).read("scorer.tflite") == made.read("scorer.tflite")
    s3.filesystem.pipe_file(f"{made.uri}/scorer.tflite", b"altered there")
    with pytest.raises(ModelRefused, match="altered"):
        resolve(f"{models}/n@v2")
    with pytest.raises(ModelRefused, match="no version v3"):
        resolve(f"{models}/n@v3")
