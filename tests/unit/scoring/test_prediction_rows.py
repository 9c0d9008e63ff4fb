"""The rows of a night: what they say of each image."""

from __future__ import annotations

import datetime
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import ImageFailure
from pipelines.models.bundle import Bundle
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import ScorerIO
from pipelines.predictions.schema import prediction_schema
from pipelines.scoring.rows import Outcome, RowContext, prediction_rows

CLASSES = ("benign", "malignant")
BANDS = {
    "image": {"threshold": 0.28, "refer_low": 0.2, "refer_high": 0.5},
    "image_int8": {"threshold": 0.28},
}


def rows(thresholds: dict[str, dict[str, float]], precision: str) -> pa.Table:
    """Rows of four answers and a failure."""
    spec = BundleSpec(CLASSES, CLASSES[1:], 8, "p", {"float32": ScorerEntry("s", ScorerIO(8, 2))})
    bundle = Bundle("/m/cells/v1", "cells", "v1", "0" * 64, replace(spec, thresholds=thresholds), {})
    day = datetime.date(2026, 1, 1)
    context = RowContext("r", day, bundle, precision, None, False, prediction_schema(CLASSES, None))
    answers = [np.array([1 - p, p], np.float32) for p in (0.1, 0.2, 0.28, 0.5)]
    outcomes = [Outcome("1", answer=answer) for answer in answers]
    outcomes.append(Outcome("1", failure=ImageFailure("truncated", "It ends early.")))
    images = pa.table({"image_uri": list("abcde"), "image_version": ["1"] * 5})
    return prediction_rows(images, outcomes, context)


@pytest.mark.parametrize(
    ("thresholds", "precision", "decisions"),
    [
        (BANDS, "float32", ["negative", "refer", "refer", "positive", None]),
        (BANDS, "int8", ["negative", "negative", "positive", "positive", None]),
        ({"image": BANDS["image"]}, "int8", [None] * 5),
        ({}, "float32", [None] * 5),
    ],
)
def test_the_decision_is_taken_by_the_limits_of_the_precision(
    thresholds: dict[str, dict[str, float]], precision: str, decisions: list[str | None]
) -> None:
    made = rows(thresholds, precision)
    assert made["decision"].to_pylist() == decisions
    # The class is the likelier one whatever is decided: benign at 0.72, and referred or positive.
    assert made["predicted_class"].to_pylist()[:3] == ["benign"] * 3
    assert made["score"].to_pylist()[2] == pytest.approx(0.72)
