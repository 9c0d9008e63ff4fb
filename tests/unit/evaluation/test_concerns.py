"""Each rule of what to be careful about: where it speaks, with its numbers, and where it is silent."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from pipelines.evaluation.cases import Cases
from pipelines.evaluation.comparison import compare_cases
from pipelines.evaluation.concerns import DISCLAIMER, certain_and_wrong, concerns, newcombe
from pipelines.evaluation.intensity import measure_intensity
from pipelines.evaluation.study import Settings, measure_cases
from pipelines.evaluation.subgroups import measure_subgroups

Change = Callable[[dict[str, Any]], object]


def figure(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


def sound() -> dict[str, Any]:
    """A study of which there is nothing to say but the disclaimer."""
    return {
        "n": 2000,
        "patients": 1500,
        "groups": 1980,
        "positive_classes": ["malignant"],
        "per_class": {"benign": {"n": 1500}, "malignant": {"n": 500}},
        "overall": {
            "sensitivity": figure(0.9, 0.87, 0.93),
            "specificity": figure(0.9, 0.88, 0.92),
            "calibration_slope": figure(1.02, 0.9, 1.1),
            "calibration_intercept": figure(0.1, -0.1, 0.2),
            "calibration_error": figure(0.03, 0.02, 0.05),
        },
        "positive_vs_rest": {"roc_auc": figure(0.95, 0.94, 0.96)},
        "operating_point": {
            "threshold": 0.2,
            "target": 0.95,
            "sensitivity": figure(0.94, 0.92, 0.96),
            "specificity": figure(0.8, 0.77, 0.83),
            "referred": figure(0.1, 0.08, 0.12),
        },
        "per_patient": {"without_patient": 0, "operating_point": {"reason": "not fitted"}},
        "validation": {"n": 1000, "positives": 250},
        "certain_and_wrong": 0,
        "seen_in_training": {"known": True, "exact": 0, "near_duplicates": 0, "left_out": 12},
        "unreadable": [{"image_uri": "x", "error_code": "truncated"}] * 20,
        "subgroups": [{"column": "site", "looks": 8, "groups": [group("north", 0.4), group("south", None)]}],
        "comparison": {
            "against": {"name": "moles", "version": "v2", "seen_in_training": 0},
            "n": 1900,
            "figures": {
                "roc_auc": {"difference": 0.02, "low": 0.01, "high": 0.03},
                "accuracy": {"difference": 0.0, "low": -1, "high": 1},
            },
        },
        "intensity": {"accuracy": {"depends": False, "sentence": "Not borne out.", "spearman": 0.01, "p": 0.5}},
    }


def group(name: str, p: float | None, **differing: dict[str, Any]) -> dict[str, Any]:
    starred = p is not None and p < 0.05
    return {
        "name": name, "n": 300, "starred": starred, "p": p, "figures": differing, "differs_in": list(differing),
    }  # fmt: skip


def put(value: Any, *keys: str) -> Change:
    def change(figures: dict[str, Any]) -> None:
        place = figures
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def few_positives(figures: dict[str, Any]) -> None:
    figures["per_class"] = {"benign": {"n": 1957}, "malignant": {"n": 43}}
    figures["validation"] = {"n": 1000, "positives": 22}


def no_threshold(figures: dict[str, Any]) -> None:
    figures["operating_point"] = {"reason": "no threshold of the unit image is known"}


STAR = group("south", 0.0004, sensitivity=figure(0.71, 0.6, 0.8))

SPEAKS: list[tuple[Change, list[str]]] = [
    (put(34, "seen_in_training", "exact"), ["34 images of 2,000 were used to train or validate the model"]),
    (put(3, "seen_in_training", "same_patient"), ["3 images of 2,000 are of patients of whom the model was trained"]),
    (put(1, "seen_in_training", "near_duplicates"), ["1 image of 2,000 is nearly a copy of an image that the model"]),
    (
        put(figure(0.55, 0.49, 0.58), "positive_vs_rest", "roc_auc"),
        ["cannot be told from a coin here: ROC AUC 0.550 (0.490–0.580)"],
    ),
    (few_positives, ["Only 43 of 2,000 images are positive"]),
    (put({"benign": {"n": 1}, "malignant": {"n": 1999}}, "per_class"), ["Only 1 of 2,000 images is negative"]),
    (
        put(figure(0.85, 0.8, 0.949), "operating_point", "sensitivity"),
        ["frozen threshold was set for a sensitivity of 0.95 and reaches 0.850 (0.800–0.949) here"],
    ),
    (
        put({"target": 0.9, "sensitivity": figure(0.8, 0.7, 0.89)}, "per_patient", "operating_point"),
        ["frozen threshold per patient was set for a sensitivity of 0.9 and reaches 0.800 (0.700–0.890)"],
    ),
    (
        put([{"column": "site", "looks": 8, "groups": [STAR]}], "subgroups"),
        [
            "By site, the 300 images of south differ from the rest by more than chance: sensitivity 0.710 "
            "(0.600–0.800) (corrected for 8 looks, p < 0.001)."
        ],
    ),
    (
        put([{"column": "site", "looks": 99, "groups": [STAR] * 5}], "subgroups"),
        ["By site, the 300", "By site, the 300", "By site, the 300", "By site, 2 further groups differ too."],
    ),
    (
        put(figure(0.85, 0.79, 0.9), "positive_vs_rest", "roc_auc"),
        ["intervals are wide, and the truth may lie anywhere in them: ROC AUC 0.850 (0.790–0.900)."],
    ),
    (
        put(figure(0.9, 0.75, 0.96), "operating_point", "sensitivity"),
        ["wide, and the truth may lie anywhere in them: sensitivity at the frozen threshold 0.900 (0.750–0.960)."],
    ),
    (no_threshold, ["no frozen threshold for these answers"]),
    (
        put(figure(0.6, 0.5, 0.7), "overall", "calibration_slope"),
        ["not calibrated for these images: calibration slope 0.600 (0.500–0.700) instead of 1."],
    ),
    (
        put(figure(-0.6, -0.9, -0.1), "overall", "calibration_intercept"),
        ["calibration intercept −0.600 (−0.900 to −0.100) instead of 0."],
    ),
    (put(figure(0.2, 0.18, 0.22), "overall", "calibration_error"), ["calibration error 0.200 (0.180–0.220)."]),
    (
        put({"n": 1000, "positives": 600}, "validation"),
        [
            "25.0 % of these images are positive, and 60.0 % of those that the threshold was fitted to (difference "
            "−35.0, 95 % interval −38.5 to −31.4 percentage points)"
        ],
    ),
    (put(3, "certain_and_wrong"), ["For 3 images the model gave the true class a probability of exactly 0"]),
    (put(None, "patients"), ["is not known, so intervals take 1,980 groups of images for patients: where"]),
    (
        lambda figures: figures.update(patients=None, groups=2000),
        ["Which patient an image is of is not known, so intervals take images as independent: where patients"],
    ),
    (put(7, "per_patient", "without_patient"), ["7 images of 2,000 name no patient and are left out"]),
    (
        put({"depends": True, "sentence": "Accuracy falls.", "spearman": -0.3, "p": 0.001}, "intensity", "accuracy"),
        ["Accuracy falls. (Spearman's correlation −0.300, p = 0.001.)"],
    ),
    (
        put(figure(0.37, 0.33, 0.41), "operating_point", "referred"),
        ["37.0 % (33.0 % to 41.0 %) of the images are referred to a person"],
    ),
    (
        put({"difference": -0.003, "low": -0.012, "high": 0.006}, "comparison", "figures", "roc_auc"),
        ["comparison with moles@v2 is undecided: difference in ROC AUC −0.003 (−0.012 to 0.006) on 1,900 images."],
    ),
    (
        put({"difference": None, "low": None, "high": None}, "comparison", "figures", "roc_auc"),
        ["comparison with moles@v2 is undecided: difference in accuracy"],
    ),
    (
        put(5, "comparison", "against", "seen_in_training"),
        ["The model compared with, moles@v2, was trained or validated on 5"],
    ),
    (put([{}] * 60, "unreadable"), ["60 labelled images of 2,060 could not be read"]),
    (put({"known": False, "exact": 0, "near_duplicates": None}, "seen_in_training"), ["is not known: it does not say"]),
    (put(None, "seen_in_training", "near_duplicates"), ["Near-duplicates of training images were not looked for"]),
]


@pytest.mark.parametrize(("change", "said"), SPEAKS)
def test_a_rule_speaks_with_its_numbers_and_alone(change: Change, said: list[str]) -> None:
    figures = sound()
    change(figures)
    if "negative" in said[0]:
        del figures["validation"]
    told = concerns(figures)
    assert told[-1] == DISCLAIMER and len(told) == len(said) + 1, told
    for text, part in zip(told, said, strict=False):
        assert part in text and text.endswith((".", ".)"))


SILENT: list[Change] = [
    lambda figures: None,
    put({"n": 2000, "positives": 450}, "validation"),  # shifted, but by less than a quarter
    put({"n": 8, "positives": 4}, "validation"),  # shifted twofold, but of eight images
    put(None, "validation"),
    put(figure(0.93, 0.9, 0.95), "operating_point", "sensitivity"),  # the target is in the interval
    put(figure(0.6, 0.55, 0.64), "positive_vs_rest", "roc_auc"),
    put({"value": None, "low": None, "high": None, "reason": "separable"}, "overall", "calibration_slope"),
    put(figure(0.25, 0.2, 0.3), "operating_point", "referred"),
    put([], "subgroups"),
    put(None, "comparison"),
    put({"reason": "the mean intensity of no image is known", "unknown": 2000}, "intensity"),
    put(None, "seen_in_training"),
    put({"value": 1.0, "low": None, "high": None}, "positive_vs_rest", "roc_auc"),
]


@pytest.mark.parametrize("change", SILENT)
def test_without_cause_there_is_the_disclaimer_alone(change: Change) -> None:
    figures = sound()
    change(figures)
    assert concerns(figures) == [DISCLAIMER]


def test_a_calibration_error_of_few_images_may_be_chance() -> None:
    figures = sound()
    figures |= {"n": 400, "per_class": {"benign": {"n": 300}, "malignant": {"n": 100}}, "unreadable": []}
    figures["overall"]["calibration_error"] = figure(0.2, 0.1, 0.3)
    assert concerns(figures) == [DISCLAIMER]


def test_the_gravest_comes_first() -> None:
    figures = sound()
    for change, _ in SPEAKS:
        kept = copy.deepcopy(figures)
        change(kept)
        figures = kept
    told = concerns(figures)
    places = [
        next(at for at, text in enumerate(told) if part in text) for part in ("Only 1 of", "no frozen", "is not known")
    ]
    assert places == sorted(places) and told[-1] == DISCLAIMER
    everything = sound()
    everything["seen_in_training"]["exact"] = 2000
    everything["patients"] = None
    assert "used to train" in concerns(everything)[0]


def test_it_reads_what_the_measurements_write() -> None:
    """From real measurements of a poor model: no key is spelled otherwise than they spell it."""
    random = np.random.default_rng(0)
    labels = np.arange(90) % 2
    p = np.clip(labels * 0.2 + random.random(90) * 0.9, 0, 1)
    p[0] = 1.0
    names = tuple(str(row) for row in range(90))
    cases = Cases(
        classes=("benign", "malignant"),
        positive=(1,),
        uris=names,
        contents=names,
        labels=labels,
        probabilities=np.stack([1 - p, p], axis=1).astype(np.float32),
        groups=names,
        patients=None,
        mean_intensity=random.random(90),
        columns={"site": tuple("ab" * 45)},
    )
    fitted = {"image": {"threshold": 0.99, "refer_low": 0.1, "refer_high": 0.995, "target_sensitivity": 0.95}}
    chosen = Settings(draws=60)
    figures = {
        **measure_cases(cases, fitted, "float32", chosen),
        "subgroups": measure_subgroups(cases, ["site"], fitted["image"], chosen),
        "comparison": compare_cases(cases, cases, chosen, {"name": "moles", "version": "v1"}),
        "intensity": measure_intensity(cases, 60),
        "certain_and_wrong": certain_and_wrong(cases),
    }
    told = " ".join(concerns(figures))
    for part in (
        "Only 45 of 90 images are positive",
        "was set for a sensitivity of 0.95 and reaches",
        "intervals are wide",
        "For 1 image the model gave",
        "Which patient",
        "are referred to a person",
        "undecided: difference in ROC AUC 0.000 (0.000–0.000) on 90 images",
    ):
        assert part in told, told
    bare = {**figures, **measure_cases(cases, {}, "float32", chosen)}
    assert any("no frozen threshold" in text for text in concerns(bare))


def test_newcombes_interval_is_that_of_his_paper() -> None:
    """Newcombe (1998), table II, method 10: 56/70 against 48/80, 9/10 against 3/10, 0/10 against 0/20."""
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert newcombe(0, 10, 0, 20) == pytest.approx((-0.1611, 0.2775), abs=5e-5)


@settings(max_examples=80)
@given(pair=st.tuples(*[st.integers(1, 80).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))] * 2))
def test_newcombes_interval_holds_the_difference_and_turns_round(pair: tuple[tuple[int, int], tuple[int, int]]) -> None:
    (one, of_one), (other, of_other) = pair
    low, high = newcombe(one, of_one, other, of_other)
    assert -1 - 1e-12 <= low <= one / of_one - other / of_other <= high <= 1 + 1e-12
    assert newcombe(other, of_other, one, of_one) == pytest.approx((-high, -low))
    own, its = (binomtest(*counts).proportion_ci(method="wilson") for counts in pair)
    share, another = one / of_one, other / of_other
    assert low == pytest.approx(share - another - math.hypot(share - own.low, its.high - another), abs=1e-9)
