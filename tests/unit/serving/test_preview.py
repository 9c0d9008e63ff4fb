"""Previews: the pixels that scoring decodes, smaller, and nothing else of the file."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ImageFailure
from pipelines.images.decode import decode
from pipelines.serving.preview import LEAST_SIDE, MOST_SIDE, preview_png


def encoded(suffix: str, width: int, height: int, kind: type[np.unsignedinteger] = np.uint8) -> bytes:
    high = np.iinfo(kind).max
    pixels = np.random.default_rng(width * height).integers(0, high, (height, width, 3)).astype(kind)
    return bytes(cv2.imencode(suffix, pixels)[1])


def drawn(png: bytes) -> np.ndarray:
    """Pixels as OpenCV reads them, RGB."""
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]


def chunks(png: bytes) -> list[bytes]:
    found, place = [], 8
    while place < len(png):
        (length,) = struct.unpack_from(">I", png, place)
        found.append(png[place + 4 : place + 8])
        place += 12 + length
    return found


@pytest.mark.parametrize("suffix", [".tiff", ".png", ".bmp"])
def test_a_small_picture_keeps_its_pixels(suffix: str) -> None:
    file = encoded(suffix, 40, 30)
    png = preview_png(file, 64)
    assert np.array_equal(drawn(png), decode(file).pixels)
    assert set(chunks(png)) == {b"IHDR", b"IDAT", b"IEND"}


@pytest.mark.parametrize("suffix", [".tiff", ".png"])
def test_deep_samples_become_what_scoring_sees(suffix: str) -> None:
    file = encoded(suffix, 24, 20, np.uint16)
    shown = drawn(preview_png(file, 64))
    assert shown.dtype == np.uint8
    assert np.array_equal(shown, decode(file).pixels)


@settings(max_examples=10, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), side=st.integers(LEAST_SIDE, 200))
def test_the_longer_side_is_limited_and_the_shape_is_kept(width: int, height: int, side: int) -> None:
    shown = drawn(preview_png(encoded(".png", width, height), side))
    rows, columns = shown.shape[:2]
    if max(width, height) <= side:
        assert (columns, rows) == (width, height)
    else:
        assert max(rows, columns) == side
        share = side / max(width, height)
        assert abs(columns - width * share) <= 1 and abs(rows - height * share) <= 1


def test_shrinking_keeps_the_mean() -> None:
    file = encoded(".png", 256, 128)
    shown = drawn(preview_png(file, 64))
    assert shown.shape == (32, 64, 3)
    assert np.allclose(shown.mean((0, 1)), decode(file).pixels.mean((0, 1)), atol=1)


@pytest.mark.parametrize(("asked", "given"), [(0, LEAST_SIDE), (-5, LEAST_SIDE), (10**9, 64)])
def test_a_side_out_of_range_is_taken_as_the_nearest(asked: int, given: int) -> None:
    assert drawn(preview_png(encoded(".png", 64, 64), asked)).shape[:2] == (given, given)
    assert MOST_SIDE < 10**9


@pytest.mark.parametrize(("data", "code"), [(b"", "not_an_image"), (b"hello", "not_an_image")])
def test_what_is_no_picture_has_no_preview(data: bytes, code: str) -> None:
    with pytest.raises(ImageFailure) as failed:
        preview_png(data, 64)
    assert failed.value.code == code


def test_half_a_picture_has_no_preview() -> None:
    file = encoded(".png", 200, 200)
    with pytest.raises(ImageFailure) as failed:
        preview_png(file[: len(file) // 2], 64)
    assert failed.value.code == "truncated"
