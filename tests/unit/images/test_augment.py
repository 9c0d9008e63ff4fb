"""Moved pictures against NumPy's exact turns and SciPy's affine transform, and what is drawn against its limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, stats

from pipelines.images.augment import FILLS, FLIPS, Augmentation, Movement, image_key, warp

SIDE = 48
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
SCIPY_MODES = {"nearest": "nearest", "reflect": "reflect", "wrap": "grid-wrap", "constant": "grid-constant"}
PUBLISHED = Augmentation(rotation=20, shift=0.1, shear=0.1, zoom=0.2, flip="both", fill="nearest")


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(
    ("movement", "expected"),
    [
        (Movement(), NOISE),
        (Movement(mirrored=True), NOISE[:, ::-1]),
        (Movement(upside_down=True), NOISE[::-1]),
        (Movement(degrees=90), np.rot90(NOISE)),
        (Movement(degrees=-90), np.rot90(NOISE, -1)),
        (Movement(degrees=180), NOISE[::-1, ::-1]),
    ],
)
def test_whole_turns_and_mirrors_are_exact(movement: Movement, expected: np.ndarray, fill: str) -> None:
    np.testing.assert_array_equal(warp(NOISE, movement, fill), expected)


def test_a_shift_by_whole_pixels_is_exact_and_filled() -> None:
    moved = Movement(right=5 / SIDE, down=-3 / SIDE)
    rolled = np.roll(NOISE, (-3, 5), (0, 1))
    np.testing.assert_array_equal(warp(NOISE, moved, "wrap"), rolled)
    black = rolled.copy()
    black[-3:], black[:, :5] = 0, 0
    np.testing.assert_array_equal(warp(NOISE, moved, "constant"), black)
    edge = np.pad(NOISE, ((0, 3), (5, 0), (0, 0)), "edge")[3:, :SIDE]
    np.testing.assert_array_equal(warp(NOISE, moved, "nearest"), edge)
    mirrored = np.pad(NOISE, ((0, 3), (5, 0), (0, 0)), "symmetric")[3:, :SIDE]
    np.testing.assert_array_equal(warp(NOISE, moved, "reflect"), mirrored)


@pytest.mark.parametrize("fill", FILLS)
@given(key=st.integers(0, 2**40))
def test_every_movement_is_scipys_affine_transform(fill: str, key: int) -> None:
    movement = Augmentation(180, 0.5, 0.5, 0.9, "both", fill).draw((key,))
    matrix = movement.matrix(SIDE)
    # SciPy counts rows first.
    linear, offset = matrix[::-1, 1::-1], matrix[::-1, 2]
    expected = np.stack(
        [
            ndimage.affine_transform(NOISE[..., channel].astype(float), linear, offset, order=1, mode=SCIPY_MODES[fill])
            for channel in range(3)
        ],
        axis=-1,
    )
    difference = np.abs(warp(NOISE, movement, fill) - expected)
    # Half a step of rounding; and where a coordinate falls on a whole pixel, either neighbour may be taken.
    assert difference.mean() < 0.3 and (difference > 1.0).mean() < 0.001


def test_directions_are_those_that_are_documented() -> None:
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    picture[20:28, 30:34] = 255  # right of the middle

    def centre(movement: Movement) -> tuple[float, float]:
        moved = warp(picture, movement, "constant")[..., 0].astype(float)
        down, across = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
        return float((across * moved).sum() / moved.sum()), float((down * moved).sum() / moved.sum())

    x, y = centre(Movement())
    assert (x, y) == pytest.approx((8, 0), abs=0.01)
    assert centre(Movement(degrees=45)) == pytest.approx((8 * np.cos(np.pi / 4), -8 * np.sin(np.pi / 4)), abs=0.05)
    assert centre(Movement(right=0.1, down=0.2)) == pytest.approx((8 + 4.8, 9.6), abs=0.05)
    assert centre(Movement(across=0.5))[0] == pytest.approx(16, abs=0.05)
    assert centre(Movement(along=2, across=2))[0] == pytest.approx(4, abs=0.05)
    lower = np.roll(picture, 10, axis=0)
    moved = warp(lower, Movement(shear=0.3), "constant")[..., 0]
    assert np.argwhere(moved)[:, 1].mean() - np.argwhere(lower[..., 0])[:, 1].mean() == pytest.approx(3, abs=0.3)


def test_each_movement_is_drawn_evenly_between_its_limits() -> None:
    drawn = [PUBLISHED.draw((3, number)) for number in range(4000)]
    limits = {"degrees": (-20, 20), "right": (-0.1, 0.1), "down": (-0.1, 0.1), "shear": (-0.1, 0.1)}
    limits |= {"across": (0.8, 1.2), "along": (0.8, 1.2)}
    values = {name: np.array([getattr(one, name) for one in drawn]) for name in limits}
    for name, (low, high) in limits.items():
        assert low <= values[name].min() and values[name].max() <= high
        assert stats.kstest(values[name], "uniform", (low, high - low)).pvalue > 0.001
    correlations = np.corrcoef(np.stack(list(values.values())))
    assert np.abs(correlations - np.eye(6)).max() < 0.06
    for name in ("mirrored", "upside_down"):
        assert stats.binomtest(sum(getattr(one, name) for one in drawn), 4000).pvalue > 0.001


@given(st.tuples(st.integers(0, 2**31), st.integers(0, 1000), st.integers(0, 2**64 - 1)))
def test_the_key_alone_decides(key: tuple[int, int, int]) -> None:
    first = PUBLISHED.apply(NOISE, key)
    PUBLISHED.apply(NOISE, (1, 2, 3))
    np.testing.assert_array_equal(PUBLISHED.apply(NOISE, key), first)
    assert first.shape == NOISE.shape and first.dtype == np.uint8 and first.flags.c_contiguous
    assert not np.shares_memory(first, NOISE)
    for other in ((key[0] + 1, *key[1:]), (key[0], key[1] + 1, key[2])):
        assert PUBLISHED.draw(other) != PUBLISHED.draw(key)
    # A limit that is taken away leaves the other movements as they were.
    calmer = Augmentation(rotation=20, zoom=0.2, flip="horizontal").draw(key)
    wilder = PUBLISHED.draw(key)
    assert (calmer.degrees, calmer.across, calmer.mirrored) == (wilder.degrees, wilder.across, wilder.mirrored)
    assert (calmer.right, calmer.shear, calmer.upside_down) == (0, 0, False)


@pytest.mark.parametrize(("flip", "mirrored", "upside_down"), zip(FLIPS, (0, 1, 0, 1), (0, 0, 1, 1), strict=True))
def test_a_flip_mirrors_only_what_it_names(flip: str, mirrored: int, upside_down: int) -> None:
    drawn = [Augmentation(flip=flip).draw((number,)) for number in range(64)]
    assert any(one.mirrored for one in drawn) == bool(mirrored)
    assert any(one.upside_down for one in drawn) == bool(upside_down)


def test_what_moves_nothing_says_so() -> None:
    assert not Augmentation().active and not Augmentation(fill="wrap").active
    np.testing.assert_array_equal(Augmentation().apply(NOISE, (7,)), NOISE)
    assert all(one.active for one in (Augmentation(rotation=1), Augmentation(flip="vertical"), Augmentation(zoom=0.1)))
    for wrong in ({"flip": "sideways"}, {"fill": "white"}):
        with pytest.raises(ValueError):
            Augmentation(**wrong)  # type: ignore[arg-type]


def test_a_copy_of_an_image_has_its_key() -> None:
    assert image_key("00000000000000ff" + "a" * 48) == 255
    assert 0 <= image_key("f" * 64) < 2**64
