from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ImageFailure, UsageError
from pipelines.images import golden, preprocess
from pipelines.images.decode import decode
from pipelines.images.fingerprint import difference_hash
from pipelines.images.preprocess import Preprocessing, resize


def covering(length: int, side: int) -> np.ndarray:
    """[side, length]: how much of each input pixel lies under each output pixel, rows summing to 1."""
    edges = np.arange(side + 1) * (length / side)
    starts = np.arange(length)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return np.clip(overlap, 0, None) / (length / side)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 99))
def test_shrinking_is_the_exact_mean_of_the_area(height: int, width: int, side: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = resize(pixels, side)
    assert found.shape == (side, side, 3) and found.dtype == np.uint8
    if height >= side and width >= side:
        expected = np.einsum("ij,kl,jlc->ikc", covering(height, side), covering(width, side), pixels.astype(float))
        assert np.abs(found - expected).max() <= 1
    assert found.min() >= pixels.min() and found.max() <= pixels.max()


def test_shrinking_through_floats_changes_nothing(photo: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    for width, height, side in ((512, 384, 224), (333, 222, 96), (640, 101, 224), (224, 448, 224)):
        through_floats = resize(photo(width, height), side)
        with monkeypatch.context() as patch:
            patch.setattr(preprocess, "MAX_FLOAT_SAMPLES", 0)
            assert np.array_equal(resize(photo(width, height), side), through_floats)


def test_one_side_may_shrink_while_the_other_grows() -> None:
    pixels = np.zeros((4, 64, 3), np.uint8)
    pixels[:, ::2] = 200
    # Stripes of one pixel: their mean where columns are averaged, never a sample of one of them.
    assert (resize(pixels, 16) == 100).all()


def test_prepared_holds_the_facts_of_the_file(photo: Callable, encode: Callable) -> None:
    scene = photo(300, 200)
    data = encode(scene, "PNG")
    found = Preprocessing(64).prepare(data)
    luma = (scene @ np.array([0.299, 0.587, 0.114])).mean() / 255
    assert found.pixels.shape == (64, 64, 3) and found.pixels.dtype == np.uint8
    assert found.content_sha256 == hashlib.sha256(data).hexdigest()
    assert (found.width, found.height, found.frames, found.decoder) == (300, 200, 1, "pillow")
    assert found.mean_intensity == pytest.approx(luma, abs=2 / 255)


@pytest.mark.parametrize("value", [0, 255])
def test_mean_intensity_lies_between_0_and_1(encode: Callable, value: int) -> None:
    data = encode(np.full((30, 30, 3), value, np.uint8), "PNG")
    assert Preprocessing(8).prepare(data).mean_intensity == pytest.approx(value / 255)


def test_scaled_decoding_stays_close_to_full_decoding(photo: Callable, encode: Callable) -> None:
    data = encode(photo(1024, 768), "JPEG", quality=88)
    found = Preprocessing(224).prepare(data).pixels.astype(int)
    assert np.abs(found - resize(decode(data).pixels, 224)).mean() < 1


def test_failures_pass_through() -> None:
    with pytest.raises(ImageFailure):
        Preprocessing(8).prepare(b"")


@pytest.mark.parametrize("size", [0, -1, 4097])
def test_input_sizes_are_checked(size: int) -> None:
    with pytest.raises(UsageError, match=str(size)):
        Preprocessing(size)


def test_golden_pictures_decode_to_their_pixels() -> None:
    for picture in golden.PICTURES:
        found = resize(decode(picture.file, golden.SIDE).pixels, golden.SIDE)
        assert golden.token(picture, found) == hashlib.sha256(picture.pixels).digest()


def test_the_id_bears_rounding_but_not_another_kernel() -> None:
    random = np.random.default_rng(0)
    for picture in golden.PICTURES:
        pixels = np.frombuffer(picture.pixels, np.uint8).reshape(golden.SIDE, golden.SIDE, 3)
        same = golden.token(picture, pixels)
        rounded = np.clip(pixels + (random.random(pixels.shape) < 0.1), 0, 255).astype(np.uint8)
        assert golden.token(picture, rounded) == same
        full = decode(picture.file, golden.SIDE).pixels
        rows = np.linspace(0, full.shape[0] - 1, golden.SIDE).round().astype(int)
        columns = np.linspace(0, full.shape[1] - 1, golden.SIDE).round().astype(int)
        assert golden.token(picture, full[rows][:, columns]) != same


def test_the_id_is_this_contracts_id_and_knows_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever changes this line makes every model of every hospital refuse to continue its table: on purpose only.
    assert Preprocessing(224).id == "7611073572e995d22c92c3b716f65367388ee9a1286c9b27989a4db1171862c7"
    assert Preprocessing(96).id != Preprocessing(224).id
    before = preprocess._identify.__wrapped__(224)
    monkeypatch.setitem(preprocess.CONTRACT, "alpha", "over white")
    assert preprocess._identify.__wrapped__(224) != before


def test_the_images_room_loads_neither_tensorflow_nor_ray(checkout: Path) -> None:
    code = (
        "import sys, pipelines.images.child, pipelines.images.fingerprint as f\n"
        "loaded = {'cv2', 'PIL', 'simplejpeg', 'ray', 'tensorflow', 'keras'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(checkout)})


def bits(one: bytes, two: bytes) -> int:
    return (int.from_bytes(one, "big") ^ int.from_bytes(two, "big")).bit_count()


def test_fingerprints_find_copies_and_nothing_else(photo: Callable, encode: Callable) -> None:
    def smooth(seed: int) -> np.ndarray:
        return resize(resize(photo(256, 256, seed), 12), 224)

    prints = [difference_hash(smooth(seed)) for seed in range(8)]
    assert all(len(value) == 32 for value in prints)
    for seed, value in enumerate(prints):
        copy = decode(encode(smooth(seed), "JPEG", quality=90)).pixels
        assert bits(value, difference_hash(copy)) <= 10
        assert all(bits(value, other) > 40 for other in prints if other is not value)


def test_a_fingerprint_compares_neighbours_row_by_row() -> None:
    rising = np.repeat(np.repeat(np.arange(17, dtype=np.uint8)[None, :, None] * 10, 16, axis=0), 3, axis=2)
    assert difference_hash(rising) == b"\xff" * 32
    assert difference_hash(np.ascontiguousarray(rising[:, ::-1])) == b"\x00" * 32
    half = rising.copy()
    half[8:] = half[8:, ::-1]
    assert difference_hash(half) == b"\xff" * 16 + b"\x00" * 16
