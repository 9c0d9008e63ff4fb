from __future__ import annotations

import math
import tomllib
from dataclasses import replace

import pytest

from pipelines.evaluation.thresholds import OperatingPoint, ReferBand
from pipelines.training.card import WEIGHTS_LICENCES, DataFacts, TrainingFacts, ValidationFacts, model_card
from pipelines.training.int8_gate import Int8Verdict
from pipelines.training.recipes import load_recipe, recipe_names
from pipelines.training.versus import Difference, Versus

DATA = DataFacts(
    counts={"train": {"benign": 60, "grade|II": 40}, "val": {"benign": 12, "grade|II": 8}},
    groups={"train": 70, "val": 15},
    split="Made for this version.",
    without_patient=5,
    unreadable=2,
    audit={"near_duplicate_pairs": 3, "odd_files": 4},
)
TRAINING = TrainingFacts("default", None, load_recipe().values(), "mobilenet_v2", "imagenet", None, 7, 23, 18)
POINT = OperatingPoint(0.314159, 0.95, 0.96, 0.5)
BAND = ReferBand(0.125, 0.4375, 0.9, 20, 5, 2, 8, 7, 1.0, math.nan)
OFFERED = Int8Verdict(20, (), (0.9, 0.899), None, 0, 1, 0.9, OperatingPoint(0.271828, 0.95, 0.97, 0.4))
VALIDATION = ValidationFacts(
    figures={"accuracy": 0.9, "mcc": math.nan},
    intervals={"accuracy": (0.699, 0.972), "mcc": (math.nan, math.nan)},
    report="precision recall",
    matrix=[[11, 1], [1, 7]],
    temperature=1.25,
    point=POINT,
    int8=OFFERED,
    versus=Versus("v1", "", 20, 15, {name: Difference(0.9, 0.8, 0.1, 0.02, 0.2) for name in ("roc_auc", "accuracy")}),
    warnings=["Only 20 images validate."],
)
COMMAND = ("/opt/secret place/bin/nightread", "train", "my data", "--models", "models", "--name", "cells")


def card(data: DataFacts = DATA, training: TrainingFacts = TRAINING, validation: ValidationFacts = VALIDATION) -> str:
    classes = ("benign", "grade|II")
    validation = replace(validation, versus=replace(validation.versus, figures=None, reason="not compared"))
    return model_card("cells", classes, classes[1:], data, training, validation, COMMAND).decode()


def test_every_part_of_the_card_is_there() -> None:
    text = card()
    for title in (
        "Intended use and limits",
        "Data",
        "Validation",
        "Threshold and calibration",
        "Recipe",
        "Licence of the weights",
        "Make it again",
    ):
        assert f"\n## {title}\n" in text
    assert "| train | 60 | 40 | 100 | 70 |" in text and "| val | 12 | 8 | 20 | 15 |" in text
    assert "grade\\|II" in text
    assert (
        "| unreadable images, left out | 2 |" in text
        and "| pairs of different files that show the same picture | 3 |" in text
    )
    assert "| odd files | 4 |" in text
    assert "For 5 images nothing says whose they are" in text
    assert "| accuracy | 0.9000 | 0.699 to 0.972 |" in text and "| mcc | – | – |" in text
    assert "On 20 images" in text and "**Warning:** Only 20 images validate." in text
    assert "nightread train 'my data' --models models --name cells" in text and "secret place" not in text
    assert "23 epochs, the weights of epoch 18" in text
    assert "Against the champion: not compared." in text


def test_the_recipe_of_the_card_trains_the_same() -> None:
    for name in recipe_names():
        recipe = load_recipe(name)
        text = card(training=replace(TRAINING, recipe=name, values=recipe.values()))
        toml = text.split("```toml\n")[1].split("```")[0]
        read = {key: tuple(v) if isinstance(v, list) else v for key, v in tomllib.loads(toml).items()}
        assert read == dict(recipe.values())


def test_int8s_threshold_stands_there_only_where_it_is_offered() -> None:
    assert "| image, int8 | 0.271828 | 0.9700 | 0.4000 |" in card()
    assert "1 of 20 decisions differ" in card()
    refused = replace(OFFERED, reasons=("the ROC AUC of the positive classes falls by 0.0100",))
    text = card(validation=replace(VALIDATION, int8=refused))
    assert "| image, int8 |" not in text and "int8 did not earn its place on 20 validation images: the ROC AUC" in text
    none = card(validation=replace(VALIDATION, int8=Int8Verdict(0, ("it cannot be compiled",))))
    assert "int8 is not offered: it cannot be compiled." in none


def test_the_refer_band_says_how_many_are_referred_and_what_that_buys() -> None:
    assert "refer band" not in card()
    banded = replace(POINT, band=BAND)
    text = card(validation=replace(VALIDATION, point=banded, patients={"patient_mean_int8": banded}))
    assert "outside of it sensitivity reaches 0.95 and specificity 0.9;" in text
    assert "| image | 0.125 | 0.4375 | 5 of 20 | 1.0000 | – |" in text
    assert "| patient, mean, int8 | 0.125 | 0.4375 | 5 of 20 | 1.0000 | – |" in text
    assert "| patient, mean, int8 | 0.314159 | 0.9600 | 0.5000 |" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Apache-2.0"),
        ({"backbone": "vgg16"}, "CC BY 4.0"),
        ({"backbone": "resnet50_v2"}, "MIT"),
        ({"weights": "none"}, "nobody else's licence holds"),
        ({"weights": "mine.weights.h5"}, "the file mine.weights.h5; licence not known"),
        ({"start": "cells@v1"}, "Training started from cells@v1"),
    ],
)
def test_the_licence_of_the_weights(changes: dict[str, str], said: str) -> None:
    section = card(training=replace(TRAINING, **changes)).split("## Licence of the weights")[1].split("##")[0]
    assert said in section


def test_every_backbone_has_a_licence() -> None:
    from pipelines.models.backbones import BACKBONES

    assert set(WEIGHTS_LICENCES) == set(BACKBONES)
