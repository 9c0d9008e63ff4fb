"""A temperature that is applied outside of a graph, by the runtime and by what fits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pipelines.evaluation.calibration import probabilities
from pipelines.models.golden import golden_images
from pipelines.models.runtime import Scorer, ScorerIO
from pipelines.training.recalibration_fit import graph_logits

SIDE = 16


@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
@pytest.mark.parametrize(("earlier", "later"), [(1.0, 0.4), (1.0, 3.0), (2.5, 0.7), (0.5, 20.0), (1.0, 0.05)])
def test_the_runtime_answers_what_is_computed_from_its_earlier_answers(
    make_tflite: Callable[..., bytes], outputs: str, earlier: float, later: float
) -> None:
    # The mean of each channel, 0-1 or, as logits, about -4 to 4.
    scale = 1 / 255 if outputs == "probabilities" else 8 / 255
    io = ScorerIO(SIDE, 3, "float32", (scale,) * 3, (0.0 if outputs == "probabilities" else -4.0,) * 3, outputs=outputs)
    before = Scorer(make_tflite(side=SIDE), replace(io, temperature=earlier))
    after = Scorer(make_tflite(side=SIDE), replace(io, temperature=later))
    old = np.stack([before(picture) for picture in golden_images(SIDE)])
    new = np.stack([after(picture) for picture in golden_images(SIDE)])
    np.testing.assert_allclose(probabilities(graph_logits(old, before.io), later), new, atol=2e-6)


def test_certainties_are_held_as_the_runtime_holds_them() -> None:
    io = ScorerIO(8, 2)
    sure = np.array([[0.0, 1.0], [1e-30, 1.0]], np.float32)
    np.testing.assert_allclose(graph_logits(sure, io)[:, 0], np.log(1e-12))
    assert np.isfinite(graph_logits(sure, replace(io, outputs="logits"))).all()
