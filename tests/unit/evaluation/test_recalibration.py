from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from pipelines.evaluation.recalibration import fit_recalibration, logits, newton_columns, one_step


def drawn(seed: int, images: int, intercept: float = 0.0, slope: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(-0.5, 1.5, images)
    return 1 / (1 + np.exp(-x)), random.random(images) < 1 / (1 + np.exp(-intercept - slope * x))


def independent(p: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same maximum by a general minimiser."""
    x, signs = np.log(p / (1 - p)), np.where(truth, 1, -1)
    found = minimize(
        lambda beta: (weights * np.logaddexp(0, -signs * (beta[0] + beta[1] * x))).sum(),
        [0.0, 1.0],
        method="BFGS",
        options={"gtol": 1e-9},
    )
    return found.x


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), images=st.integers(30, 400), slope=st.floats(0.3, 2))
def test_the_fit_is_the_maximum_of_the_likelihood(seed: int, images: int, slope: float) -> None:
    p, truth = drawn(seed, images, 0.4, slope)
    fitted = fit_recalibration(p, truth)
    assume(not fitted.reason)
    wanted = independent(p, truth, np.ones(images))
    assert (fitted.intercept, fitted.slope) == pytest.approx(tuple(wanted), rel=1e-4, abs=1e-4)
    gradient = newton_columns(logits(p), truth, fitted.intercept, fitted.slope)[:, :2].sum(axis=0)
    assert np.abs(gradient).max() < 1e-7 * images


def test_many_images_give_what_they_were_drawn_with() -> None:
    fitted = fit_recalibration(*drawn(1, 200_000, -0.3, 0.7))
    assert (fitted.intercept, fitted.slope) == pytest.approx((-0.3, 0.7), abs=0.02)


@pytest.mark.parametrize(
    ("p", "truth", "words"),
    [
        ([0.1, 0.2, 0.8, 0.9], [False, False, True, True], "without an overlap"),
        ([0.1, 0.5, 0.5, 0.9], [False, False, True, True], "without an overlap"),
        ([0.9, 0.8, 0.2, 0.1], [False, False, True, True], "without an overlap"),
        ([0.5, 0.5, 0.5], [True, False, True], "equal"),
        ([0.1, 0.9], [True, True], "both kinds"),
        ([0.1], [False], "both kinds"),
    ],
)
def test_where_there_is_no_fit_it_says_why(p: list[float], truth: list[bool], words: str) -> None:
    fitted = fit_recalibration(p, truth)
    assert words in fitted.reason
    assert math.isnan(fitted.slope) and math.isnan(fitted.intercept)


def test_certain_answers_that_are_wrong_do_not_break_the_fit() -> None:
    fitted = fit_recalibration([0.0, 0.0, 1.0, 1.0, 1e-30], [False, True, True, False, False])
    assert math.isfinite(fitted.slope) and not fitted.reason


def test_one_step_is_near_a_whole_fit_to_a_resample() -> None:
    p, truth = drawn(3, 600, 0.2, 0.8)
    fitted = fit_recalibration(p, truth)
    columns = newton_columns(logits(p), truth, fitted.intercept, fitted.slope)
    random = np.random.default_rng(0)
    weights = random.multinomial(600, np.full(600, 1 / 600), 200).astype(float)
    intercept, slope = one_step(weights @ columns, fitted)
    whole = np.array([independent(p, truth, row) for row in weights])
    assert np.abs(intercept - whole[:, 0]).mean() < 0.1 * whole[:, 0].std()
    assert np.corrcoef(slope, whole[:, 1])[0, 1] > 0.99
    assert slope.std() == pytest.approx(whole[:, 1].std(), rel=0.1)
    assert np.isnan(one_step(np.zeros((1, 5)), fitted)).all()
