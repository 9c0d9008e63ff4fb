from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.training.calibration import fit_temperature, fit_threshold, log_loss, probabilities


def overconfident(rng: np.random.Generator, classes: int) -> tuple[np.ndarray, np.ndarray]:
    logits = rng.normal(0, 2, (400, classes))
    truth = np.array([rng.choice(classes, p=row) for row in probabilities(logits)])
    return logits * 3.0, truth


@pytest.mark.parametrize("classes", [2, 4])
def test_the_temperature_is_the_best_of_a_fine_grid(classes: int) -> None:
    logits, truth = overconfident(np.random.default_rng(classes), classes)
    fitted = fit_temperature(logits, truth)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 4001))
    losses = []
    for temperature in grid:
        raised = np.exp(logits / temperature)
        losses.append(-np.log((raised / raised.sum(axis=1, keepdims=True))[np.arange(len(truth)), truth]).mean())
    assert fitted == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)
    assert fitted == pytest.approx(3.0, rel=0.25)
    assert log_loss(logits, truth, fitted) <= min(losses) + 1e-9


def test_separable_logits_stop_at_the_bound_and_stay_finite() -> None:
    logits = np.array([[5.0, -5.0], [-5.0, 5.0]] * 10)
    fitted = fit_temperature(logits, [0, 1] * 10)
    assert 0.05 <= fitted < 20
    assert np.isfinite(probabilities(np.array([[800.0, -800.0]]), fitted)).all()


scores = st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=40).filter(
    lambda rows: any(truth for _, truth in rows)
)


@settings(max_examples=200, deadline=None)
@given(rows=scores, target=st.sampled_from([0.5, 0.8, 0.9, 0.95, 1.0]))
def test_the_threshold_is_the_largest_that_reaches_the_target(rows: list[tuple[int, bool]], target: float) -> None:
    score = np.array([value / 12 for value, _ in rows])
    truth = np.array([kind for _, kind in rows])
    point = fit_threshold(score, truth, target)

    def sensitivity(threshold: float) -> float:
        return sum(s >= threshold for s, t in zip(score, truth, strict=True) if t) / truth.sum()

    reaching = [threshold for threshold in set(score) if sensitivity(threshold) >= target]
    assert max(reaching) - 1e-6 <= point.threshold <= max(reaching)
    assert point.sensitivity == pytest.approx(sensitivity(max(reaching)))
    assert point.sensitivity >= target
    if not truth.all():
        called = [s >= point.threshold for s, t in zip(score, truth, strict=True) if not t]
        assert point.specificity == pytest.approx(1 - np.mean(called))


def test_a_float32_score_at_the_threshold_stays_positive() -> None:
    score = np.array([0.9, 1 / 3, 0.1], np.float32)
    point = fit_threshold(score, [True, True, False])
    assert float(score[1]) >= point.threshold


def test_a_tiny_threshold_keeps_its_size() -> None:
    point = fit_threshold([5e-7, 4e-7, 1e-8], [True, True, False])
    assert 3.99e-7 < point.threshold <= 4e-7
    assert (point.sensitivity, point.specificity) == (1.0, 1.0)


def test_the_threshold_is_never_zero() -> None:
    point = fit_threshold([0.5, 0.0, 0.0], [True, True, False])
    assert 0 < point.threshold < 1e-30
    assert (point.sensitivity, point.specificity) == (0.5, 1.0)


def test_the_margin_is_a_share_of_the_threshold() -> None:
    assert fit_threshold([0.5, 0.1], [True, False], margin=1e-3).threshold == pytest.approx(0.4995, rel=1e-9)


@pytest.mark.parametrize(("truth", "target"), [([False, False], 0.95), ([True, False], 0.0), ([True, False], 1.1)])
def test_what_cannot_be_fitted_is_refused(truth: list[bool], target: float) -> None:
    with pytest.raises(UsageError):
        fit_threshold([0.1, 0.2], truth, target)
