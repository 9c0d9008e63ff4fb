from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.evaluation.thresholds import fit_alike, fit_point, fit_threshold, sum_positive
from pipelines.models.decision import ABOVE_ALL, decide

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


def bands(score: np.ndarray, truth: np.ndarray, threshold: float, s: float, q: float) -> list[tuple[int, float, float]]:
    """Every feasible band by going through all, as (referred, low, high)."""
    ends = sorted({0.0, threshold, ABOVE_ALL, *(value * (1 - 1e-5) for value in score)})
    found = []
    for low in ends:
        for high in ends:
            if not low <= threshold <= high:
                continue
            outside = (score < low) | (score >= high)
            positives, negatives = (truth & outside).sum(), (~truth & outside).sum()
            hit, right = (truth & (score >= high)).sum(), (~truth & (score < low)).sum()
            if hit >= s * positives - 1e-9 and right >= q * negatives - 1e-9:
                found.append((int((~outside).sum()), low, high))
    return found


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=25).filter(
        lambda rows: any(truth for _, truth in rows)
    ),
    sensitivity=st.sampled_from([0.5, 0.8, 0.95, 1.0]),
    specificity=st.sampled_from([0.5, 0.7, 0.95, 1.0]),
    step=st.sampled_from([12, 13, 12e6]),
)
def test_the_band_refers_the_fewest_that_reach_both_targets(
    rows: list[tuple[int, bool]], sensitivity: float, specificity: float, step: float
) -> None:
    score = np.array([np.float32(value / step) for value, _ in rows], np.float64)
    truth = np.array([kind for _, kind in rows])
    point = fit_point(score, truth, sensitivity, specificity)
    band = point.band
    assert band is not None and point.threshold == fit_threshold(score, truth, sensitivity).threshold
    every = bands(score, truth, point.threshold, sensitivity, specificity)
    assert band.referred == min(every)[0]
    assert 0 <= band.low <= point.threshold <= band.high <= ABOVE_ALL
    decided = decide(score, point.record())
    assert int((decided == "refer").sum()) == band.referred
    assert int(((decided == "refer") & truth).sum()) == band.referred_positive
    for kind, word, count, share, target in (
        (truth, "positive", band.decided_positives, band.sensitivity, sensitivity),
        (~truth, "negative", band.decided_negatives, band.specificity, specificity),
    ):
        own = decided[kind & (decided != "refer")]
        assert len(own) == count
        assert math.isnan(share) if not count else share == np.mean(own == word) >= target - 1e-9
    if band.referred == 0:
        assert band.low == band.high == point.threshold


def test_the_band_falls_to_the_safe_side_however_the_last_bit_falls() -> None:
    random = np.random.default_rng(3)
    truth = random.random(400) < 0.4
    score = (1 / (1 + np.exp(-random.normal(np.where(truth, 1.0, -1.0), 1)))).astype(np.float32)
    point = fit_point(score, truth, 0.95, 0.95)
    assert point.band is not None and 0 < point.band.referred < 200
    assert point.band.sensitivity >= 0.95 and point.band.specificity >= 0.95
    before = decide(score, point.record())
    lower = decide(np.nextafter(score, np.float32(0)), point.record())
    # A case at an end stays where it is; only those above could rise, and they are further away than a bit.
    np.testing.assert_array_equal(before, lower)


def test_without_negative_cases_nobody_is_referred() -> None:
    point = fit_point([0.9, 0.2], [True, True], 0.5, 1.0)
    assert point.band is not None and (point.band.low, point.band.high) == (point.threshold, point.threshold)
    assert math.isnan(point.specificity) and math.isnan(point.band.specificity)


def test_where_nothing_can_be_decided_all_are_referred() -> None:
    point = fit_point([0.5] * 10, [True, False] * 5, 1.0, 1.0)
    assert point.band is not None
    assert (point.band.low, point.band.high, point.band.referred) == (0.0, ABOVE_ALL, 10)
    assert decide([0.0, 0.7, 1.0], point.record()).tolist() == ["refer"] * 3
    assert point.band.decided_positives == point.band.decided_negatives == 0


def test_many_cases_take_no_time() -> None:
    random = np.random.default_rng(5)
    truth = random.random(200_000) < 0.1
    score = np.clip(random.normal(np.where(truth, 0.6, 0.4), 0.15), 0, 1).astype(np.float32)
    began = time.perf_counter()
    point = fit_point(score, truth, 0.95, 0.95)
    assert time.perf_counter() - began < 2
    assert point.band is not None and point.band.cases == 200_000


def test_another_scorers_answers_are_fitted_to_the_same_targets() -> None:
    truth = [False, True, False, True]
    point = fit_point([0.1, 0.4, 0.6, 0.9], truth, 0.9, 0.8)
    again = fit_alike(point, [0.2, 0.3, 0.1, 0.8], truth)
    assert again == fit_point([0.2, 0.3, 0.1, 0.8], truth, 0.9, 0.8)
    assert fit_alike(fit_threshold([0.1, 0.4], truth[:2]), [0.2, 0.3], truth[:2]).band is None


@pytest.mark.parametrize("targets", [(0.95, 0.0), (0.95, 1.5), (0.0, 0.95), (math.nan, 0.95)])
def test_a_target_out_of_range_is_refused(targets: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        fit_point([0.1, 0.9], [False, True], *targets)
