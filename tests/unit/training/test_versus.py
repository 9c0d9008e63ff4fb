from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from pipelines.models.bundle import Bundle, write_bundle
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import ScorerIO
from pipelines.training.versus import LEAST_IMAGES, Validated, compare

CLASSES = ("benign", "Grade II")
TRUTH = np.arange(200) % 2


def answers(seed: int, separation: float) -> np.ndarray:
    random = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-random.normal(separation * (TRUTH - 0.5), 1.0)))
    return np.stack([1 - p, p], axis=1).astype(np.float32)


def content(number: int) -> str:
    return f"{number:064x}"


def champion(
    folder: Path, probabilities: np.ndarray | None, classes: tuple[str, ...] = CLASSES, rows: range = range(200)
) -> Bundle:
    """A champion that validated some of the images, its classes in the order given."""
    files = {"scorer.tflite": b"-"}
    if probabilities is not None:
        columns: dict[str, Any] = {
            "content_sha256": [content(row) for row in rows],
            "label": [CLASSES[TRUTH[row]] for row in rows],
        }
        for name, column in (("benign", 0), ("Grade II", 1)):
            columns["p_benign" if name == "benign" else "p_grade_ii"] = probabilities[list(rows), column]
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink)
        files["validation.parquet"] = sink.getvalue()
    scorers = {"float32": ScorerEntry("scorer.tflite", ScorerIO(8, len(classes)))}
    return write_bundle(str(folder / "MODELS"), "cells", BundleSpec(classes, classes[1:2], 8, "p", scorers), files)


def new(probabilities: np.ndarray, **changes: Any) -> Validated:
    values: dict[str, Any] = {
        "classes": CLASSES,
        "positive": (1,),
        "contents": [content(row) for row in range(200)],
        "groups": [str(row // 2) for row in range(200)],
        "labels": TRUTH,
        "probabilities": probabilities,
    }
    return Validated(**values | changes)


@pytest.mark.parametrize(
    ("separation", "verdict", "said"),
    [(4.0, "better", "better than"), (0.3, "worse", "worse than"), (1.6, "undecided", "cannot be told apart from")],
)
def test_the_verdict_is_that_of_the_interval(tmp_path: Path, separation: float, verdict: str, said: str) -> None:
    old, ours = answers(1, 1.5), answers(2, separation)
    found = compare(new(ours), champion(tmp_path, old))
    assert found.verdict == verdict and found.sentence().startswith(f"{said} the champion v1 on 200 common")
    assert found.figures is not None and (found.images, found.groups) == (200, 100)
    area = found.figures["roc_auc"]
    assert area.this == pytest.approx(roc_auc_score(TRUTH, ours[:, 1]))
    assert area.other == pytest.approx(roc_auc_score(TRUTH, old[:, 1]))
    assert area.low < area.difference < area.high
    right = [p.argmax(axis=1) == TRUTH for p in (ours, old)]
    counts = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert (found.only_new_right, found.only_champion_right) == counts
    assert found.mcnemar_p == pytest.approx(binomtest(counts[0], sum(counts)).pvalue)
    assert json.loads(json.dumps(found.record()))["figures"]["log_loss"]["new"] == pytest.approx(
        float(-np.log(ours[np.arange(200), TRUTH]).mean()), rel=1e-5
    )


def test_the_same_answers_differ_by_nothing(tmp_path: Path) -> None:
    found = compare(new(answers(1, 1.5)), champion(tmp_path, answers(1, 1.5)))
    assert found.figures is not None and found.verdict == "undecided" and found.mcnemar_p == 1.0
    assert all((one.difference, one.low, one.high) == (0, 0, 0) for one in found.figures.values())


def test_pairing_goes_by_content_and_by_class_name(tmp_path: Path) -> None:
    """The champion's classes stand in another order, it knows half of the images, one of ours comes twice."""
    old = answers(3, 1.5)
    crowned = champion(tmp_path, old, classes=("Grade II", "benign"), rows=range(50, 150))
    order = np.random.default_rng(0).permutation(200)
    order = np.append(order, order[:20])
    shuffled = new(
        old[order],
        contents=[content(row) for row in order],
        groups=[str(row) for row in order],
        labels=TRUTH[order],
    )
    found = compare(shuffled, crowned)
    assert found.figures is not None and found.images == found.groups == 100
    assert found.figures["roc_auc"].this == found.figures["roc_auc"].other
    assert found.figures["roc_auc"].this == pytest.approx(roc_auc_score(TRUTH[50:150], old[50:150, 1]))
    assert found.relabelled == 0
    turned = compare(new(old, labels=1 - TRUTH), crowned)
    assert turned.relabelled == 100


def test_a_comparison_can_be_repeated(tmp_path: Path) -> None:
    crowned = champion(tmp_path, answers(1, 1.5))
    ours = new(answers(2, 1.6))
    assert compare(ours, crowned, seed=4).record() == compare(ours, crowned, seed=4).record()
    assert compare(ours, crowned, seed=4).record() != compare(ours, crowned, seed=5).record()


def test_it_says_why_nothing_is_compared(tmp_path: Path) -> None:
    ours = new(answers(2, 1.6))
    first = compare(ours, None)
    assert first.record() is None and first.verdict is None
    other = compare(ours, champion(tmp_path / "a", answers(1, 1), classes=("benign", "malignant")))
    assert other.sentence() == "not compared with the champion v1: its classes are benign, malignant"
    imported = compare(ours, champion(tmp_path / "b", None))
    assert imported.sentence().endswith("it has no table of its validation")
    few = compare(ours, champion(tmp_path / "c", answers(1, 1), rows=range(LEAST_IMAGES - 1)))
    assert few.sentence().endswith("19 images validate both, and 20 must")
    benign = champion(tmp_path / "d", answers(1, 1), rows=range(0, 200, 2))
    assert compare(ours, benign).sentence().endswith("none of the common validation images is Grade II")
    damaged = champion(tmp_path / "e", answers(1, 1))
    (Path(damaged.uri) / "validation.parquet").write_bytes(b"x")
    answer = compare(ours, damaged)
    assert answer.sentence().endswith("cannot be read")
    assert answer.record() == {"champion": "v1", "verdict": None, "reason": answer.sentence(), "images": 0}
