"""The weights that take the common shift out of 8-bit probabilities, against a minimiser that knows nothing of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from pipelines.models.compile import matching_weights


@given(seed=st.integers(0, 1000), classes=st.integers(2, 5))
def test_means_are_matched_and_the_cross_entropy_is_least(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (60, classes))
    wanted = softmax(logits, axis=1)
    shifted = logits + rng.normal(0, 1, classes) + rng.normal(0, 0.3, logits.shape)
    found = softmax(shifted, axis=1)
    weights = matching_weights(found, wanted)
    again = found * weights / (found * weights).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(again.mean(axis=0), wanted.mean(axis=0), atol=1e-5)

    def cross_entropy(offset: np.ndarray) -> float:
        return float(-(wanted * log_softmax(shifted + offset, axis=1)).sum(axis=1).mean())

    best = minimize(cross_entropy, np.zeros(classes))
    assert cross_entropy(np.log(weights)) == pytest.approx(best.fun, abs=1e-6)


def test_what_needs_no_correction_gets_none() -> None:
    found = softmax(np.random.default_rng(1).normal(0, 1, (20, 3)), axis=1).astype(np.float32)
    np.testing.assert_allclose(matching_weights(found, found), 1, atol=1e-5)
    # A class that is never answered has no shift to speak of, and the others keep theirs.
    certain = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert np.isfinite(matching_weights(certain, certain)).all()
