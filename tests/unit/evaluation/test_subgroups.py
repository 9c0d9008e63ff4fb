from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from pipelines.errors import UsageError
from pipelines.evaluation.cases import Cases
from pipelines.evaluation.resampling import form_groups, resample
from pipelines.evaluation.study import Settings
from pipelines.evaluation.subgroups import (
    FIGURES,
    Answers,
    difference_in_errors,
    holm,
    measure_subgroups,
    split_column,
)

FITTED = {"threshold": 0.3, "refer_low": None, "refer_high": None}
QUICK = Settings(draws=200)


def study(
    seed: int,
    columns: Mapping[str, list[str | None]],
    images: int = 600,
    per_patient: int = 1,
    spoiled: np.ndarray | None = None,
    classes: int = 2,
) -> Cases:
    """Answers of a fair model; those of `spoiled` images are made of noise alone."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, images)
    patient = np.arange(images) // per_patient
    logits = random.normal(0, 1, (images, classes)) + random.normal(0, 0.7, (images, classes))[patient]
    logits += 2.0 * np.eye(classes)[labels] * (~spoiled[:, None] if spoiled is not None else 1)
    raised = np.exp(logits)
    names = tuple(str(row) for row in range(images))
    return Cases(
        classes=("benign", "malignant", "other")[:classes],
        positive=(1,),
        uris=names,
        contents=names,
        labels=labels,
        probabilities=(raised / raised.sum(axis=1, keepdims=True)).astype(np.float32),
        groups=tuple(f"p{number}" for number in patient),
        patients=None,
        mean_intensity=np.full(images, 0.5),
        columns={name: tuple(values) for name, values in columns.items()},
    )


def by_name(column: Mapping) -> dict[str, Mapping]:
    return {group["name"]: group for group in column["groups"]}


@pytest.mark.parametrize("classes", [2, 3])
def test_figures_of_a_group_are_those_of_its_images_alone(classes: int) -> None:
    site = ["north", "south", "east"] * 200
    cases = study(1, {"site": site}, classes=classes)
    found = measure_subgroups(cases, ["site"], FITTED, QUICK)
    assert [one["column"] for one in found] == ["site"] and found[0]["looks"] == 3 * 4
    for name, group in by_name(found[0]).items():
        rows = [row for row, value in enumerate(site) if value == name]
        own, called = cases.take(rows), cases.p_positive[rows] >= 0.3
        figures = {key: value["value"] for key, value in group["figures"].items()}
        assert figures == pytest.approx(
            {
                "roc_auc": roc_auc_score(own.truth, own.p_positive),
                "sensitivity": recall_score(own.truth, called),
                "specificity": recall_score(~own.truth, ~called),
                "accuracy": accuracy_score(own.labels, own.predicted),
            }
        )
        assert all(value["low"] < value["value"] < value["high"] for value in group["figures"].values())
        assert (group["n"], group["positives"], group["small"]) == (200, int(own.truth.sum()), False)
    plain = by_name(measure_subgroups(cases, ["site"], None, QUICK)[0])["north"]["figures"]["sensitivity"]["value"]
    rows = np.arange(0, 600, 3)
    assert plain == pytest.approx(recall_score(cases.truth[rows], cases.predicted[rows] == 1))


def test_a_site_that_fails_gets_a_star_and_is_the_worst() -> None:
    site = ["a", "b", "c", "d"] * 250
    spoiled = np.array(site) == "c"
    found = measure_subgroups(study(2, {"site": site}, 1000, spoiled=spoiled), ["site"], FITTED, QUICK)[0]
    groups = by_name(found)
    assert found["worst"] == "c" and groups["c"]["starred"] and groups["c"]["p"] < 1e-6
    assert {"roc_auc", "accuracy"} <= set(groups["c"]["differs_in"])


def test_chance_seldom_gets_a_star() -> None:
    """60 studies without any difference, 9 groups in two columns, patients with three images."""
    starred = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        patients = {
            "site": random.choice(["a", "b", "c", "d", "e", "f"], 200),
            "sex": random.choice(["f", "m", "?"], 200),
        }
        columns = {name: np.repeat(values, 3).tolist() for name, values in patients.items()}
        found = measure_subgroups(study(seed, columns, 600, 3), ["site", "sex"], FITTED, Settings(draws=2))
        starred += any(group["starred"] for column in found for group in column["groups"])
    assert starred <= 7, starred


@pytest.mark.parametrize("straddling", [False, True])
def test_the_standard_error_is_that_of_the_bootstrap_over_groups(straddling: bool) -> None:
    """Either all images of a patient are on one side, or each patient has some on both."""
    cases = study(7, {}, 1500, 5)
    side = np.arange(1500) % 2 == 0 if straddling else (np.arange(1500) // 5) % 3 == 0
    groups = form_groups(cases.groups, np.zeros(1500, np.int64))
    called = cases.p_positive >= 0.3
    answers = Answers(cases.p_positive, cases.truth, called, cases.predicted == cases.labels, groups.member)

    def measured(counts: np.ndarray) -> dict[tuple[str, ...], np.ndarray]:
        sides = [_weighted(cases, called, answers.right, rows, counts[:, groups.member]) for rows in (side, ~side)]
        return {(name,): sides[0][name] - sides[1][name] for name in FIGURES}

    drawn = resample(groups, measured, 1000, 1)
    for name, (gap, error, freedom) in difference_in_errors(answers, side, ~side).items():
        assert error == pytest.approx(drawn[name,].std(), rel=0.1), name
        assert abs(gap - drawn[name,].mean()) < 0.3 * error
        assert freedom == (299 if straddling else 99) or name in ("sensitivity", "specificity")


def _weighted(
    cases: Cases, called: np.ndarray, right: np.ndarray, rows: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Figures of some images for each draw, by the definitions: all pairs, and shares."""
    positive, negative = rows & cases.truth, rows & ~cases.truth
    pairs = cases.p_positive[positive][:, None] > cases.p_positive[negative][None, :]
    own, others = weights[:, positive], weights[:, negative]
    return {
        "roc_auc": ((own @ pairs) * others).sum(axis=1) / (own.sum(axis=1) * others.sum(axis=1)),
        "sensitivity": own @ called[positive] / own.sum(axis=1),
        "specificity": others @ ~called[negative] / others.sum(axis=1),
        "accuracy": weights[:, rows] @ right[rows] / weights[:, rows].sum(axis=1),
    }


def test_perfect_answers_do_not_make_a_difference_certain() -> None:
    """No image of the group is wrong, so its resamples all agree; five in a hundred are wrong elsewhere."""
    random = np.random.default_rng(0)
    truth = np.arange(400) % 2 == 0
    here = np.arange(400) < 24
    right = np.where(here, True, random.random(400) > 0.05)
    answers = Answers(np.where(truth == right, 0.9, 0.1), truth, truth == right, right, np.arange(400))
    gap, error, _ = difference_in_errors(answers, here, ~here)["accuracy"]
    assert gap > 0 and error > np.sqrt(1 / 26 * 25 / 26 / 26)


def test_small_groups_are_marked_and_not_compared() -> None:
    site = ["big"] * 500 + ["few images"] * 19 + ["few patients"] * 81
    cases = study(3, {"site": site}, 600)
    crowded = Cases(**{**vars(cases), "groups": (*cases.groups[:519], *(f"p{row % 9}" for row in range(81)))})
    found = measure_subgroups(crowded, ["site"], FITTED, QUICK)[0]
    assert {name: group["small"] for name, group in by_name(found).items()} == {
        "big": False,
        "few images": True,
        "few patients": True,
    }
    assert [by_name(found)[name]["p"] for name in ("few images", "few patients")] == [None, None]
    assert found["worst"] is None and not any(group["starred"] for group in found["groups"])
    rare = study(3, {"kind": ["x" if row < 300 else "y" for row in range(600)]})
    labels = np.where(np.arange(600) < 300, 0, rare.labels)
    labels[:9] = 1
    found = measure_subgroups(Cases(**{**vars(rare), "labels": labels}), ["kind"], FITTED, QUICK)[0]
    assert by_name(found)["x"]["small"] and found["looks"] == 0 and by_name(found)["y"]["p"] is None


def test_what_a_group_does_not_define_is_said() -> None:
    cases = study(4, {"kind": ["x"] * 300 + ["y"] * 300})
    labels = np.where(np.arange(600) < 300, 0, cases.labels)
    group = by_name(measure_subgroups(Cases(**{**vars(cases), "labels": labels}), ["kind"], FITTED, QUICK)[0])["x"]
    assert group["figures"]["sensitivity"] == {
        "value": None,
        "low": None,
        "high": None,
        "reason": "no image of the class malignant in this group",
    }
    assert group["figures"]["roc_auc"]["value"] is None and group["figures"]["specificity"]["value"] is not None


@settings(max_examples=200)
@given(p=st.lists(st.floats(0, 1), min_size=0, max_size=12))
def test_holm_is_its_step_down_definition(p: list[float]) -> None:
    corrected = holm(p)
    rejected: set[int] = set()
    for done, at in enumerate(sorted(range(len(p)), key=lambda at: p[at])):
        if p[at] * (len(p) - done) > 0.05:
            break
        rejected.add(at)
    assert {at for at, value in enumerate(corrected) if value <= 0.05} == rejected
    # Never kinder than the control of false discoveries, never harder than Bonferroni.
    if p:
        assert all(np.array(corrected) >= false_discovery_control(p) - 1e-12)
    assert all(own <= value <= min(1.0, own * len(p)) + 1e-12 for own, value in zip(p, corrected, strict=True))


VALUES = st.lists(st.sampled_from([None, "", "a", "A", "a ", "1", "1.0", "(none)", "nan"]), min_size=1, max_size=40)
NUMBERS = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6).map(repr)), min_size=1, max_size=60)


@settings(max_examples=200)
@given(values=st.one_of(VALUES, NUMBERS))
def test_every_image_is_in_one_group(values: list[str | None]) -> None:
    parts = split_column(values, "c") if len(set(values)) <= 31 or _all_numbers(values) else []
    if parts:
        assert (np.sum([within for _, within in parts], axis=0) == 1).all()
        assert len({name for name, _ in parts}) == len(parts)
        assert all(within.any() for _, within in parts)


def _all_numbers(values: list[str | None]) -> bool:
    return all(value is None or value.replace(".", "").replace("-", "").replace("e", "").isdigit() for value in values)


def test_names_are_equal_only_where_every_letter_is() -> None:
    parts = dict(split_column(["a", "A", "a ", None, "", "é", "e\u0301"], "site"))
    assert list(parts) == ["A", "a", "a ", "e\u0301", "é", "(none)"] and parts["(none)"].tolist()[3:5] == [True, True]
    assert [name for name, _ in split_column(["(none)", None], "site")] == ["(none)", "((none))"]
    assert [name for name, _ in split_column(["10", "9", None, "nan"], "grade")] == ["9", "10", "(none)"]


def test_many_numbers_become_quarters() -> None:
    ages = [str(age) for age in range(1, 101)]
    parts = split_column([*ages, None], "age")
    assert [name for name, _ in parts] == ["up to 25", "over 25 to 50", "over 50 to 75", "over 75", "(none)"]
    assert [int(within.sum()) for _, within in parts] == [25, 25, 25, 25, 1]
    uneven = split_column(["0"] * 90 + [f"{number}.5" for number in range(20)], "dose")
    assert [(name, int(within.sum())) for name, within in uneven] == [("up to 0", 90), ("over 0", 20)]
    highest = split_column([*(str(number) for number in range(20)), *["99"] * 90], "dose")
    assert [(name, int(within.sum())) for name, within in highest] == [("up to 99", 110)]
    assert len(split_column([str(number % 12) for number in range(100)], "grade")) == 12


def test_unusable_columns_are_refused_with_a_cure() -> None:
    many = [f"patient {row}" for row in range(31)]
    with pytest.raises(UsageError, match="'mrn' has 31 values; no more than 30") as caught:
        split_column(many, "mrn")
    assert "patient 0" not in str(caught.value)
    cases = study(1, {"site": ["a", "b"] * 300})
    with pytest.raises(UsageError, match=r"no column 'Site'\. They have site\."):
        measure_subgroups(cases, ["Site"], FITTED, QUICK)
    with pytest.raises(UsageError, match="a manifest can carry more"):
        measure_subgroups(study(1, {}), ["site"], FITTED, QUICK)


def test_looks_are_counted_over_all_columns() -> None:
    columns = {"site": ["a", "b", "c"] * 200, "sex": ["f"] * 300 + ["m"] * 300}
    cases = study(5, columns)
    alone, both = (
        measure_subgroups(cases, ["site"], None, QUICK),
        measure_subgroups(cases, [*columns, "site"], None, QUICK),
    )
    assert [one["looks"] for one in alone] == [12] and [one["looks"] for one in both] == [20, 20]
    for before, after in zip(alone[0]["groups"], both[0]["groups"], strict=True):
        assert before["p"] <= after["p"] and before["figures"] == after["figures"]
