from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from pipelines.evaluation.metrics import (
    LOWER_IS_BETTER,
    METRIC_NAMES,
    classification_report,
    confusion_matrix,
    measure,
    roc_auc,
    roc_auc_interval,
)


def sample(classes: int, seed: int, images: int = 200, digits: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels; few digits make scores tie."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, images)
    raised = np.exp(np.round(rng.normal(0, 1, (images, classes)) + 1.2 * np.eye(classes)[truth], digits))
    return raised / raised.sum(axis=1, keepdims=True), truth


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    images=st.integers(6, 80),
    digits=st.sampled_from([0, 1, 9]),
    one=st.sampled_from([0, 1]),
)
def test_two_classes_agree_with_scikit_learn(seed: int, images: int, digits: int, one: int) -> None:
    p, truth = sample(2, seed, images, digits)
    truth[:2], p[:4] = [0, 1], [[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]]
    positive = truth == one
    called = p.argmax(axis=1) == one
    expected = {
        "roc_auc": metrics.roc_auc_score(positive, p[:, one]),
        "average_precision": metrics.average_precision_score(positive, p[:, one]),
        "sensitivity": metrics.recall_score(positive, called),
        "specificity": metrics.recall_score(~positive, ~called),
        "ppv": metrics.precision_score(positive, called),
        "npv": metrics.precision_score(~positive, ~called),
        "accuracy": metrics.accuracy_score(positive, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(positive, called),
        "f1": metrics.f1_score(positive, called),
        "mcc": metrics.matthews_corrcoef(positive, called),
        "brier": metrics.brier_score_loss(positive, p[:, one]),
        "log_loss": metrics.log_loss(truth, p),
    }
    figures = measure(p, truth, [one])
    assert tuple(figures) == METRIC_NAMES
    assert figures == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), classes=st.integers(3, 6), digits=st.sampled_from([0, 1, 9]))
def test_more_classes_agree_with_scikit_learn(seed: int, classes: int, digits: int) -> None:
    p, truth = sample(classes, seed, digits=digits)
    truth[:classes], p[:classes] = np.arange(classes), 0.1 / classes + 0.9 * np.eye(classes)
    called, is_true = p.argmax(axis=1), np.eye(classes)[truth]
    figures = measure(p, truth, [2])
    expected = {
        "roc_auc": metrics.roc_auc_score(is_true, p, average="macro"),
        "average_precision": metrics.average_precision_score(is_true, p, average="macro"),
        "sensitivity": metrics.recall_score(truth, called, average="macro"),
        "ppv": metrics.precision_score(truth, called, average="macro"),
        "specificity": np.mean([metrics.recall_score(truth != k, called != k) for k in range(classes)]),
        "npv": np.mean([metrics.precision_score(truth != k, called != k) for k in range(classes)]),
        "f1": metrics.f1_score(truth, called, average="macro"),
        "accuracy": metrics.accuracy_score(truth, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, called),
        "mcc": metrics.matthews_corrcoef(truth, called),
        "brier": metrics.brier_score_loss(truth, p),
        "log_loss": metrics.log_loss(truth, p),
    }
    assert figures == pytest.approx(expected, abs=1e-9)
    assert (confusion_matrix(called, truth, classes) == metrics.confusion_matrix(truth, called)).all()


def test_a_certain_error_costs_what_scikit_learn_says() -> None:
    p, truth = np.array([[1.0, 0.0], [0.0, 1.0], [0.25, 0.75]]), np.array([1, 1, 0])
    assert measure(p, truth, [1])["log_loss"] == pytest.approx(metrics.log_loss(truth, p), abs=1e-9)


@settings(max_examples=25)
@given(st.integers(2, 5), st.integers(0, 2**31 - 1))
def test_every_figure_depends_on_the_images_and_not_on_their_order_or_number(classes: int, seed: int) -> None:
    """So that any of them may judge an epoch: twice the same images, in another order, are judged alike."""
    p, truth = sample(classes, seed)
    rows = np.random.default_rng(seed + 1).permutation(np.tile(np.arange(len(truth)), 2))
    assert measure(p[rows], truth[rows], [1]) == pytest.approx(measure(p, truth, [1]), abs=1e-9)


@settings(max_examples=25)
@given(st.integers(0, 2**31 - 1), st.floats(0.2, 5))
def test_a_ranking_depends_on_the_order_of_the_scores_alone(seed: int, power: float) -> None:
    p, truth = sample(2, seed)
    score = np.round(p[:, 1], 2)
    assert roc_auc(score**power, truth == 1) == pytest.approx(roc_auc(score, truth == 1), abs=1e-9)
    assert roc_auc(-score, truth == 1) == pytest.approx(1 - roc_auc(score, truth == 1), abs=1e-9)
    assert roc_auc(np.full(len(truth), 0.3), truth == 1) == 0.5


@pytest.mark.parametrize("classes", [2, 3])
def test_a_perfect_answer_is_the_best_of_every_figure(classes: int) -> None:
    p, truth = sample(classes, 3)
    perfect = measure(np.eye(classes)[truth], truth, [0])
    for name, value in measure(p, truth, [0]).items():
        assert perfect[name] <= value if name in LOWER_IS_BETTER else perfect[name] >= value
        assert perfect[name] == pytest.approx(0.0 if name in LOWER_IS_BETTER else 1.0, abs=1e-9)


UNDEFINED = {
    "one class only": ([[0.2, 0.8], [0.6, 0.4]], [1, 1], {"roc_auc", "specificity", "balanced_accuracy", "mcc"}),
    "no positive": (
        [[0.2, 0.8], [0.6, 0.4]],
        [0, 0],
        {"roc_auc", "average_precision", "sensitivity", "balanced_accuracy", "mcc"},
    ),
    "never called": ([[0.8, 0.2], [0.6, 0.4]], [0, 1], {"ppv", "mcc"}),
    "always called": ([[0.2, 0.8], [0.4, 0.6]], [0, 1], {"npv", "mcc"}),
    "one image": ([[0.2, 0.8]], [1], {"roc_auc", "specificity", "npv", "balanced_accuracy", "mcc"}),
    "a third class that is not there": (
        [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]],
        [0, 1],
        {"roc_auc", "average_precision", "sensitivity", "ppv", "f1", "balanced_accuracy"},
    ),
}


@pytest.mark.parametrize("case", UNDEFINED)
def test_what_the_data_do_not_define_is_nan_and_nothing_else_is(case: str) -> None:
    p, truth, undefined = UNDEFINED[case]
    figures = measure(np.array(p), truth, [1])
    assert {name for name, value in figures.items() if math.isnan(value)} == undefined


def test_the_interval_of_the_roc_auc() -> None:
    # Hanley and McNeil's own worked example (1982): area 0.893 of 51 abnormal and 58 normal, standard error 0.032.
    low, high = roc_auc_interval(0.893, 51, 58)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.032, rel=0.03)
    assert roc_auc_interval(1.0, 2, 2)[0] < 0.6
    assert roc_auc_interval(math.nan, 0, 3) == (0.0, 1.0)


def test_the_report_names_the_classes() -> None:
    text = classification_report([0, 1, 1], [0, 1, 0], ["benign", "malignant"])
    assert "benign" in text
    assert "macro avg" in text
