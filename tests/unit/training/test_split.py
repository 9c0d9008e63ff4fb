from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.training.split import choose_for_train, group_images, make_split, part_of_name

SHARES = {"validation_share": 0.16, "test_share": 0.20}


@st.composite
def labelled_groups(draw: st.DrawFn) -> tuple[list[int], list[str]]:
    """Ten to sixty images a class, most of them alone, some in groups of up to four."""
    labels: list[int] = []
    groups: list[str] = []
    for label in range(draw(st.integers(2, 4))):
        left = draw(st.integers(10, 60))
        number = 0
        while left > 0:
            size = min(left, draw(st.sampled_from([1, 1, 1, 1, 2, 4])))
            labels += [label] * size
            groups += [f"{label}-{number}"] * size
            left, number = left - size, number + 1
    return labels, groups


@settings(max_examples=60, deadline=None)
@given(data=labelled_groups(), seed=st.integers(0, 2**31))
def test_no_group_is_parted_and_every_part_gets_its_share(data: tuple[list[int], list[str]], seed: int) -> None:
    labels, groups = data
    parts = make_split(labels, groups, seed=seed, **SHARES)
    where = defaultdict(set)
    for group, part in zip(groups, parts, strict=True):
        where[group].add(part)
    assert all(len(found) == 1 for found in where.values())
    largest = max(Counter(groups).values())
    for label in set(labels):
        mine = Counter(part for part, own in zip(parts, labels, strict=True) if own == label)
        total = sum(mine.values())
        for part, share in (("train", 0.64), ("val", 0.16), ("test", 0.20)):
            assert abs(mine[part] - share * total) <= largest + 1, (label, mine)


@settings(max_examples=30, deadline=None)
@given(data=labelled_groups(), seed=st.integers(0, 1000), order=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(data: tuple[list[int], list[str]], seed: int, order: object) -> None:
    labels, groups = data
    rows = list(range(len(labels)))
    order.shuffle(rows)  # type: ignore[attr-defined]
    parts = make_split(labels, groups, seed=seed, **SHARES)
    shuffled = make_split([labels[i] for i in rows], [groups[i] for i in rows], seed=seed, **SHARES)
    assert [parts[i] for i in rows] == list(shuffled)


def test_ten_images_of_a_class_reach_every_part() -> None:
    labels = [0] * 10 + [1] * 10
    parts = make_split(labels, [str(i) for i in range(20)], seed=3, **SHARES)
    for label in (0, 1):
        counts = Counter(part for part, own in zip(parts, labels, strict=True) if own == label)
        assert counts == {"train": 6, "val": 2, "test": 2}


def test_another_seed_deals_another_split() -> None:
    labels, groups = [0, 1] * 50, [str(i) for i in range(100)]
    first, second = (make_split(labels, groups, seed=seed, **SHARES) for seed in (1, 2))
    assert (first != second).any()
    assert (first == make_split(labels, groups, seed=1, **SHARES)).all()


def test_without_a_test_share_there_is_no_test_part() -> None:
    parts = make_split([0, 1] * 20, [str(i) for i in range(40)], seed=0, validation_share=0.25, test_share=0.0)
    assert Counter(parts) == {"train": 30, "val": 10}


def test_pinned_groups_train() -> None:
    labels, groups = [0, 1] * 30, [str(i) for i in range(60)]
    chosen = choose_for_train(labels, groups, images=16, seed=5)
    pinned = frozenset(groups[i] for i in chosen)
    parts = make_split(labels, groups, seed=5, pinned=pinned, **SHARES)
    assert 10 <= len(chosen) <= 16
    assert all(parts[i] == "train" for i in chosen)
    assert {int(np.bincount([labels[i] for i in chosen])[k]) for k in (0, 1)} <= {7, 8}
    assert 8 <= Counter(parts)["val"] <= 12


def test_choosing_leaves_enough_groups_and_respects_a_given_split() -> None:
    labels, groups = [0] * 10 + [1] * 10, [f"p{i // 3}" for i in range(20)]
    allowed = [i % 2 == 0 for i in range(20)]
    chosen = choose_for_train(labels, groups, images=64, seed=0, allowed=allowed)
    assert all(allowed[i] for i in chosen)
    assert len({groups[i] for i in chosen}) <= 2


def test_a_given_split_is_honoured() -> None:
    labels, groups = [0, 1] * 15, [str(i) for i in range(30)]
    given_parts = ["train"] * 18 + ["val"] * 6 + ["test"] * 6
    assert list(make_split(labels, groups, seed=0, given=given_parts, **SHARES)) == given_parts


def test_a_given_split_without_val_gets_one_out_of_train() -> None:
    labels, groups = [0, 1] * 50, [str(i) for i in range(100)]
    given_parts = ["train"] * 80 + ["test"] * 20
    parts = make_split(labels, groups, seed=0, given=given_parts, **SHARES)
    assert list(parts[80:]) == ["test"] * 20
    assert Counter(parts[:80]) == {"train": 64, "val": 16}


@settings(max_examples=40, deadline=None)
@given(data=labelled_groups(), seed=st.integers(0, 1000), draw=st.data())
def test_what_is_kept_stays_and_the_rest_brings_the_shares(
    data: tuple[list[int], list[str]], seed: int, draw: st.DataObject
) -> None:
    labels, groups = data
    first = make_split(labels, groups, seed=seed, **SHARES)
    part = dict(zip(groups, first, strict=True))
    # Every class keeps something in each part, or no test part could be estimated.
    known = {group for group in part if draw.draw(st.integers(0, 2))}
    kept = [str(part[group]) if group in known else None for group in groups]
    if any(own is not None for own in kept):
        parts = make_split(labels, groups, seed=seed + 1, kept=kept, **SHARES)
        assert all(own is None or own == now for own, now in zip(kept, parts, strict=True))
        where = defaultdict(set)
        for group, now in zip(groups, parts, strict=True):
            where[group].add(now)
        assert all(len(found) == 1 for found in where.values())
        # Labels of what stands in the test part already decide nothing.
        turned = [(label + 1) % 2 if own == "test" else label for label, own in zip(labels, kept, strict=True)]
        assert (make_split(turned, groups, seed=seed + 1, kept=kept, **SHARES) == parts).all()


def test_new_images_fill_the_part_that_has_too_few() -> None:
    labels, groups = [0, 1] * 50, [str(i) for i in range(100)]
    kept = ["train"] * 40 + ["val"] * 2 + [None] * 58
    parts = make_split(labels, groups, seed=0, kept=kept, **SHARES)
    assert [Counter(parts)[part] for part in ("train", "val", "test")] == pytest.approx([64, 16, 20], abs=2)


@pytest.mark.parametrize(
    ("settled", "cure"),
    [
        ({"kept": ["train"] * 20 + ["val"] * 19 + ["test"]}, "--new-split"),
        ({"given": ["train"] * 20 + ["val"] * 20}, "leave the split out"),
    ],
)
def test_a_settled_part_without_a_class_says_what_helps(settled: dict[str, list[str]], cure: str) -> None:
    with pytest.raises(UsageError, match=f"'train' would hold no image of 1 of the 2 classes.*{cure}"):
        make_split([0] * 20 + [1] * 20, [str(i) for i in range(40)], seed=0, **settled, **SHARES)  # type: ignore[arg-type]


def test_a_class_of_one_group_is_refused() -> None:
    with pytest.raises(UsageError, match="'val' would hold no image of 1 of the 2 classes"):
        make_split([0] * 10 + [1] * 10, [str(i) for i in range(10)] + ["one"] * 10, seed=0, **SHARES)


def test_groups_join_people_and_copies() -> None:
    groups = group_images(["h1", "h2", "h2", "h3", "h4"], ["ann", "ann", "bob", None, None])
    assert len({groups[0], groups[1], groups[2]}) == 1
    assert len(set(groups)) == 3
    assert not any("ann" in name or "bob" in name for name in groups)
    assert groups[3] == "content-h3"
    linked = group_images(["h1", "h2", "h3", "h4"], [None] * 4, ["x", None, "x", "y"], [None, "z", None, "z"])
    assert linked == ["content-h1", "content-h2", "content-h1", "content-h2"]
    assert group_images(["h4", "h3", "h2", "h2", "h1"], [None, None, "bob", "ann", "ann"]) == groups[::-1]


@pytest.mark.parametrize(("name", "part"), [("Train", "train"), ("valid", "val"), ("TEST ", "test"), ("benign", None)])
def test_names_of_parts(name: str, part: str | None) -> None:
    assert part_of_name(name) == part
