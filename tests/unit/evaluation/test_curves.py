from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from pipelines.evaluation.curves import (
    decision_curve,
    equal_mass_bins,
    precision_recall_curve,
    reliability_bins,
    roc_curve,
)
from pipelines.evaluation.intervals import wilson


def drawn(seed: int, images: int = 60, digits: int = 1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.random(images) < 0.4
    truth[:2] = [True, False]
    return np.round(np.clip(random.normal(0.4 + 0.2 * truth, 0.2), 0, 1), digits), truth


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), digits=st.sampled_from([1, 2, 9]))
def test_both_curves_are_those_of_scikit_learn(seed: int, digits: int) -> None:
    score, truth = drawn(seed, digits=digits)
    wanted = metrics.roc_curve(truth, score, drop_intermediate=False)
    for own, its in zip(roc_curve(score, truth), wanted, strict=True):
        np.testing.assert_allclose(own, its, atol=1e-12)
    recall, precision, threshold = precision_recall_curve(score, truth)
    its_precision, its_recall, its_threshold = metrics.precision_recall_curve(truth, score)
    np.testing.assert_allclose(recall, its_recall[::-1], atol=1e-12)
    np.testing.assert_allclose(precision, its_precision[::-1], atol=1e-12)
    np.testing.assert_allclose(threshold[1:], its_threshold[::-1], atol=1e-12)
    assert np.isinf(threshold[0])


def test_a_curve_of_one_kind_is_empty() -> None:
    assert [len(own) for own in roc_curve([0.1, 0.2], [True, True])] == [0, 0, 0]
    assert [len(own) for own in precision_recall_curve([0.1, 0.2], [False, False])] == [0, 0, 0]
    assert [len(own) for own in precision_recall_curve([], [])] == [0, 0, 0]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 0.71, 0.9, 1.0]) | st.floats(0, 1), min_size=1, max_size=120)
)
def test_bins_never_split_equal_scores_and_are_about_as_large(score: list[float]) -> None:
    given_scores = np.array(score)
    place = equal_mass_bins(given_scores)
    order = np.argsort(given_scores, kind="stable")
    assert (np.diff(place[order]) >= 0).all() and place.min() == 0
    assert len(np.unique(place)) == place.max() + 1 <= 10
    for value in np.unique(given_scores):
        assert len(np.unique(place[given_scores == value])) == 1
    _, largest = np.unique(given_scores, return_counts=True)
    assert np.bincount(place).max() <= len(score) / 10 + largest.max()
    np.testing.assert_array_equal(equal_mass_bins(np.tile(given_scores, 3)), np.tile(place, 3))


def test_distinct_scores_fill_bins_alike() -> None:
    place = equal_mass_bins(np.random.default_rng(0).permutation(1000) / 1000)
    assert (np.bincount(place) == 100).all()


def test_reliability_is_counted_bin_by_bin() -> None:
    p, truth = drawn(4, 500, digits=9)
    bins, place = reliability_bins(p, truth), equal_mass_bins(p)
    assert sum(one.n for one in bins) == 500
    for number, one in enumerate(bins):
        inside = place == number
        assert one.mean_predicted == pytest.approx(p[inside].mean())
        assert one.observed == pytest.approx(truth[inside].mean())
        assert (one.low, one.high) == pytest.approx(wilson(int(truth[inside].sum()), int(inside.sum())))
    assert reliability_bins([], []) == []


def test_net_benefit_is_counted_by_hand() -> None:
    p, truth = drawn(5, 300, digits=2)
    thresholds = np.array([0.0, 0.05, 0.3, 0.5, 0.99])
    model, everybody = decision_curve(p, truth, thresholds)
    for at, threshold in enumerate(thresholds):
        treated = p >= threshold
        weight = threshold / (1 - threshold)
        assert model[at] == pytest.approx(((treated & truth).sum() - weight * (treated & ~truth).sum()) / 300)
        assert everybody[at] == pytest.approx(truth.mean() - weight * (1 - truth.mean()))
    assert model[0] == everybody[0] == pytest.approx(truth.mean())
