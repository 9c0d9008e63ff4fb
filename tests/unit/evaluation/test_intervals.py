from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.intervals import Basis, figure_intervals, of_draws, wilson
from pipelines.evaluation.metrics import METRIC_NAMES, measure, weighted_figures


def drawn(seed: int, images: int, classes: int, sharpness: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, images)
    logits = random.normal(0, 1, (images, classes)) + sharpness * np.eye(classes)[truth]
    # Rounded, so that scores tie.
    raised = np.exp(np.round(logits, 1))
    return raised / raised.sum(axis=1, keepdims=True), truth


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), images=st.integers(8, 40), classes=st.sampled_from([2, 3, 4]))
def test_a_weight_is_the_same_as_repeating_the_image(seed: int, images: int, classes: int) -> None:
    probabilities, truth = drawn(seed, images, classes)
    weights = np.random.default_rng(seed + 1).integers(0, 4, (3, images)).astype(float)
    weights[:, 0] = 1
    found = weighted_figures(probabilities, truth, [1], weights)
    for row in range(3):
        rows = np.repeat(np.arange(images), weights[row].astype(int))
        if classes > 2 and len(set(truth[rows])) < classes:
            continue  # scikit-learn's average of what is not defined is another story
        wanted = measure(probabilities[rows], truth[rows], [1])
        for name in METRIC_NAMES:
            assert found[name][row] == pytest.approx(wanted[name], abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize("classes", [2, 3])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(classes: int) -> None:
    many, many_truth = drawn(0, 200_000, classes)
    population = measure(many, many_truth, [1])
    held = dict.fromkeys(("roc_auc", "accuracy", "log_loss"), 0)
    for trial in range(60):
        probabilities, truth = drawn(1000 + trial, 120, classes)
        found = figure_intervals(probabilities, truth, [str(i) for i in range(120)], [1], seed=trial, draws=300)
        for name in held:
            held[name] += found[name][0] <= population[name] <= found[name][1]
    assert all(53 <= count <= 60 for count in held.values()), held


def test_images_of_one_group_prove_less_than_images_of_many() -> None:
    probabilities, truth = drawn(5, 400, 2, sharpness=0.5)
    # Sorted by how well they are answered, so that groups differ from each other.
    order = np.argsort(probabilities[np.arange(400), truth])
    probabilities, truth = probabilities[order], truth[order]
    alone = figure_intervals(probabilities, truth, [str(i) for i in range(400)], [1])
    together = figure_intervals(probabilities, truth, [str(i // 40) for i in range(400)], [1])
    for name in ("accuracy", "log_loss"):
        assert np.diff(together[name])[0] > 2 * np.diff(alone[name])[0]


def test_perfect_answers_keep_an_interval_where_a_formula_gives_one() -> None:
    truth = np.array([0, 1] * 10)
    probabilities = np.eye(2)[truth] * 0.8 + 0.1
    found = figure_intervals(probabilities, truth, [str(i) for i in range(20)], [1])
    assert found["accuracy"][0] == pytest.approx(wilson(20, 20)[0])
    assert found["accuracy"][1] == pytest.approx(1) and found["sensitivity"][1] == pytest.approx(1)
    assert 0.6 < found["sensitivity"][0] < 0.75 and found["roc_auc"][0] < 1.0
    assert all(math.isnan(end) for end in found["mcc"])


def test_wilson_is_that_of_scipy() -> None:
    from scipy.stats import binomtest

    for successes, trials in ((0, 7), (3, 7), (7, 7), (190, 200)):
        wanted = binomtest(successes, trials).proportion_ci(method="wilson")
        assert wilson(successes, trials) == pytest.approx((wanted.low, wanted.high))
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_share_has_wilsons_interval_at_the_images_that_the_draws_are_worth() -> None:
    draws = np.random.default_rng(0).binomial(80, 0.9, 4000) / 80
    low, high = of_draws("sensitivity", draws, 0.9)
    assert (low, high) == pytest.approx(wilson(72, 80), abs=0.004)
    few, many = (of_draws("sensitivity", draws, 0.9, Basis(groups)) for groups in (5, 5000))
    assert few[0] < low and few[1] > high
    assert many == pytest.approx((low, high), abs=1e-4)
    assert of_draws("sensitivity", draws, 0.9, Basis(1, (0.2, 1.0))) == (0.2, 1.0)


def test_draws_that_agree_leave_the_formula() -> None:
    agreed = np.array([1.0, 1.0, math.nan])
    assert of_draws("ppv", agreed, 1.0, Basis(9, (0.7, 1.0))) == (0.7, 1.0)
    for values in (agreed, np.array([math.nan])):
        assert all(math.isnan(end) for end in of_draws("mcc", values, 1.0))


def test_other_figures_have_the_middle_of_the_draws() -> None:
    draws = np.append(np.arange(1001) / 1000, math.nan)
    assert of_draws("log_loss", draws, 0.4) == pytest.approx((0.025, 0.975))
    assert of_draws("calibration_error", draws, 0.6) == pytest.approx((0.225, 0.975))
    assert of_draws("calibration_error", draws, 0.4) == pytest.approx((0.0, 0.975))
