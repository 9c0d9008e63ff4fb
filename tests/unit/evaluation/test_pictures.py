"""Small pictures for a report: proportions, no metadata, and heat in the right place and colours."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.errors import ImageFailure
from pipelines.evaluation.pictures import HEAT_SHARE, SIDE, Reads, encode_jpeg, fit, overlay, shrink
from pipelines.images.header import MAX_PIXELS

RNG = np.random.default_rng(3)


def file_of(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


@given(st.integers(1, 700), st.integers(1, 700))
def test_a_picture_keeps_its_proportions(width: int, height: int) -> None:
    found = shrink(file_of(np.zeros((height, width, 3), np.uint8)))
    high, wide = found.shape[:2]
    assert max(high, wide) == SIDE
    assert wide == max(1, round(SIDE * width / max(width, height)))
    assert high == max(1, round(SIDE * height / max(width, height)))


def test_nothing_moves_and_nothing_is_mirrored() -> None:
    """Four corners of four colours, in a picture twice as wide as high, turned by EXIF."""
    pixels = np.zeros((300, 600, 3), np.uint8)
    colours = {(0, 0): (255, 0, 0), (0, 1): (0, 255, 0), (1, 0): (0, 0, 255), (1, 1): (255, 255, 0)}
    for (down, across), colour in colours.items():
        pixels[down * 150 : (down + 1) * 150, across * 300 : (across + 1) * 300] = colour
    found = shrink(file_of(pixels))
    assert found.shape == (112, 224, 3)
    for (down, across), colour in colours.items():
        assert tuple(found[28 + 56 * down, 56 + 112 * across]) == colour
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: a quarter turn to the right makes it upright
    turned = shrink(file_of(np.rot90(pixels), "JPEG", quality=95, exif=exif))
    assert turned.shape == found.shape
    assert np.abs(turned.astype(int) - found).mean() < 6


def test_only_pixels_come_through() -> None:
    exif = Image.Exif()
    exif[0x010E] = "Doe, Jane 1970-01-01"
    exif[0x8298] = "St. Elsewhere"
    pixels = RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    data = file_of(pixels, "JPEG", exif=exif, comment=b"Doe again", icc_profile=b"Doe profile")
    assert b"Doe" in data
    made = encode_jpeg(shrink(data))
    assert made == encode_jpeg(shrink(data))
    assert all(word not in made for word in (b"Doe", b"Exif", b"Elsewhere", b"ICC_PROFILE", b"http"))
    with Image.open(io.BytesIO(made)) as read:
        assert (read.format, read.size, dict(read.getexif())) == ("JPEG", (224, 168), {})
        assert set(read.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert np.abs(np.asarray(read).astype(int) - shrink(data)).mean() < 12


def test_colours_are_not_exchanged() -> None:
    red = np.full((64, 64, 3), (250, 20, 30), np.uint8)
    with Image.open(io.BytesIO(encode_jpeg(red))) as read:
        np.testing.assert_allclose(np.asarray(read)[32, 32], (250, 20, 30), atol=4)


def test_the_limits_of_decoding_hold() -> None:
    side = int(MAX_PIXELS**0.5) + 10
    huge = bytearray(file_of(np.zeros((1, 1, 3), np.uint8)))
    huge[16:24] = side.to_bytes(4, "big") * 2
    for data in (b"", b"no image", bytes(huge)):
        with pytest.raises(ImageFailure):
            shrink(data)


def test_what_a_model_saw_is_only_ever_made_smaller() -> None:
    large, small = (RNG.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (448, 96))
    means = large.reshape(224, 2, 224, 2, 3).mean(axis=(1, 3))
    assert np.abs(fit(large) - means).max() <= 0.5
    np.testing.assert_array_equal(fit(small), small)


@pytest.mark.parametrize("value", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_colours_are_viridis_over_grey(value: float) -> None:
    from matplotlib import colormaps

    pixels = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    found = overlay(pixels, np.full((7, 7), value, np.float32))
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    colour = np.array(colormaps["viridis"](value)[:3]) * 255
    wanted = HEAT_SHARE * colour + (1 - HEAT_SHARE) * grey[..., None]
    assert np.abs(found - wanted).max() < 3


@pytest.mark.parametrize(("down", "across"), [(0, 0), (1, 5), (6, 3)])
def test_heat_is_laid_where_it_belongs(down: int, across: int) -> None:
    heat = np.zeros((7, 7), np.float32)
    heat[down, across] = 1
    black = np.zeros((112, 224, 3), np.uint8)
    found = overlay(black, heat).astype(float)
    grown = np.abs(found - overlay(black, np.zeros((7, 7), np.float32))).sum(axis=-1)
    assert grown.argmax() // 224 // 16 == down and grown.argmax() % 224 // 32 == across
    # Half as far as the middle of the next part it has gone.
    rows, columns = np.nonzero(grown > 0.6 * grown.max())
    assert (abs(rows - (16 * down + 8)) <= 16).all() and (abs(columns - (32 * across + 16)) <= 32).all()


def test_more_heat_is_lighter_and_no_heat_at_all_is_even() -> None:
    ramp = np.linspace(0, 1, 224, dtype=np.float32)[None].repeat(8, axis=0)
    found = overlay(np.full((8, 224, 3), 90, np.uint8), ramp)
    light = (found @ np.array([0.299, 0.587, 0.114]))[4]
    assert (np.diff(light) > -1).all() and light[-1] - light[0] > 60
    none = overlay(np.full((8, 8, 3), 90, np.uint8), np.zeros((7, 7), np.float32))
    assert len(np.unique(none.reshape(-1, 3), axis=0)) == 1


def test_reads_give_up_on_a_place_that_is_gone(tmp_path: Path) -> None:
    there = tmp_path / "there.png"
    there.write_bytes(b"here")
    digest = hashlib.sha256(b"here").hexdigest()
    reads = Reads(failures=2)
    assert reads.read_unchanged(str(there), digest) == b"here"
    assert reads.read_unchanged(str(there), "0" * 64) is None and reads.left == 1
    assert reads.read(str(tmp_path / "gone.png")) is None and reads.left == 0
    assert reads.read(str(there)) is None
