from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.calibration import (
    class_logits,
    fit_temperature,
    log_loss,
    probabilities,
)


def overconfident(rng: np.random.Generator, classes: int) -> tuple[np.ndarray, np.ndarray]:
    logits = rng.normal(0, 2, (400, classes))
    truth = np.array([rng.choice(classes, p=row) for row in probabilities(logits)])
    return logits * 3.0, truth


@pytest.mark.parametrize("classes", [2, 4])
def test_the_temperature_is_the_best_of_a_fine_grid(classes: int) -> None:
    logits, truth = overconfident(np.random.default_rng(classes), classes)
    fitted = fit_temperature(logits, truth)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 4001))
    wanted = np.zeros(logits.shape)
    for row, own in enumerate(truth):
        doubt = 1 / (int((truth == own).sum()) + 2)
        wanted[row] = doubt / (classes - 1)
        wanted[row, own] = 1 - doubt
    losses = []
    for temperature in grid:
        raised = np.exp(logits / temperature)
        losses.append(-(wanted * np.log(raised / raised.sum(axis=1, keepdims=True))).sum(axis=1).mean())
    assert fitted == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)
    assert fitted == pytest.approx(3.0, rel=0.25)
    assert log_loss(logits, truth, fitted) < log_loss(logits, truth)


def test_views_of_an_image_are_averaged_as_probabilities() -> None:
    random = np.random.default_rng(0)
    views, truth = random.normal(0, 3, (2, 50, 3)), random.integers(0, 3, 50)
    mean = (probabilities(views[0], 1.7) + probabilities(views[1], 1.7)) / 2
    np.testing.assert_allclose(probabilities(views, 1.7), mean, rtol=1e-12)
    assert log_loss(views, truth, 1.7) == pytest.approx(-np.log(mean[np.arange(50), truth]).mean())
    assert fit_temperature(views[:1], truth) == pytest.approx(fit_temperature(views[0], truth))


def test_separable_logits_are_not_taken_for_certain() -> None:
    logits = np.array([[5.0, -5.0], [-5.0, 5.0]] * 10)
    fitted = fit_temperature(logits, [0, 1] * 10)
    # Ten images of a class, all right: at most 1 - 1 / 12 is borne out.
    np.testing.assert_allclose(probabilities(logits, fitted).max(axis=1), 1 - 1 / 12, atol=1e-6)
    assert np.isfinite(probabilities(np.array([[800.0, -800.0]]), fitted)).all()


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=20), st.sampled_from([0.3, 1.0, 4.0]))
def test_one_logit_is_that_of_the_second_class(values: list[float], temperature: float) -> None:
    logits = np.array(values)[:, np.newaxis]
    found = probabilities(class_logits(logits), temperature)
    np.testing.assert_allclose(found[:, 1], 1 / (1 + np.exp(-logits[:, 0] / temperature)), rtol=1e-12)
    assert class_logits(found) is not None and class_logits(found).shape == found.shape
