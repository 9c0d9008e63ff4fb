from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.metrics import measure, roc_auc
from pipelines.evaluation.ranking import Ranking
from pipelines.evaluation.resampling import draw_counts, form_groups, resample


def counts_of(names: list[str], labels: list[int], draws: int, seed: int = 0) -> np.ndarray:
    return np.concatenate([block() for block in draw_counts(form_groups(names, labels), draws, seed)])


def test_groups_are_in_strata_by_the_rarest_class_that_they_hold() -> None:
    groups = form_groups(["a", "a", "b", "c", "d", "e"], [0, 2, 1, 0, 1, 0])
    assert groups.count == 5
    held = sorted(tuple(stratum.tolist()) for stratum in groups.strata)
    assert held == [(0,), (1, 3), (2, 4)]  # a holds the one image of class 2


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 1)), min_size=1, max_size=30), st.integers(0, 99))
def test_every_draw_holds_both_classes_where_the_study_does(rows: list[tuple[int, int]], seed: int) -> None:
    names, labels = [str(group) for group, _ in rows], [label for _, label in rows]
    groups = form_groups(names, labels)
    weights = counts_of(names, labels, 40, seed)[:, groups.member]
    kinds = [np.array(labels) == kind for kind in (0, 1)]
    rare = min(kinds, key=lambda kind: len(np.unique(groups.member[kind])) or 99)
    assert not rare.any() or (weights[:, rare].sum(axis=1) > 0).all()
    alone = set(groups.member[~rare]) - set(groups.member[rare])
    assert not alone or (weights[:, ~rare].sum(axis=1) > 0).all()


def test_draws_are_those_of_the_bootstrap() -> None:
    """A group comes once on average, with the variance of a multinomial; so do the positives in all."""
    names, labels = [str(i) for i in range(40)], [int(i < 10) for i in range(40)]
    counts = counts_of(names, labels, 4000)
    assert counts.mean(axis=0) == pytest.approx(np.ones(40), abs=0.1)
    assert counts.var(axis=0).mean() == pytest.approx(1 - 1 / 40, abs=0.05)
    positives = counts[:, form_groups(names, labels).member[:10]]
    assert positives.sum(axis=1).var() == pytest.approx(40 * 0.25 * 0.75, rel=0.1)


def test_blocks_are_bounded_and_sum_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.evaluation.resampling.CELLS_AT_ONCE", 50)
    blocks = [block() for block in draw_counts(form_groups(["a", "b", "c", "d"], [0, 0, 0, 0]), 30, seed=0)]
    assert [len(block) for block in blocks] == [12, 12, 6]
    assert (np.concatenate(blocks).sum(axis=1) == 4).all()


def test_the_seed_alone_decides_the_draws() -> None:
    names, labels = [str(i // 2) for i in range(60)], [i % 3 for i in range(60)]
    groups = form_groups(names, labels)
    compute = lambda counts: {("first",): counts[:, 0].astype(float)}  # noqa: E731
    first = resample(groups, compute, 900, seed=5)["first",]
    assert len(first) == 900
    np.testing.assert_array_equal(first, resample(groups, compute, 900, seed=5)["first",])
    one_after_another = np.concatenate([block()[:, 0] for block in draw_counts(groups, 900, 5)])
    np.testing.assert_array_equal(first, one_after_another)
    assert (first != resample(groups, compute, 900, seed=6)["first",]).any()


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), images=st.integers(4, 40), digits=st.sampled_from([0, 1, 9]))
def test_a_ranking_of_counts_is_that_of_repeated_images(seed: int, images: int, digits: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.random(images) < 0.5
    score = np.round(random.normal(truth, 1), digits)
    counts = random.integers(0, 3, (3, images))
    areas, precisions = Ranking(score, truth, np.arange(images)).areas(counts)
    for row in range(3):
        rows = np.repeat(np.arange(images), counts[row])
        if not len(rows):
            assert np.isnan(areas[row])
            continue
        wanted = measure(np.stack([1 - score[rows], score[rows]], axis=1), truth[rows].astype(int), [1])
        assert areas[row] == pytest.approx(roc_auc(score[rows], truth[rows]), nan_ok=True, abs=1e-12)
        assert precisions[row] == pytest.approx(wanted["average_precision"], nan_ok=True, abs=1e-12)
