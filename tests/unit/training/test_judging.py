from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_auc_score

from pipelines.evaluation.thresholds import fit_point, sum_positive
from pipelines.models.record import plain
from pipelines.training.judging import Judged, judge


def judged(images: int, classes: int, separation: float, positive: tuple[str, ...] = ("b",), **more: str) -> Judged:
    random = np.random.default_rng(images)
    truth = np.arange(images) % classes
    logits = random.normal(0, 1, (images, classes)) + separation * np.eye(classes)[truth]
    raised = np.exp(logits)
    p = (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
    names = ("a", "b", "c")[:classes]
    numbers = [names.index(name) for name in positive]
    point = fit_point(sum_positive(p, numbers), np.isin(truth, numbers), 0.95, float(more.pop("specificity", 0.95)))
    groups = [str(number) for number in range(images)]
    found = judge(names, positive, p, truth, groups, point, 0, more.get("undefined_metric"))
    assert found.matrix == tuple(map(tuple, confusion_matrix(truth, p.argmax(axis=1)).tolist()))
    wanted = roc_auc_score(np.isin(truth, numbers), p[:, numbers].astype(np.float64).sum(axis=1))
    assert found.roc_auc == pytest.approx(wanted)
    assert found.roc_auc_interval[0] < found.roc_auc <= found.roc_auc_interval[1] + 1e-12
    return found


def test_two_classes_have_one_area_and_one_interval() -> None:
    found = judged(200, 2, 2.0)
    assert found.figures["roc_auc"] == pytest.approx(found.roc_auc)
    assert found.intervals["roc_auc"] == pytest.approx(found.roc_auc_interval)
    assert not [text for text in found.warnings if "refer band" not in text] and "support" in found.report


def test_several_classes_have_a_mean_and_a_positive_area() -> None:
    found = judged(300, 3, 1.0, positive=("b", "c"))
    assert found.figures["roc_auc"] != found.roc_auc
    assert set(found.intervals) == set(found.figures)


def test_chance_few_images_and_an_undefined_metric_are_told() -> None:
    found = judged(16, 2, 0.0, undefined_metric="mcc")
    assert "mcc on validation was no number" in found.warnings[0]
    assert any("cannot be told from a coin" in text for text in found.warnings)
    assert any("Only 16 images validate (8 of them positive)" in text for text in found.warnings)


def test_a_band_that_refers_most_cases_or_stands_on_few_is_told() -> None:
    weak = judged(400, 2, 0.5)
    most = [text for text in weak.warnings if text.startswith("The refer band holds")]
    assert len(most) == 1 and "of 400 validation images: to reach a sensitivity of 0.95" in most[0]
    assert "so its figures are rough" in judged(40, 2, 1.5).warnings[-1]
    small = judged(40, 2, 1.5)
    assert any("The refer band is borne by few cases: outside of it lie" in text for text in small.warnings)
    assert not any("refer band" in text for text in judged(400, 2, 4.0, specificity="0.5").warnings)


def test_certainty_that_so_few_images_cannot_bear_out_is_told() -> None:
    assert judged(200, 2, 12.0).warnings == (
        "Probabilities are surer than 200 validation images can bear out (log loss 1.7e-05): however near they are to "
        "0 or 1, count on about one error in 202 images.",
    )


def test_what_bundle_json_cannot_hold_becomes_null() -> None:
    value = plain({"a": (1.0, math.nan), "b": {"c": math.inf, "d": [True, None, "x", 3]}})
    assert value == {"a": [1.0, None], "b": {"c": None, "d": [True, None, "x", 3]}}
    assert json.dumps(value, allow_nan=False)
