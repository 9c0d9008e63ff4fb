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
    roc_auc_interval,
)


def sample(classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, 200)
    raised = np.exp(rng.normal(0, 1, (200, classes)) + 1.2 * np.eye(classes)[truth])
    return raised / raised.sum(axis=1, keepdims=True), truth


def test_two_classes_agree_with_scikit_learn() -> None:
    p, truth = sample(2, 1)
    positive = truth == 0
    called = p.argmax(axis=1) == 0
    figures = measure(p, truth, [0])
    expected = {
        "roc_auc": metrics.roc_auc_score(positive, p[:, 0]),
        "average_precision": metrics.average_precision_score(positive, p[:, 0]),
        "sensitivity": metrics.recall_score(positive, called),
        "specificity": metrics.recall_score(~positive, ~called),
        "ppv": metrics.precision_score(positive, called),
        "npv": metrics.precision_score(~positive, ~called),
        "accuracy": metrics.accuracy_score(positive, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(positive, called),
        "f1": metrics.f1_score(positive, called),
        "mcc": metrics.matthews_corrcoef(positive, called),
        "brier": metrics.brier_score_loss(positive, p[:, 0]),
        "log_loss": metrics.log_loss(truth, p),
    }
    assert tuple(figures) == METRIC_NAMES
    assert figures == pytest.approx(expected)


def test_three_classes_agree_with_scikit_learn() -> None:
    p, truth = sample(3, 2)
    called = p.argmax(axis=1)
    figures = measure(p, truth, [2])
    assert figures["roc_auc"] == pytest.approx(metrics.roc_auc_score(truth, p, multi_class="ovr", average="macro"))
    assert figures["sensitivity"] == pytest.approx(metrics.recall_score(truth, called, average="macro"))
    assert figures["ppv"] == pytest.approx(metrics.precision_score(truth, called, average="macro"))
    assert figures["f1"] == pytest.approx(metrics.f1_score(truth, called, average="macro"))
    assert figures["mcc"] == pytest.approx(metrics.matthews_corrcoef(truth, called))
    assert figures["log_loss"] == pytest.approx(metrics.log_loss(truth, p))
    assert (confusion_matrix(called, truth, 3) == metrics.confusion_matrix(truth, called)).all()


@settings(max_examples=25)
@given(st.integers(2, 5), st.integers(0, 2**31 - 1))
def test_every_figure_depends_on_the_images_and_not_on_their_order_or_number(classes: int, seed: int) -> None:
    """So that any of them may judge an epoch: twice the same images, in another order, are judged alike."""
    p, truth = sample(classes, seed)
    rows = np.random.default_rng(seed + 1).permutation(np.tile(np.arange(len(truth)), 2))
    assert measure(p[rows], truth[rows], [1]) == pytest.approx(measure(p, truth, [1]), abs=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_perfect_answer_is_the_best_of_every_figure(classes: int) -> None:
    p, truth = sample(classes, 3)
    perfect = measure(np.eye(classes)[truth], truth, [0])
    for name, value in measure(p, truth, [0]).items():
        assert perfect[name] <= value if name in LOWER_IS_BETTER else perfect[name] >= value
        assert perfect[name] == pytest.approx(0.0 if name in LOWER_IS_BETTER else 1.0, abs=1e-9)


def test_what_the_data_do_not_define_is_nan() -> None:
    figures = measure(np.array([[0.2, 0.8], [0.4, 0.6]]), [1, 1], [1])
    assert math.isnan(figures["roc_auc"])
    assert math.isnan(figures["specificity"])
    assert figures["accuracy"] == 1.0


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
