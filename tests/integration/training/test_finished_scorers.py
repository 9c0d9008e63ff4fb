"""From trained weights to scorers, threshold and bundle, with Keras and LiteRT; no Ray."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import ModelRefused, TryLater, UsageError
from pipelines.evaluation.calibration import class_logits, fit_temperature, probabilities
from pipelines.evaluation.thresholds import fit_point
from pipelines.images.preprocess import Preprocessing
from pipelines.models.golden import self_test
from pipelines.models.rebuild import joined
from pipelines.models.registry import resolve
from pipelines.models.runtime import Scorer, ScorerIO
from pipelines.scoring.answers import answer_images
from pipelines.storage import paths
from pipelines.training.audit import LeakAudit
from pipelines.training.config import TrainConfig
from pipelines.training.dataset import Dataset, PartImages
from pipelines.training.finishing import Finished, Trained, Validation, choose_calibration, finish
from pipelines.training.judging import judge
from pipelines.training.labelled import DataConfig
from pipelines.training.loop import FitResult
from pipelines.training.network import Network, build_network, prepared_pixels
from pipelines.training.recipes import Recipe, load_recipe
from pipelines.training.versus import Validated, compare
from pipelines.training.writing import Made, write

SIZE = 64
CLASSES = ("dark", "bright")


@dataclass(frozen=True)
class Fit:
    """A network whose head was fitted, on drawn images of which the first half trains and the rest validates."""

    recipe: Recipe
    network: Network
    trained: Trained
    images: pa.Table
    labels: np.ndarray
    validation: Validation
    pixels: np.ndarray


def facts(files: list[Path]) -> pa.Table:
    prepared = [Preprocessing(SIZE).prepare(path.read_bytes()) for path in files]
    return pa.table(
        {
            "image_uri": [paths.canonical(str(path)) for path in files],
            "content_sha256": [one.content_sha256 for one in prepared],
            "mean_intensity": [one.mean_intensity for one in prepared],
            "width": [one.width for one in prepared],
            "height": [one.height for one in prepared],
        }
    )


def make_fit(files: list[Path], **settings: str) -> Fit:
    from sklearn.linear_model import LogisticRegression

    recipe = load_recipe("frozen", {"alpha": "0.35", "input_size": str(SIZE), "dropout": "0"} | settings)
    images = facts(files)
    pixels = prepared_pixels(images["image_uri"].to_pylist(), SIZE)
    brightness = pixels.mean(axis=(1, 2, 3))
    labels = (brightness + np.random.default_rng(0).normal(0, 10, len(pixels)) > 74).astype(np.int64)
    half = len(files) // 2
    network = build_network(recipe, 2, "none", 0, pixels[:half])
    features = np.asarray(network.cut.lower(pixels.astype(np.float32), training=False))
    line = LogisticRegression(C=0.01, max_iter=500).fit(features[:half], labels[:half])
    kernel, bias = line.coef_.T, line.intercept_
    single = network.head.output_shape[-1] == 1
    arrays = [kernel, bias] if single else [np.hstack([-kernel, kernel]) / 2, np.concatenate([-bias, bias]) / 2]
    network.head.set_weights(arrays)
    trained = Trained(network.backbone, network.head, SIZE, recipe.pooling, recipe.flip_at_prediction)
    logits = np.asarray(joined(network.backbone, network.head, "avg")(pixels[half:].astype(np.float32)))
    validation = Validation(images.slice(half), labels[half:], logits)
    return Fit(recipe, network, trained, images, labels, validation, pixels[half:])


def finished(fit: Fit) -> Finished:
    half = len(fit.labels) // 2
    uris, contents = fit.images["image_uri"].to_pylist()[:half], fit.images["content_sha256"].to_pylist()[:half]
    return finish(fit.trained, fit.validation, choose_calibration(uris, fit.labels[:half], contents), [1], (0.9, 0.8))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of blots, more or less bright."""
    folder, made = tmp_path_factory.mktemp("drawn"), []
    for number in range(120):
        random = np.random.default_rng(number)
        coarse = random.integers(0, random.integers(40, 256), (9, 12, 3))
        made.append(folder / f"b{number:03d}.png")
        picture = cv2.resize(coarse.astype(np.uint8), (80, 60), interpolation=cv2.INTER_CUBIC)
        made[-1].write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return made


@pytest.fixture(scope="module")
def fit(files: list[Path]) -> Fit:
    return make_fit(files)


@pytest.fixture(scope="module")
def done(fit: Fit) -> Finished:
    return finished(fit)


def test_the_recorded_probabilities_are_those_that_scoring_gives(fit: Fit, done: Finished) -> None:
    scorer = Scorer(done.scorer, done.io)
    again = np.stack([scorer(picture) for picture in fit.pixels])
    np.testing.assert_array_equal(done.probabilities, again)
    assert done.temperature == fit_temperature(class_logits(fit.validation.logits), fit.validation.labels)
    wanted = probabilities(fit.validation.logits, done.temperature)
    np.testing.assert_allclose(done.probabilities, wanted, atol=1e-4)
    assert done.patients == {}
    called = again[:, 1].astype(np.float64) >= done.point.threshold
    truth = fit.validation.labels == 1
    assert called[truth].mean() == done.point.sensitivity >= 0.9
    assert (~called[~truth]).mean() == pytest.approx(done.point.specificity)


def test_patients_have_thresholds_of_their_own_where_they_are_known(fit: Fit) -> None:
    patients = tuple(None if row % 10 == 3 else f"patient {row // 2}" for row in range(len(fit.validation.labels)))
    known = finished(replace(fit, validation=replace(fit.validation, patients=patients)))
    score, truth = known.probabilities[:, 1].astype(np.float64), fit.validation.labels == 1
    for how in ("max", "mean"):
        together: dict[str, list[int]] = {}
        for row, patient in enumerate(patients):
            if patient is not None:
                together.setdefault(patient, []).append(row)
        values = [getattr(score[rows], how)() for rows in together.values()]
        sick = [bool(truth[rows].any()) for rows in together.values()]
        assert known.patients[f"patient_{how}"] == fit_point(values, sick, 0.9, 0.8)
    offered = {unit for unit in known.patients if unit.endswith("_int8")}
    assert offered == ({"patient_max_int8", "patient_mean_int8"} if known.int8.offered else set())


def test_int8_is_judged_on_every_validation_image(fit: Fit, done: Finished) -> None:
    assert done.int8.images == len(fit.validation.labels)
    assert done.int8.offered == (done.int8_scorer is not None)
    if done.int8_scorer is not None:
        scorer = Scorer(*done.int8_scorer)
        classes = np.array([scorer(picture).argmax() for picture in fit.pixels])
        assert (classes != done.probabilities.argmax(axis=1)).sum() == done.int8.classes_changed


def test_one_sigmoid_unit_and_the_mean_with_the_mirror_image(files: list[Path]) -> None:
    fit = make_fit(files[:60], loss="binary_crossentropy", flip_at_prediction="true")
    found = finished(fit)
    scorer = Scorer(found.scorer, found.io)
    again = np.stack([scorer(picture) for picture in fit.pixels])
    np.testing.assert_array_equal(found.probabilities, again)
    network = joined(fit.network.backbone, fit.network.head, "avg")
    views = [np.asarray(network(view.astype(np.float32)))[:, 0] for view in (fit.pixels, fit.pixels[:, :, ::-1])]
    assert views[0].shape == (30,)
    truth = fit.validation.labels == 1

    def mean(temperature: float) -> np.ndarray:
        return np.mean([1 / (1 + np.exp(-view.astype(float) / temperature)) for view in views], axis=0)

    np.testing.assert_allclose(found.probabilities[:, 1], mean(found.temperature), atol=1e-4)
    # Few images bear out no certainty: n of a class count as 1 - 1 / (n + 2) of it.
    wanted = np.where(truth, 1 - 1 / (truth.sum() + 2), 1 / ((~truth).sum() + 2))

    def loss(temperature: float) -> float:
        p = mean(temperature)
        return float(-(wanted * np.log(p) + (1 - wanted) * np.log(1 - p)).mean())

    losses = [loss(temperature) for temperature in np.exp(np.linspace(np.log(0.5), np.log(20), 1001))]
    assert loss(found.temperature) <= min(losses) + 1e-6


def test_a_scorer_of_another_network_is_refused(fit: Fit) -> None:
    other = replace(fit, validation=replace(fit.validation, logits=-fit.validation.logits * 3))
    with pytest.raises(ModelRefused, match="answers otherwise"):
        finished(other)


def test_images_that_changed_or_went_away_are_named(fit: Fit, done: Finished, tmp_path: Path) -> None:
    model = [(done.scorer, done.io)]
    uris, contents = fit.images["image_uri"].to_pylist(), fit.images["content_sha256"].to_pylist()
    turned = pa.table({"image_uri": uris[:4], "content_sha256": [*contents[:3], contents[5]]})
    with pytest.raises(TryLater, match="changed while training ran") as caught:
        answer_images(model, turned)
    assert uris[3] in caught.value.message
    gone = pa.table({"image_uri": [str(tmp_path / "gone.jpg"), *uris[:3]], "content_sha256": ["", *contents[:3]]})
    with pytest.raises(TryLater, match="cannot be read any more"):
        answer_images(model, gone)


def test_progress_counts_to_the_end(fit: Fit, done: Finished) -> None:
    told: list[int] = []
    answers = answer_images([(done.scorer, done.io)] * 2, fit.images, told.append)
    assert told == sorted(told) and told[-1] == len(fit.labels)
    np.testing.assert_array_equal(answers[0], answers[1])
    half = len(fit.labels) // 2
    np.testing.assert_array_equal(answers[0][half:], done.probabilities)


def dataset(fit: Fit) -> Dataset:
    half = len(fit.labels) // 2
    groups = tuple(f"group-{number}" for number in range(len(fit.labels)))
    rows = {"train": np.arange(half), "val": np.arange(half, len(fit.labels))}
    parts = {
        name: PartImages(own, fit.labels[own], tuple(groups[row] for row in own), fit.images.take(pa.array(own)))
        for name, own in rows.items()
    }
    split = pa.table(
        {
            "content_sha256": fit.images["content_sha256"],
            "perceptual_hash": pa.array([bytes(32)] * len(groups), pa.binary(32)),
            "group": groups,
            "part": ["train"] * half + ["val"] * (len(groups) - half),
            "person": pa.array([None] * len(groups), pa.string()),
        }
    )
    counts = {name: {CLASSES[k]: int((fit.labels[own] == k).sum()) for k in (0, 1)} for name, own in rows.items()}
    audit = LeakAudit("made", None, len(groups), 0, len(groups), 0, 0, 0, len(groups), 1, 0, 0)
    return Dataset(CLASSES, parts, split, counts, (), audit)


def made(fit: Fit, done: Finished, champion: Any = None) -> Made:
    data = dataset(fit)
    part = data.part("val")
    judged = judge(CLASSES, ("bright",), done.probabilities, part.labels, part.groups, done.point, 0)
    contents = part.images["content_sha256"].to_pylist()
    new = Validated(CLASSES, (1,), contents, part.labels, part.groups, done.probabilities)
    row = {"epoch": 1.0, "loss": 0.5, "val_loss": 0.6, "learning_rate": 1e-3, "seconds": 0.1}
    return Made(fit.network, data, FitResult((row,), 1, True, ()), done, judged, compare(new, champion))


def test_the_bundle_holds_what_was_made(fit: Fit, done: Finished, files: list[Path], tmp_path: Path) -> None:
    who = {"command_line": ["nightread", "train", "labelled"], "user": "u", "host": "h"}
    config = TrainConfig(DataConfig(str(files[0].parent)), str(tmp_path), "cells", fit.recipe, "none", who=who)
    first = write(config, made(fit, done))
    bundle = resolve(first.uri)
    assert bundle.read("scorer.tflite") == done.scorer
    assert self_test(bundle, Scorer(*bundle.scorer("float32")))
    table = pq.read_table(io.BytesIO(bundle.read("validation.parquet")))
    np.testing.assert_array_equal(table["p_bright"].to_numpy(), done.probabilities[:, 1])
    assert bundle.thresholds["image"]["threshold"] == done.point.threshold
    assert bundle.training_hashes() == {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert bundle.provenance["audit"]["groups"] == len(files)
    assert bundle.provenance["versus"] is None and bundle.provenance["int8"]["offered"] == done.int8.offered
    assert set(bundle.provenance["validation"]["accuracy"]) == {"value", "low", "high"}
    card = (Path(bundle.uri) / "MODEL_CARD.md").read_text()
    assert "nightread train labelled" in card and files[0].name not in card and str(files[0].parent) not in card
    again = write(config, made(fit, done, champion=bundle))
    record = json.loads((Path(again.uri) / "bundle.json").read_text())["provenance"]["versus"]
    assert record["verdict"] == "undecided" and record["figures"]["roc_auc"]["difference"] == 0
    assert record["images"] == len(fit.validation.labels)


def test_int8_is_in_the_bundle_only_where_it_earned_its_place(fit: Fit, done: Finished, tmp_path: Path) -> None:
    config = TrainConfig(DataConfig(str(tmp_path)), str(tmp_path / "MODELS"), "cells", fit.recipe, "none")
    refused = replace(done, int8=replace(done.int8, reasons=("the ROC AUC falls by 0.0100",)), int8_scorer=None)
    absent = resolve(write(config, made(fit, refused)).uri)
    with pytest.raises(UsageError, match=r"has no int8 scorer\. int8 did not earn its place on 60 validation images"):
        absent.scorer("int8")
    assert set(absent.thresholds) == {"image"} and "scorer_int8.tflite" not in absent.files
    assert {"refer_low", "refer_high", "decided"} <= set(absent.thresholds["image"])
    # Another float32 scorer in its place: what is tested is where it goes.
    small = (done.scorer, ScorerIO(SIZE, 2))
    offered = replace(done, int8=replace(done.int8, reasons=(), point=replace(done.point, threshold=0.25, band=None)))
    there = resolve(write(config, made(fit, replace(offered, int8_scorer=small))).uri)
    assert there.scorer("int8")[0] == done.scorer
    assert there.thresholds["image_int8"]["threshold"] == 0.25
    assert there.thresholds["image"]["threshold"] == done.point.threshold
    assert self_test(there, Scorer(*there.scorer("int8")), "int8")
