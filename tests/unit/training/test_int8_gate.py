from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pipelines.evaluation.thresholds import fit_point, sum_positive
from pipelines.models.decision import decide
from pipelines.training.int8_gate import Int8Verdict, judge_int8


def two_columns(p: np.ndarray) -> np.ndarray:
    return np.stack([1 - p, p], axis=1).astype(np.float32)


def drawn(seed: int, images: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, logits and noise."""
    random = np.random.default_rng(seed)
    truth = np.arange(images) % classes
    logits = random.normal(0, 1.2, (images, classes)) + 2 * np.eye(classes)[truth]
    return truth, logits, random.normal(0, 1, (images, classes))


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)


def judged(float32: np.ndarray, int8: np.ndarray, truth: np.ndarray, target: float = 0.95) -> Int8Verdict:
    point = fit_point(sum_positive(float32, [1]), truth == 1, target, 0.9)
    return judge_int8(float32, int8, truth, [1], point)


@settings(max_examples=80)
@given(
    seed=st.integers(0, 10_000),
    images=st.integers(30, 200),
    classes=st.sampled_from([2, 3]),
    noise=st.sampled_from([0.0, 0.01, 0.05, 0.3]),
    target=st.sampled_from([0.8, 0.95, 1.0]),
)
def test_it_is_offered_exactly_where_the_two_limits_hold(
    seed: int, images: int, classes: int, noise: float, target: float
) -> None:
    truth, logits, wobble = drawn(seed, images, classes)
    float32, int8 = softmax(logits), softmax(logits + noise * wobble)
    verdict = judged(float32, int8, truth, target)
    fall = roc_auc_score(truth == 1, float32[:, 1]) - roc_auc_score(truth == 1, int8[:, 1])
    if classes > 2:
        kinds = [[roc_auc_score(truth == k, p[:, k]) for k in range(classes)] for p in (float32, int8)]
        fall = max(fall, float(np.mean(kinds[0]) - np.mean(kinds[1])))
    changed = int((float32.argmax(axis=1) != int8.argmax(axis=1)).sum())
    assert verdict.offered == (fall <= 0.005 + 1e-12 and changed / images <= 0.02), verdict.sentence()
    assert (verdict.images, verdict.classes_changed) == (images, changed)
    assert verdict.point is not None
    called = sum_positive(int8, [1]) >= verdict.point.threshold
    assert called[truth == 1].mean() == verdict.point.sensitivity >= target
    assert verdict.point == fit_point(sum_positive(int8, [1]), truth == 1, target, 0.9)
    own = fit_point(sum_positive(float32, [1]), truth == 1, target, 0.9)
    said = [
        decide(sum_positive(answers, [1]), point.record()) for answers, point in ((float32, own), (int8, verdict.point))
    ]
    assert verdict.decisions_changed == int((said[0] != said[1]).sum())
    assert json.loads(json.dumps(verdict.record()))["offered"] is verdict.offered


def test_the_same_answers_earn_their_place_and_change_nothing() -> None:
    truth, logits, _ = drawn(1, 60, 2)
    verdict = judged(softmax(logits), softmax(logits), truth)
    assert verdict.offered and verdict.decisions_changed == verdict.classes_changed == 0
    assert "earned its place on 60 validation images" in verdict.sentence()


def test_the_slightest_change_at_float32s_threshold_would_miss_the_target() -> None:
    """Why int8 has a threshold of its own."""
    truth = np.array([0] * 20 + [1] * 20)
    p = np.linspace(0.05, 0.95, 40)
    shifted = two_columns(p - 0.002)
    verdict = judged(two_columns(p), shifted, truth)
    assert verdict.offered and verdict.point is not None
    assert verdict.sensitivity_at_float32 == pytest.approx(0.9)
    assert verdict.point.sensitivity == 0.95
    assert verdict.decisions_changed == 0


def test_the_reasons_hold_the_numbers() -> None:
    truth = np.arange(100) % 2
    p = np.where(truth == 1, 0.9, 0.1)
    turned = p.copy()
    turned[:3] = 1 - turned[:3]
    verdict = judged(two_columns(p), two_columns(turned), truth, 0.9)
    assert not verdict.offered
    after = roc_auc_score(truth, two_columns(turned)[:, 1])
    assert verdict.sentence() == (
        "int8 did not earn its place on 100 validation images: the ROC AUC of the positive classes falls from 1.0000 "
        f"to {after:.4f}, by more than 0.005; 3 of 100 predicted classes differ, more than 2 %."
    )


def test_answers_that_collapse_are_refused_for_the_threshold_alone() -> None:
    truth = np.array([0] * 990 + [1] * 10)
    p = np.full(1000, 1e-6)
    p[990:] = [0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 2e-6]
    crushed = np.where(p < 1 / 256, 0.0, p)
    crushed[:5] = 0.001
    float32 = two_columns(p)
    verdict = judged(float32, two_columns(crushed), truth)
    assert verdict.point is not None and verdict.point.sensitivity == 0.9
    assert any("no threshold above 0 reaches a sensitivity of 0.950" in reason for reason in verdict.reasons)


def test_no_finite_answer_or_one_kind_of_image_is_no_proof() -> None:
    truth, logits, _ = drawn(2, 40, 2)
    broken = softmax(logits)
    broken[3] = np.nan
    verdict = judged(softmax(logits), broken, truth)
    assert not verdict.offered and verdict.point is None
    assert verdict.sentence() == "int8 is not offered: it has no finite answer for 1 of 40 images."
    alone = judged(softmax(logits), softmax(logits), np.ones(40, int))
    assert not alone.offered and "not defined" in alone.sentence()
    assert alone.roc_auc is not None and math.isnan(alone.roc_auc[0])
