from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from sklearn.metrics import confusion_matrix, roc_auc_score

from pipelines.errors import UsageError
from pipelines.evaluation.cases import Cases
from pipelines.evaluation.comparison import compare_cases, mcnemar, paired_differences
from pipelines.evaluation.intervals import figure_intervals
from pipelines.evaluation.metrics import METRIC_NAMES, measure
from pipelines.evaluation.resampling import draw_counts, form_groups
from pipelines.evaluation.study import Settings
from pipelines.evaluation.tallies import Sample

QUICK = Settings(draws=300)
OTHER = {"name": "moles", "version": "v2", "model_id": "0" * 64}


def study(seed: int, separation: float, images: int = 300, classes: int = 2, per_patient: int = 1) -> Cases:
    """One model's answers; the same images for all seeds, and part of what makes them hard is shared."""
    shared = np.random.default_rng(1000)
    labels = np.arange(images) % classes
    hardness = shared.normal(0, 0.7, (images, classes))
    random = np.random.default_rng(seed)
    raised = np.exp(separation * np.eye(classes)[labels] + hardness + random.normal(0, 0.7, (images, classes)))
    names = tuple(str(row) for row in range(images))
    return Cases(
        classes=("benign", "malignant", "other")[:classes],
        positive=(1,),
        uris=names,
        contents=names,
        labels=labels,
        probabilities=(raised / raised.sum(axis=1, keepdims=True)).astype(np.float32),
        groups=tuple(str(row // per_patient) for row in range(images)),
        patients=None,
        mean_intensity=np.full(images, np.nan),
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_both_figures_and_all_counts_are_those_of_each_alone(classes: int) -> None:
    this, other = study(1, 1.5, classes=classes), study(2, 1.0, classes=classes)
    found = compare_cases(this, other, QUICK, OTHER)
    assert list(found["figures"]) == list(METRIC_NAMES) and json.loads(json.dumps(found)) == found
    for name, value in measure(this.probabilities, this.labels, [1]).items():
        own = found["figures"][name]
        assert own["this"] == pytest.approx(value)
        assert own["other"] == pytest.approx(measure(other.probabilities, other.labels, [1])[name])
        assert own["difference"] == pytest.approx(own["this"] - own["other"])
        assert own["low"] < own["difference"] < own["high"]
    np.testing.assert_array_equal(
        found["predicted"], confusion_matrix(this.predicted, other.predicted, labels=range(classes))
    )
    assert found["disagree"] == int((this.predicted != other.predicted).sum())
    right, theirs = this.predicted == this.labels, other.predicted == this.labels
    counts = int((right & ~theirs).sum()), int((theirs & ~right).sum())
    assert (found["mcnemar"]["only_this"], found["mcnemar"]["only_other"]) == counts
    assert found["mcnemar"]["p"] == pytest.approx(binomtest(counts[0], sum(counts)).pvalue)
    areas = [roc_auc_score(this.truth, one.p_positive) for one in (this, other)]
    assert found["delong"]["difference"] == pytest.approx(areas[0] - areas[1])
    assert (found["n"], found["groups"], found["against"]) == (300, 300, OTHER)


def test_the_interval_is_that_of_resamples_which_both_share() -> None:
    """Against scikit-learn on repeated rows, draw by draw, with patients of three images."""
    this, other = study(1, 1.2, 120, per_patient=3), study(2, 0.9, 120, per_patient=3)
    groups = form_groups(this.groups, this.labels)
    samples = [
        Sample(one.classes, one.positive, one.probabilities.astype(float), one.labels, one.p_positive)
        for one in (this, other)
    ]
    found = paired_differences(samples[0], samples[1], groups, ["roc_auc", "accuracy"], 80, 3)
    drawn = []
    for counts in np.concatenate([block() for block in draw_counts(groups, 80, 3)]):
        rows = np.repeat(np.arange(120), counts[groups.member])
        areas = [roc_auc_score(this.truth[rows], one.probabilities[rows, 1]) for one in (this, other)]
        right = [(one.predicted == one.labels)[rows].mean() for one in (this, other)]
        drawn.append((areas[0] - areas[1], right[0] - right[1]))
    for name, values in zip(("roc_auc", "accuracy"), np.transpose(drawn), strict=True):
        assert (found[name].low, found[name].high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_pairing_tells_apart_what_two_separate_studies_do_not() -> None:
    this, other = study(1, 1.4, 2000), study(2, 1.25, 2000)
    paired = compare_cases(this, other, QUICK, OTHER)["figures"]["roc_auc"]
    alone = [
        figure_intervals(one.probabilities, one.labels, one.groups, [1], draws=300)["roc_auc"] for one in (this, other)
    ]
    assert paired["high"] - paired["low"] < 0.8 * np.hypot(*(high - low for low, high in alone))


def test_the_interval_of_the_difference_holds_the_truth_about_as_often_as_it_says() -> None:
    many = [study(1, 1.2, 200_000), study(2, 0.8, 200_000)]
    population = [measure(one.probabilities, one.labels, [1]) for one in many]
    held = dict.fromkeys(("roc_auc", "accuracy", "log_loss"), 0)
    for trial in range(80):
        rows = np.random.default_rng(trial).choice(200_000, 150, replace=False)
        this, other = (one.take(rows) for one in many)
        figures = compare_cases(this, other, Settings(draws=200, seed=trial), OTHER)["figures"]
        for name in held:
            truth = population[0][name] - population[1][name]
            held[name] += figures[name]["low"] <= truth <= figures[name]["high"]
    assert all(70 <= count <= 80 for count in held.values()), held


@settings(max_examples=25, deadline=None)
@given(seeds=st.tuples(st.integers(0, 999), st.integers(0, 999)), classes=st.sampled_from([2, 3]))
def test_turning_the_two_round_turns_the_signs(seeds: tuple[int, int], classes: int) -> None:
    this, other = (study(seed, 1.0, 40, classes) for seed in seeds)
    there, back = (compare_cases(*pair, Settings(draws=40), OTHER) for pair in ((this, other), (other, this)))
    for name, own in there["figures"].items():
        mirrored = back["figures"][name]
        assert (own["low"], own["high"]) == pytest.approx((-mirrored["high"], -mirrored["low"]), nan_ok=True), name
    assert there["mcnemar"]["p"] == pytest.approx(back["mcnemar"]["p"])
    np.testing.assert_array_equal(np.transpose(there["predicted"]), back["predicted"])


def test_the_same_answers_differ_by_nothing() -> None:
    found = compare_cases(study(1, 1.0), study(1, 1.0), QUICK, OTHER)
    assert all((own["difference"], own["low"], own["high"]) == (0, 0, 0) for own in found["figures"].values())
    assert found["delong"] == {"reason": "both models rank the images alike"}
    assert (found["disagree"], found["worst"], found["mcnemar"]["p"]) == (0, [], 1.0)
    assert found["sentence"].startswith("This model cannot be told apart from moles@v2 on 300 images: ROC AUC 0.")


@pytest.mark.parametrize(("own", "its", "said"), [(3.0, 0.5, "is better than"), (0.5, 3.0, "is worse than")])
def test_the_sentence_is_that_of_the_interval(own: float, its: float, said: str) -> None:
    found = compare_cases(study(1, own), study(2, its), QUICK, OTHER)
    assert found["sentence"].startswith(f"This model {said} moles@v2 on 300 images: ROC AUC ")
    assert "its accuracy is" in found["sentence"] and "its log loss is" in found["sentence"]
    assert f"another class for {found['disagree']} images" in found["sentence"]
    nameless = compare_cases(study(1, own), study(2, its), QUICK, {"name": "m", "version": None, "model_id": "ab" * 32})
    assert f"{said} m@abababababab on" in nameless["sentence"]


def test_one_kind_only_is_compared_by_accuracy() -> None:
    rows = np.arange(0, 300, 2)
    found = compare_cases(study(1, 3.0).take(rows), study(2, 0.2).take(rows), QUICK, OTHER)
    assert found["figures"]["roc_auc"]["this"] is None and found["figures"]["roc_auc"]["low"] is None
    assert found["sentence"].startswith("This model is better than moles@v2 on 150 images: accuracy ")
    assert found["delong"] == {"reason": "it takes two images of each kind; 0 of 150 are positive"}


def test_the_worst_disagreements_come_first() -> None:
    this, other = study(1, 1.0), study(2, 1.0)
    worst = compare_cases(this, other, QUICK, OTHER)["worst"]
    gaps = [abs(one["this_probability"] - one["other_probability"]) for one in worst]
    assert len(worst) == 12 and gaps == sorted(gaps, reverse=True)
    for one in worst:
        row = one["row"]
        assert one["this"] == this.classes[this.predicted[row]] != one["other"] == other.classes[other.predicted[row]]
        assert one["this_probability"] == pytest.approx(this.probabilities[row, this.labels[row]])
    others = [
        row for row in np.flatnonzero(this.predicted != other.predicted) if row not in {one["row"] for one in worst}
    ]
    truth = [
        abs(this.probabilities[row, this.labels[row]] - other.probabilities[row, this.labels[row]]) for row in others
    ]
    assert max(truth) <= gaps[-1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": ("benign", "cancer")}, "knows the classes benign, malignant, and the other benign, cancer"),
        ({"positive": (0,)}, "Positive is malignant for the one model, and benign for the other"),
        ({"contents": tuple("x" * 300)}, "answered different images: 300 and 300"),
        ({"labels": np.zeros(300, np.int64)}, "150 images have another label"),
    ],
)
def test_what_cannot_be_paired_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        compare_cases(study(1, 1.0), replace(study(2, 1.0), **changes), QUICK, OTHER)


def test_fewer_rows_and_none_are_refused() -> None:
    with pytest.raises(UsageError, match="300 and 299"):
        compare_cases(study(1, 1.0), study(2, 1.0).take(range(299)), QUICK, OTHER)
    with pytest.raises(UsageError, match="no image that both"):
        compare_cases(study(1, 1.0).take([]), study(2, 1.0).take([]), QUICK, OTHER)


@settings(max_examples=80)
@given(one=st.integers(0, 60), other=st.integers(0, 60))
def test_mcnemar_is_exact(one: int, other: int) -> None:
    """Twice the smaller tail of a fair coin, by its own sum."""
    fair = sum(binom.pmf(count, one + other, 0.5) for count in range(min(one, other) + 1))
    assert mcnemar(one, other) == pytest.approx(min(1.0, 2 * fair)) == mcnemar(other, one)
