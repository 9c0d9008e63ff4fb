from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import iqr, spearmanr

from pipelines.evaluation.cases import Cases
from pipelines.evaluation.intensity import accuracy_by_value, describe_values, measure_intensity, rank_correlation
from pipelines.evaluation.resampling import form_groups

EDGES = np.linspace(0, 1, 31)


def study(intensity: np.ndarray, right: np.ndarray, per_patient: int = 1) -> Cases:
    images = len(intensity)
    labels = np.arange(images) % 2
    called = np.where(right, labels, 1 - labels)
    names = tuple(str(row) for row in range(images))
    return Cases(
        classes=("benign", "malignant", "never seen"),
        positive=(1,),
        uris=names,
        contents=names,
        labels=labels,
        probabilities=(np.eye(3)[called] * 0.7 + 0.1).astype(np.float32),
        groups=tuple(str(row // per_patient) for row in range(images)),
        patients=None,
        mean_intensity=np.asarray(intensity, np.float64),
    )


def alone(images: int):
    return form_groups([str(row) for row in range(images)], np.zeros(images, np.int64))


@settings(max_examples=100)
@given(values=st.lists(st.floats(0, 1).map(lambda value: round(value, 3)), min_size=1, max_size=50))
def test_a_class_in_numbers_is_what_pandas_says(values: list[float]) -> None:
    found, column = describe_values(np.array(values), EDGES), pd.Series(values)
    wanted = column.describe()
    names = {"n": "count", "min": "min", "q1": "25%", "median": "50%", "q3": "75%", "max": "max", "mean": "mean"}
    assert {name: found[name] for name in names} == pytest.approx({name: wanted[own] for name, own in names.items()})
    if len(set(values)) > 1 and len(values) > 2:
        assert found["skewness"] == pytest.approx(column.skew(), abs=1e-6)  # also the adjusted one
    else:
        assert found["skewness"] is None
    spread = 1.5 * iqr(values)
    far = [value < wanted["25%"] - spread or value > wanted["75%"] + spread for value in values]
    assert abs(found["outliers"] - sum(far)) <= sum(
        min(abs(value - wanted["25%"] + spread), abs(value - wanted["75%"] - spread)) < 1e-12 for value in values
    )
    assert sum(found["values_histogram"]["counts"]) == len(values)


def test_the_whole_analysis_can_be_written_and_counts_add_up() -> None:
    random = np.random.default_rng(0)
    intensity = random.random(400)
    intensity[[3, 7, 8]] = math.nan
    found = measure_intensity(study(intensity, random.random(400) < 0.8), draws=100)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["n"], found["unknown"]) == (397, 3)
    assert [one["n"] for one in found["classes"].values()] == [199, 198, 0]
    histograms = [one["values_histogram"] for one in found["classes"].values() if one["n"]]
    assert histograms[0]["edges"] == histograms[1]["edges"] and len(histograms[0]["counts"]) == 30
    assert sum(sum(one["counts"]) for one in histograms) == 397
    assert histograms[0]["edges"][0] == np.nanmin(intensity) and histograms[0]["edges"][-1] == np.nanmax(intensity)


def test_accuracy_of_each_fifth_is_that_of_its_images() -> None:
    random = np.random.default_rng(1)
    values = random.random(500)
    right = random.random(500) < 0.5 + 0.4 * values
    found = accuracy_by_value(values, right, alone(500), 200, 0)
    cut = pd.qcut(values, 5, labels=False)
    assert [one["n"] for one in found["bins"]] == [100] * 5
    for at, one in enumerate(found["bins"]):
        own = one["accuracy"]
        assert own["value"] == pytest.approx(right[cut == at].mean()) and own["low"] < own["value"] < own["high"]
        assert one["high"] == values[cut == at].max()
    assert found["depends"] and found["sentence"].startswith("Accuracy rises with intensity. It is 0.")


def test_equal_values_share_a_step() -> None:
    values = np.array([0.2] * 90 + [0.5] * 10)
    found = accuracy_by_value(values, np.arange(100) % 3 > 0, alone(100), 50, 0)
    assert [(one["low"], one["high"], one["n"]) for one in found["bins"]] == [(0.2, 0.2, 90), (0.2, 0.5, 10)]
    high = accuracy_by_value(np.array([0.2] * 5 + [0.5] * 95), np.arange(100) % 3 > 0, alone(100), 50, 0)
    assert [one["n"] for one in high["bins"]] == [100]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(20, 300), slope=st.floats(-1, 1))
def test_with_one_image_to_a_patient_it_is_the_usual_test(seed: int, images: int, slope: float) -> None:
    random = np.random.default_rng(seed)
    values = np.round(random.random(images), 2)
    right = random.random(images) < 0.5 + 0.3 * slope * (values - 0.5)
    spearman, p = rank_correlation(values, right, alone(images))
    wanted = spearmanr(values, right)
    if spearman is None:
        assert right.all() or not right.any()
        return
    assert spearman == pytest.approx(wanted.statistic, abs=1e-12)
    if abs(spearman) < 0.3 and images > 60 and 0.2 < right.mean() < 0.8:
        assert p == pytest.approx(wanted.pvalue, abs=0.05)


def test_images_of_one_patient_do_not_prove_a_dependence() -> None:
    """Ten images a patient, of like brightness and likely right together; intensity and being right are unrelated."""
    by_group = by_image = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        values = np.repeat(random.random(40), 10) + random.normal(0, 0.01, 400)
        right = random.random(400) < np.repeat(random.beta(0.5, 0.5, 40), 10)
        groups = form_groups([str(row // 10) for row in range(400)], np.zeros(400, np.int64))
        by_group += rank_correlation(values, right, groups)[1] < 0.05
        by_image += spearmanr(values, right).pvalue < 0.05
    assert by_group <= 20 < 60 < by_image, (by_group, by_image)


def test_a_real_dependence_of_patients_is_found() -> None:
    random = np.random.default_rng(5)
    values = np.repeat(random.random(80), 5)
    right = random.random(400) < 0.95 - 0.6 * values
    found = measure_intensity(study(values, right, 5), draws=50)["accuracy"]
    assert found["depends"] and found["spearman"] < -0.2 and found["sentence"].startswith("Accuracy falls")


def test_it_says_what_cannot_be_said() -> None:
    values = np.linspace(0, 1, 100)
    nothing = measure_intensity(study(np.full(50, math.nan), np.ones(50, bool)))
    assert nothing == {"reason": "the mean intensity of no image is known", "unknown": 50}
    perfect = measure_intensity(study(values, np.ones(100, bool)), draws=50)["accuracy"]
    assert perfect["sentence"] == "All 100 answers are right, so accuracy does not depend on intensity here."
    assert (perfect["spearman"], perfect["p"], perfect["depends"]) == (None, None, False)
    assert perfect["bins"][0]["accuracy"]["low"] < 0.9
    flat = measure_intensity(study(np.full(100, 0.5), values > 0.5), draws=50)
    assert flat["accuracy"]["sentence"].startswith("All images have the same mean intensity")
    assert flat["classes"]["benign"]["values_histogram"]["counts"] == [50]
    few = measure_intensity(study(values[:10], values[:10] > 0.05), draws=50)["accuracy"]
    assert few["p"] is None and few["sentence"].startswith("The images are too few to say")
    random = np.random.default_rng(2)
    chance = measure_intensity(study(random.random(300), random.random(300) < 0.8), draws=50)["accuracy"]
    assert not chance["depends"] and "is not borne out. It is 0." in chance["sentence"]
