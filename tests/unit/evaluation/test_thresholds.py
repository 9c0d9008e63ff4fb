from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.evaluation.thresholds import fit_threshold, sum_positive

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
    assert max(reaching) * (1 - 1.1e-5) <= point.threshold <= max(reaching)
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


def test_the_record_says_what_it_was_fitted_on() -> None:
    record = fit_threshold([0.5, 0.1], [True, False]).record()
    assert set(record) == {"threshold", "target_sensitivity", "sensitivity", "specificity", "fitted_on"}
    assert record["fitted_on"] == "validation"


def test_the_positive_probability_is_summed_as_scoring_does() -> None:
    answers = np.array([[0.1, 0.2, 0.7], [0.25, 0.5000001, 0.25]], np.float32)
    found = sum_positive(answers, [1, 2])
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [np.float32(min(1.0, float(row[1]) + float(row[2]))) for row in answers])


@pytest.mark.parametrize(("truth", "target"), [([False, False], 0.95), ([True, False], 0.0), ([True, False], 1.1)])
def test_what_cannot_be_fitted_is_refused(truth: list[bool], target: float) -> None:
    with pytest.raises(UsageError):
        fit_threshold([0.1, 0.2], truth, target)
