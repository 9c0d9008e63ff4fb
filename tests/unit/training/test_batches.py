"""What is in a batch is a function of (seed, epoch, step), whoever computes it."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.training.batches import block_of, plan_epoch, variants_of, worker_rows

LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(lambda labels: np.array(labels, np.int64))


def plan(labels: np.ndarray, epoch: int = 1, **changes: object):  # type: ignore[no-untyped-def, type-arg]
    return plan_epoch(
        labels, **{"seed": 7, "epoch": epoch, "batch_size": 8, "oversample": False, "mixup": 0.0} | changes
    )


@given(LABELS, st.integers(1, 9), st.integers(1, 5), st.booleans())
def test_workers_share_each_batch_without_gap_or_overlap(
    labels: np.ndarray, batch_size: int, workers: int, oversample: bool
) -> None:
    whole = plan(labels, batch_size=batch_size, oversample=oversample)
    blocks = [block_of(whole, 0, whole.steps, rank, workers) for rank in range(workers)]
    for step in range(whole.steps):
        begin = step * batch_size
        parts = [block.places[block.bounds[step] : block.bounds[step + 1]] for block in blocks]
        together = np.concatenate(parts)
        np.testing.assert_array_equal(together, np.arange(begin, min(begin + batch_size, len(whole.rows))))
        assert {int(block.sizes[step]) for block in blocks} == {len(together)}
        assert [int(block.offsets[step]) for block in blocks] == np.cumsum([0, *map(len, parts)])[:-1].tolist()
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(LABELS, st.integers(1, 9), st.integers(1, 5))
def test_blocks_of_an_epoch_are_those_of_its_steps(labels: np.ndarray, batch_size: int, length: int) -> None:
    whole = plan(labels, batch_size=batch_size)
    at_once = block_of(whole, 0, whole.steps, 1, 3)
    pieces = [block_of(whole, s, min(s + length, whole.steps), 1, 3) for s in range(0, whole.steps, length)]
    np.testing.assert_array_equal(np.concatenate([piece.places for piece in pieces]), at_once.places)
    assert [piece.first_step for piece in pieces] == list(range(0, whole.steps, length))


@given(LABELS, st.integers(0, 2**31), st.integers(1, 1000))
def test_an_epoch_takes_each_image_once_and_the_same_each_time(labels: np.ndarray, seed: int, epoch: int) -> None:
    one, two = (plan(labels, epoch, seed=seed) for _ in range(2))
    np.testing.assert_array_equal(np.sort(one.rows), np.arange(len(labels)))
    np.testing.assert_array_equal(one.rows, two.rows)
    np.testing.assert_array_equal(one.dropout_key, two.dropout_key)
    assert not one.repeats.any()


def test_another_epoch_or_seed_is_another_order() -> None:
    labels = np.zeros(50, np.int64)
    orders = {tuple(plan(labels, epoch, seed=seed).rows) for epoch in (1, 2, 3) for seed in (0, 1)}
    keys = {tuple(plan(labels, epoch, seed=seed).dropout_key) for epoch in (1, 2, 3) for seed in (0, 1)}
    assert len(orders) == len(keys) == 6


@given(LABELS)
def test_oversampling_makes_every_class_as_frequent_as_the_largest(labels: np.ndarray) -> None:
    drawn = plan(labels, oversample=True)
    counts = np.bincount(labels)
    assert set(np.bincount(labels[drawn.rows])[counts > 0]) == {counts.max()}
    times = np.bincount(drawn.rows, minlength=len(labels))
    for number in np.flatnonzero(counts):
        own = times[labels == number]
        assert own.min() >= 1 and own.max() - own.min() <= 1
    for row in set(drawn.rows.tolist()):  # an image's repeats are numbered in the order in which they come
        assert drawn.repeats[drawn.rows == row].tolist() == list(range(times[row]))


def test_oversampling_repeats_others_in_another_epoch() -> None:
    labels = np.array([0] * 10 + [1] * 7)
    repeated = {tuple(np.sort(plan(labels, epoch, oversample=True).rows)) for epoch in range(1, 12)}
    assert len(repeated) > 3


@given(LABELS, st.integers(2, 9))
def test_mixup_pairs_images_of_one_batch(labels: np.ndarray, batch_size: int) -> None:
    mixed = plan(labels, batch_size=batch_size, mixup=0.3)
    assert mixed.partners is not None and mixed.shares is not None
    np.testing.assert_array_equal(np.sort(mixed.partners), np.arange(len(labels)))
    np.testing.assert_array_equal(mixed.partners // batch_size, np.arange(len(labels)) // batch_size)
    assert ((mixed.shares >= 0) & (mixed.shares <= 1)).all()


def test_mixup_shares_follow_the_beta_distribution() -> None:
    alpha = 0.4
    shares = plan(np.zeros(20_000, np.int64), mixup=alpha).shares
    assert abs(shares.mean() - 0.5) < 0.01
    assert abs(shares.var() - 1 / (4 * (2 * alpha + 1))) < 0.005  # variance of Beta(a, a)


@given(st.integers(1, 12), st.integers(0, 2**40), st.integers(1, 100))
def test_over_as_many_epochs_an_image_shows_all_its_variants(variants: int, seed: int, epoch: int) -> None:
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 40)
    none = np.zeros(40, np.int64)
    shown = np.stack(
        [variants_of(keys, none, seed=seed, epoch=epoch + turn, variants=variants) for turn in range(variants)]
    )
    np.testing.assert_array_equal(np.sort(shown, axis=0), np.arange(variants)[:, None].repeat(40, 1))
    again = variants_of(keys, none + 1, seed=seed, epoch=epoch, variants=variants)
    np.testing.assert_array_equal(again, (shown[0] + 1) % variants)


def test_images_begin_with_different_variants() -> None:
    keys = np.arange(8000)
    first = variants_of(keys, np.zeros(8000, np.int64), seed=3, epoch=1, variants=8)
    assert np.bincount(first, minlength=8).min() > 900


@given(st.integers(0, 100), st.integers(1, 9))
def test_worker_rows_cover_all(rows: int, workers: int) -> None:
    stretches = [worker_rows(rows, rank, workers) for rank in range(workers)]
    assert stretches[0][0] == 0 and stretches[-1][1] == rows
    assert all(one[1] == two[0] for one, two in itertools.pairwise(stretches))
