"""`models calibrate`: another temperature and other thresholds for the same weights, from new images."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from pipelines.errors import UsageError
from pipelines.evaluation.thresholds import fit_point
from pipelines.images.fingerprint import difference_hash
from pipelines.images.preprocess import Preprocessing
from pipelines.models.bundle import SPLIT_FILE, Bundle, load_bundle, write_bundle
from pipelines.models.golden import self_test
from pipelines.models.record import ScorerEntry
from pipelines.models.registry import resolve
from pipelines.models.runtime import Scorer
from pipelines.training.config import CalibrateConfig
from pipelines.training.labelled import DataConfig
from pipelines.training.labelled_cases import answer_labelled
from pipelines.training.recalibration import CalibrationReport, calibrate
from pipelines.training.records import split_file
from pipelines.training.split import hash_person

pytestmark = pytest.mark.slow

Connect = Callable[[], AbstractContextManager[Any]]
CLASSES = ("benign", "malignant")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, draw: Callable[..., list[Path]]) -> Path:
    """Seventy pictures in one folder; labels and patients stand in manifests."""
    root = tmp_path_factory.mktemp("pictures")
    draw(root, 70)
    return root


def manifest(images: Path, name: str, numbers: list[int], patients: bool = False) -> DataConfig:
    """A manifest of some of the pictures: odd ones are malignant, two by two of one patient."""
    place = images / f"{name}.csv"
    with place.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "label", *(["patient_id"] if patients else [])])
        for number in numbers:
            patient = [f"patient {number // 2}"] if patients else []
            writer.writerow([f"b{number:05d}.jpg", CLASSES[number % 2], *patient])
    return DataConfig(str(place))


def split_of(images: Path, parts: dict[int, str], size: int) -> bytes:
    rows = []
    for number, part in parts.items():
        data = (images / f"b{number:05d}.jpg").read_bytes()
        digest, person = hashlib.sha256(data).hexdigest(), hash_person(f"patient {number // 2}")
        rows.append((digest, difference_hash(Preprocessing(size).prepare(data).pixels), person, part, person))
    names = ("content_sha256", "perceptual_hash", "group", "part", "person")
    kinds = (pa.string(), pa.binary(32), pa.string(), pa.string(), pa.string())
    columns = zip(names, kinds, zip(*rows, strict=True), strict=True)
    return split_file(pa.table({name: pa.array(values, kind) for name, kind, values in columns}))


@pytest.fixture(scope="module")
def model(tiny_models: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model with two scorers that trained on pictures 0-3, validated on 4-5 and was tested on 6-7."""
    base = load_bundle(str(tiny_models / "cells" / "v1"))
    files = {name: base.read(name) for name in base.files}
    parts = dict.fromkeys(range(4), "train") | dict.fromkeys((4, 5), "val") | dict.fromkeys((6, 7), "test")
    files |= {
        "scorer_int8.tflite": files["scorer.tflite"],
        "weights.weights.h5": b"arrays",
        SPLIT_FILE: split_of(images, parts, base.input_size),
        "MODEL_CARD.md": b"# cells\n\nWhat they were made from.\n",
    }
    scorers = {**base.spec.scorers, "int8": ScorerEntry("scorer_int8.tflite", base.spec.scorers["float32"].io)}
    made = {"kind": "trained", "user": "she", "versus": {"verdict": "worse"}, "seed": 3}
    spec = replace(base.spec, scorers=scorers, provenance=made, temperature=1.5)
    return write_bundle(str(tmp_path_factory.mktemp("calibrated")), "cells", spec, files)


@pytest.fixture(scope="module")
def data(images: Path) -> DataConfig:
    """Two pictures that trained, and sixty that are new."""
    return manifest(images, "new", [2, 3, *range(10, 70)], patients=True)


@pytest.fixture(scope="module")
def report(model: Bundle, data: DataConfig, connect: Connect) -> CalibrationReport:
    return calibrate(CalibrateConfig(model.uri, data, 0.9, 0.8, {"user": "he"}), connect, lambda _: None)


def table(bundle: Bundle, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(bundle.read(name)))


def test_the_weights_stay_and_the_earlier_version_stays_champion(model: Bundle, report: CalibrationReport) -> None:
    new = resolve(f"{Path(model.uri).parent}@v2")
    assert new == report.bundle and report.champion == "v1"
    for name in ("scorer.tflite", "scorer_int8.tflite", "weights.weights.h5"):
        assert new.files[name] == model.files[name]
    assert new.provenance["calibrated_from"] == {
        "model": "cells@v1", "id": model.model_id, "created_at": model.provenance["created_at"], "user": "she",
        "host": None, "command_line": None,
    }  # fmt: skip
    assert (new.provenance["user"], new.provenance["seed"], new.provenance["versus"]) == ("he", 3, None)
    assert report.new.left_out == {"trained or validated the model": 2}
    assert new.provenance["calibration"]["images"] == {"benign": 30, "malignant": 30}
    assert not list((Path(model.uri).parent / "work").glob("*"))


def test_the_scorers_answer_with_the_temperature_that_fits_the_new_images(
    model: Bundle, report: CalibrationReport, images: Path
) -> None:
    rows = {row["content_sha256"]: row for row in table(report.bundle, "validation.parquet").to_pylist()}
    assert len(rows) == 60
    old, new = (Scorer(*bundle.scorer("float32")) for bundle in (model, report.bundle))
    before, after, truth = [], [], []
    for number in range(10, 70):
        prepared = Preprocessing(96).prepare((images / f"b{number:05d}.jpg").read_bytes())
        row = rows[prepared.content_sha256]
        before.append(old(prepared.pixels))
        after.append(new(prepared.pixels))
        truth.append(number % 2)
        assert (row["label"], row["width"], row["height"]) == (CLASSES[number % 2], 160, 120)
        np.testing.assert_allclose(after[-1], [row["p_benign"], row["p_malignant"]], atol=1e-6)
    logits, kind = np.log(np.array(before, np.float64)), np.array(truth)
    wanted = np.where(np.arange(2) == kind[:, np.newaxis], 31 / 32, 1 / 32)  # as Platt counts 30 images of a class
    best = minimize_scalar(
        lambda t: -(wanted * log_softmax(logits / np.exp(t), axis=1)).sum(),
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
    )
    assert report.fitted.factor == pytest.approx(np.exp(best.x), rel=2e-3)
    assert report.bundle.temperature == pytest.approx(1.5 * report.fitted.factor)
    np.testing.assert_allclose(after, np.exp(log_softmax(logits / report.fitted.factor, axis=1)), atol=1e-5)
    for precision in ("float32", "int8"):
        assert self_test(report.bundle, Scorer(*report.bundle.scorer(precision)), precision)
    assert report.fitted.after.log_loss == pytest.approx(-np.log(np.array(after)[np.arange(60), kind]).mean(), abs=1e-5)


def test_thresholds_and_bands_are_those_of_the_new_answers(report: CalibrationReport) -> None:
    rows = table(report.bundle, "validation.parquet").to_pylist()
    score, truth = [row["p_malignant"] for row in rows], [row["label"] == "malignant" for row in rows]
    point = fit_point(score, truth, 0.9, 0.8)
    found = report.bundle.thresholds
    assert found["image"] == json.loads(json.dumps(point.record()).replace("NaN", "null"))
    assert found["image_int8"] == found["image"]
    assert set(found) == {
        f"{unit}{tail}" for unit in ("image", "patient_max", "patient_mean") for tail in ("", "_int8")
    }
    # Each patient has a benign and a malignant picture.
    assert found["patient_max"]["cases"] == 30 and found["patient_max"]["decided"]["negatives"] == 0
    assert report.as_json()["thresholds"]["image"]["threshold"] == point.threshold


def test_the_new_images_are_seen_from_now_on(
    model: Bundle, report: CalibrationReport, data: DataConfig, connect: Connect, tmp_path: Path
) -> None:
    split = table(report.bundle, SPLIT_FILE).to_pylist()
    assert [row["part"] for row in split[:8]] == [row["part"] for row in table(model, SPLIT_FILE).to_pylist()]
    assert {row["part"] for row in split[8:]} == {"val"} and len(split) == 68
    assert split[8]["person"] == split[8]["group"] == hash_person("patient 5")
    with pytest.raises(UsageError, match=r"there are 0 and 0; 62 left out because they trained or validated"):
        calibrate(CalibrateConfig(report.bundle.uri, data), connect, lambda _: None)
    # In one folder of answers the versions, which differ in nothing but the temperature, are told apart.
    first = answer_labelled(model, "float32", data, (), str(tmp_path), connect, lambda _: None)
    small = replace(report.bundle, files={k: v for k, v in report.bundle.files.items() if k != SPLIT_FILE})
    second = answer_labelled(small, "float32", data, (), str(tmp_path), connect, lambda _: None)
    assert len(second.cases) == 62 and len(first.cases) == 60
    assert np.abs(second.cases.probabilities[2:] - first.cases.probabilities).max() > 1e-3


def test_both_diagrams_and_the_earlier_card_travel_with_it(report: CalibrationReport) -> None:
    folder = Path(report.bundle.uri)
    picture = (folder / "report" / "calibration.svg").read_text()
    assert "<svg" in picture and "before" in picture and "after, on the images it was fitted to" in picture
    card = (folder / "MODEL_CARD.md").read_text()
    assert "The weights of cells@v1" in card and "What they were made from." in card
    assert "| log loss |" in card and "| patient max int8 |" in card


def test_images_that_test_the_model_and_patients_that_it_knows_are_left_out(
    model: Bundle, images: Path, connect: Connect
) -> None:
    tested = manifest(images, "tested", [7, *range(10, 30)])
    untested = calibrate(CalibrateConfig(model.uri, tested), connect, lambda _: None)
    assert untested.new.left_out == {"stand in the test part of cells@v1": 1}
    assert len(untested.new.labelled.cases) == len(untested.new.groups) == 20
    given = images / "given.csv"
    given.write_text("uri,label,split\n" + "".join(f"b{n:05d}.jpg,{CLASSES[n % 2]},test\n" for n in range(10, 30)))
    with pytest.raises(
        UsageError, match=r"there are 0 and 0; 20 left out because they stand in the test part of the d"
    ):
        calibrate(CalibrateConfig(model.uri, DataConfig(str(given))), connect, lambda _: None)
    again = images / "b00100.jpg"
    shutil.copy(images / "b00050.jpg", again)
    again.write_bytes(again.read_bytes() + b"\0")  # other bytes, the same picture
    known = images / "known.csv"
    rows = [
        ("b00100.jpg", "benign", "patient 3"),
        *((f"b{n:05d}.jpg", CLASSES[n % 2], f"new {n}") for n in range(10, 40)),
    ]
    known.write_text("uri,label,patient_id\n" + "".join(f"{','.join(row)}\n" for row in rows))
    done = calibrate(CalibrateConfig(model.uri, DataConfig(str(known))), connect, lambda _: None)
    assert done.new.left_out == {"share a patient or the picture with an image of the model's own split": 1}
    assert len(done.new.labelled.cases) == 30
    alone = manifest(images, "alone", [4, 5, *range(10, 30, 2)])
    with pytest.raises(UsageError, match=r"takes positive and negative images that it has not seen, and there are 0"):
        calibrate(CalibrateConfig(model.uri, alone), connect, lambda _: None)


def test_a_bundle_that_lies_elsewhere_is_refused(
    model: Bundle, data: DataConfig, connect: Connect, tmp_path: Path
) -> None:
    shutil.copytree(model.uri, tmp_path / "copy")
    with pytest.raises(UsageError, match="does not lie where MODELS/NAME/VERSION is"):
        calibrate(CalibrateConfig(str(tmp_path / "copy"), data), connect, lambda _: None)


def test_an_imported_model_gets_decisions_by_the_command(
    tiny_models: Path, images: Path, nightread: Callable[..., Any], tmp_path: Path
) -> None:
    declared = ["--classes", "benign,malignant", "--input-size", "96", "--scaling", "none"]
    scorer, models = tiny_models / "other" / "v1" / "scorer.tflite", tmp_path / "models"
    assert nightread("models", "import", scorer, "--models", models, "--name", "theirs", *declared).code == 0
    data = manifest(images, "theirs", list(range(20, 60)))
    done = nightread("models", "calibrate", models / "theirs", data.data, "--target-sensitivity", 0.8, "--json")
    assert done.code == 0, done.err
    assert (done.answer["version"], done.answer["champion"], done.answer["calibrated_from"]) == ("v2", "v1", "v1")
    assert done.answer["images"] == {"benign": 20, "malignant": 20} and done.answer["int8"] is None
    assert done.answer["temperature"]["before"] == 1.0
    bundle = resolve(f"{models}/theirs@v2")
    assert bundle.decision(1.0) in ("refer", "positive") and bundle.provenance["kind"] == "import"
    assert len(bundle.training_hashes() or ()) == 40 and not bundle.knows_training
    told = nightread("models", "calibrate", models / "theirs", data.data, "--reason", "our scanners")
    assert told.code == 0 and "temperature 1 before" in told.out and "champion    still v1" in told.out
    audit = [json.loads(line) for line in (models / "audit.jsonl").read_text().splitlines()]
    assert [(line["action"], line["what"], line["from"], line["to"]) for line in audit] == [
        ("import", "theirs", str(scorer), "v1"),
        ("calibrate", "theirs", "v1", "v2"),
        ("calibrate", "theirs", "v1", "v3"),
    ]
    assert [line["reason"] for line in audit] == [None, None, "our scanners"]
    refused = nightread("models", "calibrate", models / "theirs", data.data, "--target-specificity", 0)
    assert refused.code == 2 and "--target-specificity must be above 0 and at most 1; it is 0.0." in refused.err
