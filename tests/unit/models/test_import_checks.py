from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipelines.errors import ModelRefused, UsageError
from pipelines.models import plain_layers
from pipelines.models.arrays import explain_misfit, read_shapes
from pipelines.models.bundle import load_bundle
from pipelines.models.declared import Declaration
from pipelines.models.golden import self_test
from pipelines.models.importer import import_model
from pipelines.models.operators import check_operators
from pipelines.models.probe import probe
from pipelines.models.registry import list_models
from pipelines.models.runtime import Scorer

MakeTflite = Callable[..., bytes]
Config = dict[str, Any]


def _layer(kind: str, **further: Any) -> Config:
    return {"module": "keras.layers", "class_name": kind, "config": {"name": "one"}, "registered_name": None, **further}


def _model(*layers: Config, **further: Any) -> Config:
    config = {"name": "net", "layers": list(layers)}
    return {"module": "keras", "class_name": "Sequential", "config": config, "registered_name": "Sequential", **further}


FOREIGN = [
    (_layer("Lambda"), "Lambda"),
    (_layer("Dense", config={"kernel_initializer": {"class_name": "__lambda__", "config": {"value": "x"}}}), "Lambda"),
    (_layer("Mine", module="my.package", registered_name="Custom>Mine"), "Custom>Mine"),
    (_layer("Dense", module="os"), "no plain"),
    (_layer("Dense", registered_name="Custom>Dense"), "Custom>Dense"),
    (_layer("TFSMLayer"), "TFSMLayer"),
    (_layer("TorchModuleWrapper"), "TorchModuleWrapper"),
    (_layer("TFOpLambda"), "TFOpLambda"),
    (_layer("StringLookup"), "StringLookup"),
    (_layer("Activation", config={"activation": {"class_name": "function", "config": "f"}}), "function"),
    (_layer("Sequential", config={"layers": [_layer("Lambda")]}), "Lambda"),
]


@pytest.mark.parametrize(("layer", "says"), FOREIGN)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_what_is_no_plain_layer_is_refused_before_keras_sees_it(
    tmp_path: Path, layer: Config, says: str, suffix: str
) -> None:
    path = tmp_path / f"theirs{suffix}"
    _write(path, _model(_layer("Dense"), layer))
    with pytest.raises(ModelRefused) as caught:
        import_model(str(path), str(tmp_path / "M"), "n", ["a", "b"], 8, "none", preprocessing_id="p")
    assert says in caught.value.message and "theirs" in caught.value.message
    assert list_models(str(tmp_path / "M")) == []


def _write(path: Path, config: Any) -> None:
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = json.dumps(config)
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", config if isinstance(config, bytes) else json.dumps(config))
        archive.writestr("model.weights.h5", b"x")


def test_what_a_model_was_compiled_with_is_left_out(tmp_path: Path) -> None:
    compiled = {"loss": {"class_name": "function", "config": "theirs"}}
    _write(tmp_path / "m.keras", _model(_model(_layer("Dense"), compile_config=compiled), compile_config=compiled))
    assert plain_layers.read_keras_archive(tmp_path / "m.keras") == _model(_model(_layer("Dense")))


@pytest.mark.parametrize(
    "config", [b"no json", b"[]", b"[" * 100_000, b'{"class_name": "Dense", "module": "keras.layers"}', b"\xff"]
)
def test_what_is_no_model_is_refused(tmp_path: Path, config: bytes) -> None:
    _write(tmp_path / "m.keras", config)
    with pytest.raises(ModelRefused):
        plain_layers.read_keras_archive(tmp_path / "m.keras")


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "m.keras", b" " * 2_000_000)
    monkeypatch.setattr(plain_layers, "MAX_CONFIG_BYTES", 1_000_000)
    with pytest.raises(ModelRefused, match="larger than"):
        plain_layers.read_keras_archive(tmp_path / "m.keras")
    monkeypatch.setattr(plain_layers, "MAX_WEIGHTS_BYTES", 0)
    with pytest.raises(ModelRefused, match="larger than"):
        plain_layers.extract_weights(tmp_path / "m.keras", tmp_path / "out")


def test_other_files_under_these_names_are_refused(tmp_path: Path) -> None:
    for name in ("a.keras", "a.h5", "a.tflite"):
        (tmp_path / name).write_bytes(b"something else")
        with pytest.raises(ModelRefused):
            import_model(str(tmp_path / name), str(tmp_path / "M"), "n", ["a", "b"], 8, "none", preprocessing_id="p")
    for name, says in (("a.pt", "no kind"), ("b.keras", "not there")):
        with pytest.raises(UsageError, match=says):
            import_model(str(tmp_path / name), str(tmp_path / "M"), "n", ["a", "b"], 8, "none", preprocessing_id="p")


def test_arrays_in_other_files_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones(3)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["layers/x"] = h5py.ExternalLink("secret.h5", "x")
    with pytest.raises(UsageError, match="links to something else"):
        read_shapes(tmp_path / "link.h5")
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("x", (3,), "f4", external=[("/etc/hostname", 0, 12)])
    with pytest.raises(UsageError, match="in another file"):
        read_shapes(tmp_path / "external.h5")
    (tmp_path / "no.h5").write_bytes(b"x")
    with pytest.raises(UsageError, match="not a readable HDF5"):
        read_shapes(tmp_path / "no.h5")


def test_a_misfit_is_explained() -> None:
    path, wanted = Path("w.h5"), [("Conv1 kernel", (3, 3, 3, 16)), ("Conv1 bias", (16,))]
    assert "where the file holds (3, 3, 3, 32)" in explain_misfit(path, {"a": (3, 3, 3, 32), "b": (16,)}, wanted)
    assert "it holds 1 arrays, 2 are wanted" in explain_misfit(path, {"a": (16,)}, wanted)
    top = {"a": (3, 3, 3, 16), "b": (16,), "c": (16, 1000), "d": (1000,)}
    assert "weights with the top" in explain_misfit(path, top, wanted)
    assert "under other names" in explain_misfit(path, {"a": (3, 3, 3, 16), "b": (17,)}, wanted)


@pytest.mark.parametrize("name", ["FlexMatrixInverse", "Igamma"])
def test_foreign_operators_are_named(make_tflite: MakeTflite, name: str) -> None:
    with pytest.raises(ModelRefused, match=f"operators: {name}") as caught:
        check_operators(make_tflite(custom=name))
    assert ("Flex" in caught.value.message) == name.startswith("Flex")
    check_operators(make_tflite())


def test_a_cut_model_is_refused_or_found_whole(make_tflite: MakeTflite) -> None:
    model = make_tflite()
    for length in range(0, len(model), 16):
        try:
            check_operators(model[:length])
        except ModelRefused:
            continue
        with pytest.raises((ModelRefused, UsageError)):
            probe(model[:length], Declaration(3, 8, "none", "logits"))
        break


def test_a_tflite_becomes_a_bundle_that_passes_its_self_test(make_tflite: MakeTflite, tmp_path: Path) -> None:
    (tmp_path / "theirs.tflite").write_bytes(make_tflite())
    made = import_model(
        str(tmp_path / "theirs.tflite"), str(tmp_path / "M"), "n", ["a", "b", "c"], 8, "0..1", "logits", ["c"],
        preprocessing_id="p",
    )  # fmt: skip
    bundle = load_bundle(made.uri)
    scorer = Scorer(*bundle.scorer("float32"))
    assert self_test(bundle, scorer)
    assert bundle.read("scorer.tflite") == make_tflite()
    assert bundle.decision(0.9) is None and bundle.positive_classes == ("c",)
    assert bundle.provenance["imported_file"] == "theirs.tflite"
    white = scorer(np.full((8, 8, 3), 255, np.uint8))
    np.testing.assert_allclose(white, [1 / 3] * 3, atol=1e-6)


def test_quantised_models_are_called_int8(make_tflite: MakeTflite, tmp_path: Path) -> None:
    (tmp_path / "q.tflite").write_bytes(make_tflite(dtype="uint8", scale=1 / 255))
    bundle = import_model(
        str(tmp_path / "q.tflite"), str(tmp_path / "M"), "n", ["a", "b", "c"], 8, "0..1", "logits", ["c"],
        preprocessing_id="p",
    )  # fmt: skip
    assert list(bundle.spec.scorers) == ["int8"]
    with pytest.raises(UsageError, match="kept as it came") as caught:
        bundle.scorer("float32")
    assert "--precision int8" in caught.value.cure
    assert self_test(bundle, Scorer(*bundle.scorer("int8")), "int8")


@pytest.mark.parametrize(
    ("dtype", "declaration", "says"),
    [
        ("float32", Declaration(3, 9, "none", "logits"), "takes 8×8 pixels"),
        ("float32", Declaration(2, 8, "none", "logits"), "answers 3 numbers"),
        ("float32", Declaration(3, 8, "none", "probabilities"), "no probabilities"),
        ("pixels", Declaration(3, 8, "0..1", "logits"), "without saying what they stand for"),
    ],
)
def test_what_was_declared_must_be_so(make_tflite: MakeTflite, dtype: str, declaration: Declaration, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        probe(make_tflite(dtype=dtype), declaration)


def test_a_model_that_takes_too_long_is_refused(make_tflite: MakeTflite) -> None:
    with pytest.raises(ModelRefused, match="longer than"):
        probe(make_tflite(), Declaration(3, 8, "none", "logits"), seconds=0.01)


def test_declared_outputs_are_compared_with_answers() -> None:
    probabilities = np.array([[0.2, 0.8], [0.5, 0.5]])
    Declaration(2, 8, "none").check_answers(probabilities, 1e-3)
    Declaration(2, 8, "none").check_answers(np.array([[0.2], [0.9]]), 1e-3)
    Declaration(2, 8, "none", "logits").check_answers(np.array([[-3.0, 2.0], [0.5, 0.5]]), 1e-3)
    with pytest.raises(UsageError, match="probabilities, not logits"):
        Declaration(2, 8, "none", "logits").check_answers(probabilities, 1e-3)
    with pytest.raises(UsageError, match="do not sum to 1"):
        Declaration(2, 8, "none").check_answers(np.array([[0.2, 0.2], [0.9, 0.9]]), 1e-3)
    for wrong in ({"scaling": "0-1"}, {"outputs": "labels"}):
        with pytest.raises(UsageError, match="Say one of"):
            Declaration(**{"classes": 2, "input_size": 8, "scaling": "none", **wrong})
