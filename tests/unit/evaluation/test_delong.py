from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from pipelines.evaluation.delong import delong_difference, delong_interval, place


def brute_force(scores: list[np.ndarray], truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas and their covariance by the sums over all pairs of the paper of 1988."""
    areas, of_positives, of_negatives = [], [], []
    for score in scores:
        own, others = score[truth], score[~truth]
        kernel = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in others] for x in own])
        areas.append(kernel.mean())
        of_positives.append(kernel.mean(axis=1))
        of_negatives.append(kernel.mean(axis=0))
    between = np.cov(np.array(of_positives)) / truth.sum() + np.cov(np.array(of_negatives)) / (~truth).sum()
    return np.array(areas), np.atleast_2d(between)


def drawn(seed: int, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two correlated scores, rounded so that many tie, and a truth with at least two of each kind."""
    random = np.random.default_rng(seed)
    truth = np.append(random.random(images - 4) < 0.4, [True, True, False, False])
    shared = random.normal(truth * 1.0, 1.0)
    first, second = (np.round(shared + random.normal(0, 0.7, images), 1) for _ in range(2))
    return first, second, truth


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(6, 60))
def test_it_is_what_the_sums_over_all_pairs_say(seed: int, images: int) -> None:
    first, second, truth = drawn(seed, images)
    areas, between = brute_force([first, second], truth)
    assert place(first, truth).area == pytest.approx(roc_auc_score(truth, first), abs=1e-12)
    found, variance = delong_difference(first, second, truth), between[0, 0] + between[1, 1] - 2 * between[0, 1]
    assert found.difference == pytest.approx(areas[0] - areas[1], abs=1e-12)
    if variance > 1e-12:
        assert found.z == pytest.approx((areas[0] - areas[1]) / math.sqrt(variance), rel=1e-6, abs=1e-9)
        assert found.p == pytest.approx(2 * norm.sf(abs(found.z)))
        assert found.high - found.low <= 2 * norm.isf(0.025) * math.sqrt(variance) + 1e-12
    low, high = delong_interval(first, truth)
    if between[0, 0] > 1e-12:
        half = norm.isf(0.025) * math.sqrt(between[0, 0]) / (areas[0] * (1 - areas[0]))
        assert (low, high) == pytest.approx((expit(logit(areas[0]) - half), expit(logit(areas[0]) + half)), abs=1e-9)
        assert 0 <= low < areas[0] < high <= 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(6, 60))
def test_only_the_order_counts_and_turning_it_mirrors_the_interval(seed: int, images: int) -> None:
    first, second, truth = drawn(seed, images)
    assert delong_interval(np.exp(first), truth) == pytest.approx(delong_interval(first, truth), nan_ok=True)
    low, high = delong_interval(-first, truth)
    assert (1 - high, 1 - low) == pytest.approx(delong_interval(first, truth), nan_ok=True)
    there, back = delong_difference(first, second, truth), delong_difference(second, first, truth)
    assert (there.difference, there.z) == pytest.approx((-back.difference, -back.z), nan_ok=True)
    assert there.p == pytest.approx(back.p, nan_ok=True)


@pytest.mark.parametrize(
    ("score", "truth"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]),
        ([0.9, 0.8, 0.1, 0.2], [0, 0, 1, 1]),
        ([0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1]),
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 1, 1]),
        ([0.1, 0.2, 0.8, 0.9], [0, 1, 0, 0]),
        ([], []),
    ],
)
def test_there_is_no_interval_without_variance(score: list[float], truth: list[int]) -> None:
    assert all(math.isnan(end) for end in delong_interval(score, truth))
    found = delong_difference(score, score, truth)
    assert math.isnan(found.p) and math.isnan(found.z) and math.isnan(found.low)
    assert found.difference == 0 or math.isnan(found.difference)


def test_two_models_of_one_order_do_not_differ_by_rounding() -> None:
    first, _, truth = drawn(3, 3001)
    found = delong_difference(first, first * 3 + 0.1, truth)
    assert found.difference == 0 and math.isnan(found.p)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Normal scores of both kinds: the true area is known."""
    area, held = norm.cdf(1.5 / math.sqrt(2)), 0
    for trial in range(400):
        random = np.random.default_rng(trial)
        truth = np.arange(120) < 40
        low, high = delong_interval(random.normal(truth * 1.5), truth)
        held += low <= area <= high
    assert 0.925 * 400 <= held <= 0.98 * 400, held


def test_it_takes_no_pairs() -> None:
    """14 billion pairs would take minutes and 115 GB."""
    random = np.random.default_rng(0)
    truth = random.random(400_000) < 0.1
    began = time.process_time()
    delong_difference(random.normal(truth), random.normal(truth), truth)
    assert time.process_time() - began < 5
