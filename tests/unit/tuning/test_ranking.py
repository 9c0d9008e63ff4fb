from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics

from pipelines.evaluation.calibration import class_logits, probabilities
from pipelines.evaluation.metrics import METRIC_NAMES, measure
from pipelines.evaluation.resampling import form_groups
from pipelines.training.audit import LeakAudit
from pipelines.training.dataset import Dataset, PartImages
from pipelines.training.recipes import load_recipe
from pipelines.tuning.answers import load_answer, save_answer
from pipelines.tuning.points import DONE, Answer, Point
from pipelines.tuning.ranking import NEAREST, compare_with_best, how_sure, measure_groups
from pipelines.tuning.space import make_points, read_space

Floats = NDArray[np.float64]


def answers_of(
    labels: NDArray[np.int64], points: int, classes: int = 2, skill: float = 1.0, own: float = 0.7, seed: int = 0
) -> list[Floats]:
    """Probabilities of points that find the same images hard and differ by noise of their own."""
    random = np.random.default_rng(seed)
    shared = random.standard_normal((len(labels), classes)) + skill * np.eye(classes)[labels]
    return [probabilities(shared + own * random.standard_normal(shared.shape)) for _ in range(points)]


def patients_of(images: int, patients: int, seed: int = 0) -> list[str]:
    return [f"p{number}" for number in np.random.default_rng(seed).integers(0, patients, images)]


SKLEARN: dict[str, Callable[[NDArray[np.int64], Floats], float]] = {
    "accuracy": lambda truth, p: metrics.accuracy_score(truth, p.argmax(axis=1)),
    "mcc": lambda truth, p: metrics.matthews_corrcoef(truth, p.argmax(axis=1)),
    "log_loss": lambda truth, p: metrics.log_loss(truth, p[:, 1]),
    "roc_auc": lambda truth, p: metrics.roc_auc_score(truth, p[:, 1]),
    "average_precision": lambda truth, p: metrics.average_precision_score(truth, p[:, 1]),
}


@pytest.mark.parametrize("metric", SKLEARN)
def test_the_interval_of_two_points_is_that_of_a_bootstrap_by_hand_with_figures_of_scikit_learn(metric: str) -> None:
    labels = np.random.default_rng(3).integers(0, 2, 150)
    names = patients_of(150, 60)
    one, other = answers_of(labels, 2, seed=4)
    figure = SKLEARN[metric]
    better = figure(labels, one) - figure(labels, other)
    sign = -1 if metric == "log_loss" else 1

    random = np.random.default_rng(11)
    rows = [np.flatnonzero(np.array(names) == name) for name in sorted(set(names))]
    drawn = []
    for _ in range(300):
        taken = np.concatenate([rows[group] for group in random.integers(0, len(rows), len(rows))])
        drawn.append(figure(labels[taken], one[taken]) - figure(labels[taken], other[taken]))
    reach = float(np.quantile(np.abs(np.array(drawn) - better), 0.95))

    ((difference, low, high),) = compare_with_best([one, other], labels, form_groups(names, labels), metric, (1,))
    assert difference == pytest.approx(sign * better, abs=1e-12)
    assert (high - low) / 2 == pytest.approx(reach, rel=0.15) and (high + low) / 2 == pytest.approx(difference)


def test_many_points_are_held_against_each_other_at_once_as_by_hand() -> None:
    labels = np.random.default_rng(5).integers(0, 2, 90)
    names = patients_of(90, 40)
    answers = answers_of(labels, 5, seed=6)
    right = np.stack([p.argmax(axis=1) == labels for p in answers]).astype(float)
    answers = [answers[number] for number in np.argsort(-right.mean(axis=1), kind="stable")]
    right = np.stack([p.argmax(axis=1) == labels for p in answers]).astype(float)

    random, draws = np.random.default_rng(12), 3000
    rows = [np.flatnonzero(np.array(names) == name) for name in sorted(set(names))]
    drawn = np.empty((draws, 5))
    for number in range(draws):
        taken = np.concatenate([rows[group] for group in random.integers(0, len(rows), len(rows))])
        drawn[number] = right[:, taken].mean(axis=1)
    whole = right.mean(axis=1)

    found = compare_with_best(answers, labels, form_groups(names, labels), "accuracy", (1,))
    for i in range(1, 5):
        errors = {j: np.std(drawn[:, j] - drawn[:, i]) for j in range(5) if j != i}
        farthest = [max(abs((draw[j] - draw[i]) - (whole[j] - whole[i])) / errors[j] for j in errors) for draw in drawn]
        reach = np.quantile(farthest, 0.95) * errors[0]
        assert found[i - 1, 0] == pytest.approx(whole[0] - whole[i])
        assert (found[i - 1, 2] - found[i - 1, 1]) / 2 == pytest.approx(reach, rel=0.08)


def test_the_truly_best_of_equal_points_is_seldom_told_apart_from_the_one_that_was_lucky() -> None:
    """All points are equally good, so point 0 is a truly best one; two-by-two intervals would often deny that."""
    denied = pairwise = 0
    for search in range(100):
        labels = np.random.default_rng(1000 + search).integers(0, 2, 120)
        answers = answers_of(labels, 15, own=1.5, seed=search)
        groups = form_groups([str(number) for number in range(120)], labels)
        best = int(np.argmax([(p.argmax(axis=1) == labels).mean() for p in answers]))
        if best == 0:
            continue
        order = [best, 0, *(number for number in range(1, 15) if number != best)]
        compared = [answers[number] for number in order]
        denied += compare_with_best(compared, labels, groups, "accuracy", (1,), draws=250)[0, 1] > 0
        pairwise += compare_with_best(compared[:2], labels, groups, "accuracy", (1,), draws=250)[0, 1] > 0
    assert denied <= 5 and pairwise > 10


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), metric=st.sampled_from(METRIC_NAMES), classes=st.integers(2, 4))
def test_figures_at_counts_are_those_of_images_taken_as_often(seed: int, metric: str, classes: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, 40)
    labels[:classes] = range(classes)
    groups = form_groups(patients_of(40, 15, seed), labels)
    answers = answers_of(labels, 3, classes, seed=seed)
    counts = random.integers(0, 3, (4, groups.count))
    counts[0] = 1
    found = measure_groups(answers, labels, groups, metric, (classes - 1,))(counts)
    for draw, row in zip(counts, found, strict=True):
        taken = np.repeat(np.arange(40), draw[groups.member])
        for p, value in zip(answers, row, strict=True):
            expected = measure(p[taken], labels[taken], (classes - 1,))[metric]
            assert value == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_points_that_answer_alike_are_not_told_apart_and_hold_no_other_back(metric: str) -> None:
    labels = np.random.default_rng(7).integers(0, 2, 200)
    best, *_ = answers_of(labels, 1, skill=3.0, seed=8)
    worst = 1 - best
    groups = form_groups([str(number) for number in range(200)], labels)
    alike, clear = compare_with_best([best, best, worst], labels, groups, metric, (1,), draws=300)
    assert alike.tolist() == [0, 0, 0] and clear[1] > 0


def test_a_figure_that_no_draw_defines_has_no_interval() -> None:
    labels = np.array([0, 1] * 10)
    sure = np.tile([0.9, 0.1], (20, 1))  # never calls the positive class, whose PPV is then none
    groups = form_groups([str(number) for number in range(20)], labels)
    ((_, low, high),) = compare_with_best([sure, sure], labels, groups, "ppv", (1,), draws=50)
    assert np.isnan([low, high]).all()


def points_of(count: int) -> tuple[Point, ...]:
    rates = ",".join(str((number + 1) / 10_000) for number in range(count))
    return make_points(read_space([f"learning_rate={rates}"], None), load_recipe("skin-lesion"), 1000, 0)


def dataset_of(labels: NDArray[np.int64], groups: list[str]) -> Dataset:
    part = PartImages(np.arange(len(labels)), labels, tuple(groups), pa.table({}))
    audit = LeakAudit("made", None, len(labels), 0, 0, 0, 0, 0, len(set(groups)), 1, 0, 0)
    return Dataset(("benign", "malignant"), {"val": part}, pa.table({}), {}, (), audit)


def save(folder: Path, point: Point, logits: NDArray[Any] | None) -> None:
    kept = None if logits is None else logits.astype(np.float32)
    save_answer(str(folder), Answer(point.key, "t", DONE, None, (), 1, 1, kept), None)


def searched(folder: Path, points: tuple[Point, ...], skills: list[float], images: int = 300) -> Dataset:
    """Answers with a single logit, of points that are the better the more of the label they see."""
    labels = np.random.default_rng(2).integers(0, 2, images)
    shared = np.random.default_rng(3).standard_normal((images, 1))
    for number, (point, skill) in enumerate(zip(points, skills, strict=False)):
        own = np.random.default_rng(100 + number).standard_normal((images, 1))
        save(folder, point, shared + 0.3 * own + skill * (2 * labels[:, None] - 1))
    return dataset_of(labels, patients_of(images, 90))


def test_it_names_the_points_that_are_not_told_apart(tmp_path: Path) -> None:
    points = points_of(5)
    data = searched(tmp_path, points, [1.0, 1.0, 1.0, -0.5, -0.7])
    values = {}
    for point in points:
        answer = load_answer(str(tmp_path), point.key)
        assert answer is not None and answer.logits is not None
        labels = data.part("val").labels
        values[point.key] = measure(probabilities(class_logits(answer.logits)), labels, (1,))["accuracy"]
    best, *others = sorted(points, key=lambda point: -values[point.key])
    found = how_sure(str(tmp_path), "accuracy", best, others, data, (1,))
    assert found is not None and found.second is not None
    assert [near.point for near in found.near] == [point.key for point in others[:2]]
    assert found.second == found.near[0] and found.compared == 4 and found.groups == len(set(data.part("val").groups))
    assert all(near.low <= 0 <= near.high for near in found.near)
    assert found.second.difference == pytest.approx(values[best.key] - values[others[0].key])
    assert found.sentence.startswith("These 3 points are not told apart: learning_rate ")
    assert all(f"{point.recipe.learning_rate:.4g}" in found.sentence for point in (best, *others[:2]))
    assert found == how_sure(str(tmp_path), "accuracy", best, others, data, (1,))


def test_a_clear_winner_is_told_apart_from_all(tmp_path: Path) -> None:
    points = points_of(3)
    data = searched(tmp_path, points, [2.0, -0.2, -0.4])
    found = how_sure(str(tmp_path), "log_loss", points[0], points[1:], data, (1,))
    assert found is not None and found.second is not None and found.near == () and found.second.low > 0
    assert found.sentence.startswith("The best point is told apart from the other 2 points: the best is better than")


def test_points_of_the_same_figure_are_said_to_have_it(tmp_path: Path) -> None:
    points = points_of(2)
    data = searched(tmp_path, points, [1.0, 1.0])
    answer = load_answer(str(tmp_path), points[0].key)
    assert answer is not None
    save(tmp_path, points[1], answer.logits)
    found = how_sure(str(tmp_path), "roc_auc", points[0], points[1:], data, (1,))
    assert found is not None and "the best and the second have the same ROC AUC (95 % interval" in found.sentence


def test_of_a_thousand_points_only_the_nearest_are_read_and_it_says_so(tmp_path: Path) -> None:
    points = points_of(1000)
    data = searched(tmp_path, points, [1 - 0.02 * number for number in range(NEAREST + 1)], images=527)
    found = how_sure(str(tmp_path), "accuracy", points[0], points[1:], data, (1,))
    assert found is not None and found.compared == NEAREST
    assert 0 < len(found.near) < NEAREST and "of 1,000 points the best 51 were compared." in found.sentence


def test_without_a_second_answer_nothing_is_said(tmp_path: Path) -> None:
    points = points_of(3)
    data = searched(tmp_path, points, [1.0])
    assert how_sure(str(tmp_path), "f1", points[0], (), data, (1,)) is None
    save(tmp_path, points[1], None)
    assert how_sure(str(tmp_path), "f1", points[0], points[1:], data, (1,)) is None
