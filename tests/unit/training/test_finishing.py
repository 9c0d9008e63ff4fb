from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ModelRefused
from pipelines.training.finishing import MOST_CHECKED, place_threshold


def two_columns(p: np.ndarray) -> np.ndarray:
    return np.stack([1 - p, p], axis=1)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    images=st.integers(20, 300),
    noise=st.sampled_from([0.0, 1e-6, 1e-4]),
    sharpness=st.sampled_from([1.0, 3.0, 8.0]),
    target=st.sampled_from([0.8, 0.95, 1.0]),
)
def test_score_decides_as_recorded(seed: int, images: int, noise: float, sharpness: float, target: float) -> None:
    """The head and the compiled scorer differ by noise in their logits, which no one image tells the size of."""
    rng = np.random.default_rng(seed)
    truth = rng.random(images) < 0.4
    truth[0] = True
    logits = rng.normal(np.where(truth, 1.0, -1.0), 1.0) * sharpness
    head = two_columns(1 / (1 + np.exp(-logits)))
    theirs = 1 / (1 + np.exp(-logits - noise * rng.choice([-1.0, 1.0], images)))
    scorer = two_columns(theirs).astype(np.float32)
    known, point = place_threshold(head, truth, [1], target, lambda rows: scorer[rows])
    called = scorer[:, 1].astype(np.float64) >= point.threshold
    assert point.threshold > 0
    assert called[truth].mean() == point.sensitivity >= target
    if not truth.all():
        assert (~called[~truth]).mean() == pytest.approx(point.specificity)
    np.testing.assert_array_equal(known[:, 1] >= point.threshold, called)


def test_the_image_that_defines_the_threshold_is_asked_of_the_scorer() -> None:
    truth = np.arange(100) >= 50
    head = two_columns(np.linspace(0.01, 0.99, 100))
    scorer = head.astype(np.float32)
    scorer[52] = head[52] + [5e-4, -5e-4]  # the 48th highest of 50 positive ones
    _, point = place_threshold(head, truth, [1], 0.95, lambda rows: scorer[rows])
    assert float(scorer[52, 1]) >= point.threshold
    assert point.sensitivity == 0.96


def test_many_equal_answers_are_not_all_asked_for() -> None:
    asked: list[int] = []
    head = two_columns(np.full(5000, 0.75))

    def answer(rows: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return two_columns(np.full(len(rows), 0.75 * (1 - 1e-7))).astype(np.float32)

    _, point = place_threshold(head, np.arange(5000) % 2 == 0, [1], 0.95, answer)
    assert len(set(asked)) == len(asked) <= MOST_CHECKED + 16
    assert 0.7499 < point.threshold < 0.75


@pytest.mark.parametrize("wrong", [0.002, np.nan])
def test_another_answer_than_the_heads_is_refused(wrong: float) -> None:
    head = two_columns(np.linspace(0.1, 0.9, 40))
    with pytest.raises(ModelRefused):
        place_threshold(head, np.arange(40) > 20, [1], 0.95, lambda rows: (head[rows] + wrong).astype(np.float32))
    with pytest.raises(ModelRefused):
        place_threshold(head, np.arange(40) > 20, [1], 0.95, lambda rows: head[rows][1:].astype(np.float32))
