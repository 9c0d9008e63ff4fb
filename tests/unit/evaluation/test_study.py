from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from pipelines.evaluation.cases import Cases
from pipelines.evaluation.class_measures import CLASS_FIGURES, OVERALL_FIGURES
from pipelines.evaluation.intervals import wilson
from pipelines.evaluation.study import Settings, measure_cases

FEW = Settings(draws=60)
NAMES = ("benign", "malignant", "normal", "unclear")
FITTED = {"threshold": 0.3, "refer_low": 0.2, "refer_high": 0.6, "target_sensitivity": 0.95, "target_specificity": 0.9}


def make_cases(
    probabilities: Any,
    labels: Any,
    positive: tuple[int, ...] = (1,),
    groups: Any = None,
    patients: tuple[str | None, ...] | None = None,
) -> Cases:
    p = np.asarray(probabilities, np.float32)
    names = tuple(str(i) for i in range(len(p)))
    return Cases(
        classes=NAMES[: p.shape[1]],
        positive=positive,
        uris=names,
        contents=names,
        labels=np.asarray(labels, np.int64),
        probabilities=p,
        groups=names if groups is None else tuple(groups),
        patients=patients,
        mean_intensity=np.full(len(p), np.nan),
    )


def drawn(seed: int, images: int, classes: int, **more: Any) -> Cases:
    random = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(classes), random.integers(0, classes, images - classes)])
    raised = np.exp(np.round(random.normal(0, 1, (images, classes)) + 1.5 * np.eye(classes)[truth], 1))
    return make_cases(raised / raised.sum(axis=1, keepdims=True), truth, **more)


def values(section: dict[str, Any]) -> dict[str, float | None]:
    return {name: figure["value"] for name, figure in section.items() if isinstance(figure, dict) and "value" in figure}


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 4))
def test_classes_and_means_agree_with_scikit_learn(seed: int, classes: int) -> None:
    cases = drawn(seed, 90, classes)
    p, truth, called = cases.probabilities.astype(float), cases.labels, cases.predicted
    found = measure_cases(cases, {}, "float32", Settings(draws=2))
    is_true = np.eye(classes)[truth]
    for average in ("macro", "weighted"):
        wanted = {
            "roc_auc": metrics.roc_auc_score(is_true, p, average=average),
            "average_precision": metrics.average_precision_score(is_true, p, average=average),
            "sensitivity": metrics.recall_score(truth, called, average=average, zero_division=np.nan),
            "f1": metrics.f1_score(truth, called, average=average),
        }
        assert {name: found[average][name]["value"] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    report = metrics.classification_report(
        truth, called, target_names=cases.classes, output_dict=True, zero_division=np.nan
    )
    ours = found["classification_report"]
    for name in cases.classes:
        theirs = {{"f1-score": "f1"}.get(key, key): value for key, value in report[name].items()}
        if not (called == cases.classes.index(name)).any():
            assert ours[name]["precision"] is None
            continue
        assert ours[name] == pytest.approx(theirs, abs=1e-9)
    assert ours["accuracy"] == pytest.approx(metrics.accuracy_score(truth, called))
    assert found["confusion_matrix"] == metrics.confusion_matrix(truth, called).tolist()
    assert sum(row["n"] for row in found["per_class"].values()) == found["n"] == 90


def test_several_positive_classes_are_one_side() -> None:
    cases = drawn(3, 120, 4, positive=(1, 3))
    found = measure_cases(cases, {"image": FITTED}, "float32", FEW)
    truth = np.isin(cases.labels, (1, 3))
    score = cases.p_positive
    assert found["positive_classes"] == ["malignant", "unclear"]
    assert found["positive_vs_rest"]["roc_auc"]["value"] == pytest.approx(metrics.roc_auc_score(truth, score))
    assert found["positive_vs_rest"]["average_precision"]["value"] == pytest.approx(
        metrics.average_precision_score(truth, score)
    )
    assert found["operating_point"]["sensitivity"]["value"] == pytest.approx((score[truth] >= 0.3).mean())
    assert found["cross_check"]["sensitivity"]["wilson"] is None


def test_calibration_error_is_counted_by_hand() -> None:
    cases = drawn(5, 200, 3)
    found = measure_cases(cases, {}, "float32", FEW)

    def by_hand(said: np.ndarray, so: np.ndarray) -> float:
        ranks = np.array([(said < one).sum() + (said == one).sum() / 2 for one in said])
        place = np.floor(ranks * 10 / len(said))
        return sum(abs(said[place == at].mean() - so[place == at].mean()) * (place == at).mean() for at in set(place))

    p = cases.probabilities.astype(float)
    for number, name in enumerate(cases.classes):
        wanted = by_hand(p[:, number], cases.labels == number)
        assert found["per_class"][name]["calibration_error"]["value"] == pytest.approx(wanted)
    confident = by_hand(p.max(axis=1), cases.predicted == cases.labels)
    assert found["overall"]["calibration_error"]["value"] == pytest.approx(confident)


def test_the_operating_point_is_counted_by_hand() -> None:
    cases = drawn(8, 150, 2)
    found = measure_cases(cases, {"image": FITTED}, "float32", Settings(draws=60, prevalences=(0.005, 0.2)))
    point, score, truth = found["operating_point"], cases.p_positive, cases.truth
    called, kept = score >= 0.3, (score < 0.2) | (score >= 0.6)
    assert point["counts"] == {
        "true_positive": (called & truth).sum(),
        "false_positive": (called & ~truth).sum(),
        "false_negative": (~called & truth).sum(),
        "true_negative": (~called & ~truth).sum(),
        "referred_positive": (~kept & truth).sum(),
        "referred_negative": (~kept & ~truth).sum(),
    }
    assert point["referred"]["value"] == pytest.approx((~kept).mean())
    assert point["decided"]["n"] == kept.sum()
    for section, rows, side in ((point, np.ones(150, bool), called), (point["decided"], kept, score >= 0.6)):
        assert values(section)["sensitivity"] == pytest.approx(metrics.recall_score(truth[rows], side[rows]))
        assert values(section)["specificity"] == pytest.approx(metrics.recall_score(~truth[rows], ~side[rows]))
        assert values(section)["ppv"] == pytest.approx(metrics.precision_score(truth[rows], side[rows]))
        assert values(section)["npv"] == pytest.approx(metrics.precision_score(~truth[rows], ~side[rows]))
    sensitivity, specificity = point["sensitivity"]["value"], point["specificity"]["value"]
    for told, p in zip(point["at_prevalence"], (0.005, 0.2), strict=True):
        ppv = sensitivity * p / (sensitivity * p + (1 - specificity) * (1 - p))
        assert told["prevalence"] == p and told["ppv"]["value"] == pytest.approx(ppv)
        assert told["ppv"]["low"] < ppv < told["ppv"]["high"]
    assert (point["unit"], point["target"], point["target_specificity"]) == ("image", 0.95, 0.9)


def test_worth_at_the_studys_own_prevalence_is_the_studys_own() -> None:
    cases = drawn(9, 150, 2)
    own = float(cases.truth.mean())
    point = measure_cases(cases, {"image": FITTED}, "float32", Settings(draws=60, prevalences=(own,)))[
        "operating_point"
    ]
    for name in ("ppv", "npv"):
        assert point["at_prevalence"][0][name]["value"] == pytest.approx(point[name]["value"])


def test_without_a_band_nobody_is_referred() -> None:
    point = measure_cases(drawn(8, 60, 2), {"image": {"threshold": 0.3}}, "float32", FEW)["operating_point"]
    assert point["refer_low"] is None and point["target"] is None
    assert point["referred"]["value"] == 0 and point["decided"]["n"] == 60
    assert values(point["decided"])["sensitivity"] == values(point)["sensitivity"]


def test_patients_are_positive_if_any_image_is() -> None:
    cases = drawn(2, 90, 2, patients=(None, *(str(i // 3) for i in range(1, 90))))
    cases = dataclasses.replace(cases, groups=tuple(patient or "nobody" for patient in cases.patients or ()))
    thresholds = {"image": FITTED, "patient_max": {"threshold": 0.5}, "patient_mean_int8": {"threshold": 0.4}}
    found = measure_cases(cases, thresholds, "float32", FEW)["per_patient"]
    of = {name: [i for i in range(90) if cases.patients[i] == name] for name in set(cases.patients) - {None}}
    truth = np.array([cases.truth[rows].any() for rows in of.values()])
    score = np.array([cases.p_positive[rows].max() for rows in of.values()])
    assert (found["n"], found["positives"], found["without_patient"]) == (30, truth.sum(), 1)
    assert found["overall"]["roc_auc"]["value"] == pytest.approx(metrics.roc_auc_score(truth, score))
    assert found["overall"]["accuracy"]["value"] == pytest.approx(((score > 0.5) == truth).mean())
    assert found["operating_point"]["unit"] == "patient_max"
    assert found["operating_point"]["sensitivity"]["value"] == pytest.approx((score[truth] >= 0.5).mean())
    mean = measure_cases(cases, thresholds, "int8", Settings(draws=60, aggregate="mean"))["per_patient"]
    averaged = np.array([cases.p_positive[rows].mean() for rows in of.values()])
    assert mean["operating_point"]["unit"] == "patient_mean_int8"
    assert mean["operating_point"]["specificity"]["value"] == pytest.approx((averaged[~truth] < 0.4).mean())


@pytest.mark.parametrize("patients", [None, (None,) * 20])
def test_without_patients_it_says_so(patients: tuple[None, ...] | None) -> None:
    found = measure_cases(drawn(2, 20, 2, patients=patients), {}, "float32", FEW)
    assert set(found["per_patient"]) == {"reason"}
    assert found["patients"] == (None if patients is None else 0)
    assert "image" in found["operating_point"]["reason"]


TWO = [[0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]
REASONS = [
    ("overall", "sensitivity", TWO, [0, 0, 0], "no image of the class malignant"),
    ("overall", "roc_auc", TWO, [0, 0, 0], "no image of the class malignant"),
    ("overall", "roc_auc", TWO, [1, 1, 1], "no image of any class but malignant"),
    ("overall", "specificity", TWO, [1, 1, 1], "no image of any class but malignant"),
    ("overall", "balanced_accuracy", TWO, [1, 1, 1], "no image of the class benign"),
    ("overall", "mcc", TWO, [1, 1, 1], "every image is of the class malignant"),
    ("overall", "mcc", [[0.8, 0.2]] * 2, [0, 1], "every image is called benign"),
    ("overall", "ppv", [[0.8, 0.2]] * 2, [0, 1], "no image is called malignant"),
    ("overall", "npv", [[0.2, 0.8]] * 2, [0, 1], "no image is called anything but malignant"),
    ("overall", "f1", [[0.8, 0.2]] * 2, [0, 0], "no image of the class malignant, and no image is called malignant"),
    ("overall", "calibration_slope", [[0.8, 0.2]] * 2, [0, 1], "all probabilities are equal"),
    ("overall", "calibration_slope", TWO, [0, 1, 0], "the two kinds are told apart without an overlap"),
    ("overall", "roc_auc", [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], [0, 1], "no image of the class normal"),
    ("macro", "ppv", [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], [0, 1], "no image is called normal"),
    ("weighted", "ppv", [[0.8, 0.1, 0.1], [0.8, 0.1, 0.1]], [0, 1], "no image is called malignant"),
]


@pytest.mark.parametrize(("section", "name", "p", "truth", "reason"), REASONS)
def test_what_is_not_defined_is_null_and_says_why(section: str, name: str, p: Any, truth: Any, reason: str) -> None:
    figure = measure_cases(make_cases(p, truth), {}, "float32", FEW)[section][name]
    assert figure == {"value": None, "low": None, "high": None, "reason": reason}


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([0.0, 0.2, 1.0])),
        min_size=1,
    ),
    st.sampled_from([2, 3]),
    st.booleans(),
)
def test_no_figure_is_ever_nan_and_each_missing_one_has_a_reason(rows: Any, classes: int, one_group: bool) -> None:
    second, third = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    shares = np.stack([second, (1 - second) * third, (1 - second) * (1 - third)], axis=1)
    p = shares if classes == 3 else np.stack([1 - second, second], axis=1)
    cases = make_cases(
        p,
        [min(row[0], classes - 1) for row in rows],
        groups=["g"] * len(rows) if one_group else None,
        patients=tuple(None if i % 3 == 0 else str(i // 2) for i in range(len(rows))),
    )
    both = {"image": FITTED, "patient_max": FITTED}
    found = measure_cases(cases, both, "float32", Settings(draws=8, prevalences=(0.01,)))
    json.dumps(found, allow_nan=False)

    def check(node: Any) -> None:
        if isinstance(node, list):
            for child in node:
                check(child)
        elif isinstance(node, dict) and "value" in node:
            assert (node["value"] is None) == bool(node.get("reason"))
            assert (node["low"] is None) == (node["high"] is None)
            if node["low"] is not None:
                assert node["low"] <= node["value"] <= node["high"]
        elif isinstance(node, dict):
            for child in node.values():
                check(child)

    check(found)
    assert tuple(found["overall"]) == OVERALL_FIGURES
    assert set(found["macro"]) == set(CLASS_FIGURES)


def without_intervals(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: without_intervals(value)
            for key, value in node.items()
            if key not in ("low", "high", "wilson", "delong")
        }
    return [without_intervals(value) for value in node] if isinstance(node, list) else node


def nearly(one: Any, other: Any, scale: float = 1) -> None:
    """Equal but for the last bits; counts may be `scale` times as large."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            nearly(one[key], other[key], scale)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            nearly(left, right, scale)
    elif isinstance(one, int) and not isinstance(one, bool):
        assert one in (other, other * scale)
    else:
        assert one == (pytest.approx(other, abs=1e-7) if isinstance(other, float) else other)


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), classes=st.sampled_from([2, 3]))
def test_point_figures_know_neither_order_nor_names_nor_copies(seed: int, classes: int) -> None:
    patients = tuple(str(i // 2) for i in range(60))
    cases = drawn(seed, 60, classes, groups=patients, patients=patients)
    both = {"image": FITTED, "patient_max": FITTED}
    few = Settings(draws=2, prevalences=(0.1,))
    first = without_intervals(measure_cases(cases, both, "float32", few))
    random = np.random.default_rng(seed + 1)
    shuffled = without_intervals(measure_cases(cases.take(random.permutation(60)), both, "float32", few))
    nearly(shuffled, first)
    names = {old: f"x{number}" for old, number in zip(sorted(set(patients)), random.permutation(30), strict=True)}
    renamed = dataclasses.replace(
        cases, groups=tuple(names[old] for old in patients), patients=tuple(names[old] for old in patients)
    )
    nearly(without_intervals(measure_cases(renamed, both, "float32", few)), first)
    doubled = without_intervals(measure_cases(cases.take(list(range(60)) * 2), both, "float32", few))
    nearly(doubled, first, scale=2)


def test_intervals_do_not_change_with_the_order_of_the_rows() -> None:
    cases = drawn(4, 80, 2)
    figures = measure_cases(cases, {}, "float32", FEW)["overall"]
    again = measure_cases(cases.take(np.random.default_rng(0).permutation(80)), {}, "float32", FEW)["overall"]
    for name, figure in figures.items():
        assert again[name] == pytest.approx(figure, abs=1e-6), name


def test_copies_of_an_image_in_its_group_narrow_nothing() -> None:
    cases = drawn(4, 100, 2)
    alone = measure_cases(cases, {}, "float32", Settings(draws=400))["overall"]
    copies = cases.take(list(range(100)) * 5)
    together = measure_cases(copies, {}, "float32", Settings(draws=400))["overall"]
    as_if_others = dataclasses.replace(copies, groups=tuple(str(i) for i in range(500)))
    apart = measure_cases(as_if_others, {}, "float32", Settings(draws=400))["overall"]
    for name in ("roc_auc", "accuracy", "sensitivity", "brier"):
        width = [figures[name]["high"] - figures[name]["low"] for figures in (alone, together, apart)]
        assert width[1] == pytest.approx(width[0], rel=1e-6)
        assert width[2] < 0.6 * width[0]


def test_perfect_answers_keep_an_interval_by_groups() -> None:
    truth = np.array([0, 1] * 20)
    cases = make_cases(np.eye(2)[truth] * 0.8 + 0.1, truth, groups=[str(i // 2) for i in range(40)])
    found = measure_cases(cases, {}, "float32", FEW)["overall"]
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == pytest.approx(wilson(20, 20))
    assert found["sensitivity"]["low"] == pytest.approx(wilson(20, 20)[0])
    assert found["roc_auc"]["low"] < 0.99 and found["mcc"] == {"value": 1.0, "low": None, "high": None}


def test_formulas_stand_beside_the_draws() -> None:
    cases = drawn(12, 400, 2)
    found = measure_cases(cases, {}, "float32", Settings(draws=800))
    called, truth = cases.predicted == 1, cases.truth
    check = found["cross_check"]
    assert check["sensitivity"]["wilson"] == pytest.approx(wilson(int((called & truth).sum()), int(truth.sum())))
    for name, own in (
        ("sensitivity", "wilson"),
        ("specificity", "wilson"),
        ("accuracy", "wilson"),
        ("roc_auc", "delong"),
    ):
        figure = found["overall"][name]
        # One group an image: then they must all but agree.
        assert [figure["low"], figure["high"]] == pytest.approx(check[name][own], abs=0.012), name
    one_kind = measure_cases(make_cases(TWO, [1, 1, 1]), {}, "float32", FEW)["cross_check"]
    assert one_kind["roc_auc"]["delong"] is None and one_kind["specificity"]["wilson"] is None


def test_curves_are_written() -> None:
    found = measure_cases(drawn(1, 50, 2), {}, "float32", FEW)
    assert len(found["decision_curve"]["model"]) == len(found["decision_curve"]["threshold"]) == 99
    assert sum(one["n"] for one in found["calibration"]["bins"]) == 50
    assert all(math.isfinite(value) for value in found["decision_curve"]["treat_all"])
