from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import ImageFailure
from pipelines.images import header as limits
from pipelines.images.decode import decode


def test_lossless_formats_give_the_drawn_pixels(photo: Callable, encode: Callable) -> None:
    scene = photo(37, 23)
    files = {
        "png": encode(scene, "PNG"),
        "interlaced": encode(scene, "PNG", interlace=1),
        "bmp": encode(scene, "BMP"),
        "webp": encode(scene, "WEBP", lossless=True),
        "tiff": encode(scene, "TIFF"),
        **{name: encode(scene, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits")},
    }
    for name, data in files.items():
        found = decode(data, 16)
        assert np.array_equal(found.pixels, scene), name
        assert (found.width, found.height, found.frames, found.decoder) == (37, 23, 1, "pillow")
        assert found.pixels.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(kind, mode) for kind in ("PNG", "GIF", "TIFF", "WEBP") for mode in ("1", "L", "P", "LA", "RGBA")]
    + [("BMP", mode) for mode in ("1", "L", "P", "RGBA")]
    + [("TIFF", "CMYK"), ("WEBP", "CMYK")],
)
def test_modes_agree_with_pillow(photo: Callable, kind: str, mode: str) -> None:
    image = Image.fromarray(photo(40, 30)).convert("RGB" if mode in ("LA", "RGBA") else mode)
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(photo(40, 30, 5)[..., 0]))
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    reopened = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGBA")).astype(float)
    expected = reopened[..., :3] * reopened[..., 3:] / 255
    assert np.abs(decode(buffer.getvalue()).pixels - expected).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_the_first_frame_is_decoded_and_all_are_counted(photo: Callable, kind: str) -> None:
    frames = [Image.fromarray(photo(32, 24, seed)) for seed in range(4)]
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **options)
    found = decode(buffer.getvalue())
    assert found.frames == 4
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        assert np.array_equal(found.pixels, np.asarray(image.convert("RGB")))


def test_a_gif_whose_clear_parts_are_black(photo: Callable) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([200, 100, 50, 10, 250, 30])
    image.paste(0, (0, 0, 8, 4))
    buffer = io.BytesIO()
    image.save(buffer, "GIF", transparency=0)
    found = decode(buffer.getvalue()).pixels
    assert (found[:4] == 0).all() and (found[4:] == (10, 250, 30)).all()


@pytest.mark.parametrize(
    ("kind", "options", "spare"),
    [
        ("GIF", {}, 0),
        ("WEBP", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "tiff_adobe_deflate"}, 0),
        ("TIFF", {"compression": "packbits"}, 0),
        ("TIFF", {"compression": "jpeg"}, 0),
        # The last row of a bitmap may lack the bytes that only fill it up.
        ("BMP", {}, 3),
    ],
)
def test_every_prefix_is_a_failure(
    photo: Callable,
    encode: Callable,
    capfd: pytest.CaptureFixture[str],
    kind: str,
    options: dict[str, object],
    spare: int,
) -> None:
    data = encode(photo(11, 9), kind, **options)
    decode(data)
    for length in range(len(data) - spare):
        with pytest.raises(ImageFailure) as failed:
            decode(data[:length])
        assert failed.value.code in ("truncated", "not_an_image"), length
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_of_other_formats_are_applied_once(photo: Callable, kind: str, orientation: int) -> None:
    stored = photo(20, 12)
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    options = {"lossless": True, "exif": exif.tobytes()} if kind == "WEBP" else {"tiffinfo": {274: orientation}}
    Image.fromarray(stored).save(buffer, kind, **options)
    turned = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1), 7: np.rot90(stored.transpose(1, 0, 2), 2), 8: np.rot90(stored, 1),
    }[orientation]  # fmt: skip
    found = decode(buffer.getvalue())
    assert np.array_equal(found.pixels, turned)
    assert (found.height, found.width) == turned.shape[:2]


def test_deep_tiff_uses_the_declared_range(photo: Callable, write_tiff: Callable) -> None:
    grey = photo(24, 18)[..., 0].astype(np.uint16) * 16
    expected = grey / 4095 * 255
    for fields in ({281: ("H", (4095,))}, {341: ("H", (4095,))}):
        found = decode(write_tiff(grey, fields))
        assert np.abs(found.pixels - expected[..., None]).max() <= 0.51
    inverted = decode(write_tiff(4095 - grey, {281: ("H", (4095,)), 262: ("H", (0,))}))
    assert np.abs(inverted.pixels - expected[..., None]).max() <= 1
    with pytest.raises(ImageFailure) as failed:
        decode(write_tiff(grey))
    assert failed.value.code == "unsupported"
    with pytest.raises(ImageFailure) as failed:
        decode(write_tiff(grey, {281: ("H", (1000,))}))
    assert failed.value.code == "unsupported"


def test_deep_colour_tiff(photo: Callable, write_tiff: Callable) -> None:
    colours = photo(24, 18).astype(np.uint16) * 257
    assert np.array_equal(decode(write_tiff(colours)).pixels, photo(24, 18))
    small = photo(24, 18).astype(np.uint16) * 16
    found = decode(write_tiff(small, {281: ("H", (4095,) * 3)}))
    assert np.abs(found.pixels - small / 4095 * 255).max() <= 0.51
    alpha = np.linspace(0, 65535, 24 * 18).astype(np.uint16).reshape(18, 24, 1)
    clear = decode(write_tiff(np.concatenate([colours, alpha], -1), {338: ("H", (2,))}))
    assert np.abs(clear.pixels - photo(24, 18) * (alpha / 65535)).max() <= 1


def test_32_bit_and_floating_point_need_a_declared_range(photo: Callable, write_tiff: Callable) -> None:
    grey = photo(24, 18)[..., 0]
    share = (grey / 255).astype(np.float32)
    whole = grey.astype(np.int32) * 1000 - 50_000
    for samples in (share, whole):
        with pytest.raises(ImageFailure) as failed:
            decode(write_tiff(samples))
        assert failed.value.code == "unsupported"
    declared = {340: ("f", (0.0,)), 341: ("f", (1.0,))}
    assert np.array_equal(decode(write_tiff(share, declared)).pixels[..., 0], grey)
    declared = {340: ("i", (-50_000,)), 341: ("i", (205_000,))}
    assert np.array_equal(decode(write_tiff(whole, declared)).pixels[..., 0], grey)
    share[0, 0] = np.nan
    with pytest.raises(ImageFailure) as failed:
        decode(write_tiff(share, {340: ("f", (0.0,)), 341: ("f", (1.0,))}))
    assert failed.value.code == "unsupported"


def test_colour_spaces_without_a_rule_are_unsupported(photo: Callable, write_tiff: Callable, encode: Callable) -> None:
    lab = write_tiff(photo(8, 8), {262: ("H", (8,))})
    odd_depth = write_tiff(photo(8, 8), {258: ("H", (7,) * 3)})
    four_of_16 = write_tiff(np.full((8, 8, 4), 40_000, np.uint16), {262: ("H", (5,))})
    for data in (lab, odd_depth, four_of_16):
        with pytest.raises(ImageFailure) as failed:
            decode(data)
        assert failed.value.code == "unsupported"


def test_tiff_pages_that_go_in_a_circle_end(photo: Callable, write_tiff: Callable) -> None:
    data = bytearray(write_tiff(photo(8, 8), pages=3))
    assert decode(bytes(data)).frames == 3
    struct.pack_into("<I", data, len(data) - 4, struct.unpack_from("<I", data, 4)[0])
    with pytest.raises(ImageFailure) as failed:
        decode(bytes(data))
    assert failed.value.code == "truncated"


def sized(kind: str, width: int, height: int, encode: Callable) -> bytes:
    """A tiny file whose header claims another size."""
    data = bytearray(encode(np.zeros((4, 4, 3), np.uint8), kind))
    if kind == "GIF":
        struct.pack_into("<HH", data, 6, width, height)
    elif kind == "BMP":
        struct.pack_into("<ii", data, 18, width, height)
    elif kind == "TIFF":
        at = struct.unpack_from("<I", data, 4)[0]
        for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
            tag = struct.unpack_from("<H", data, entry)[0]
            if tag in (256, 257):
                struct.pack_into("<HII", data, entry + 2, 4, 1, width if tag == 256 else height)
    return bytes(data)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_bombs_of_other_formats_are_refused_by_their_header(encode: Callable, kind: str) -> None:
    with pytest.raises(ImageFailure) as failed:
        decode(sized(kind, 60_000, 60_000, encode))
    assert failed.value.code == "too_large"


def test_a_webp_bomb_is_refused_by_its_header() -> None:
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\x00" * 4 + b"\xff\x3f\x00" * 2
    data = b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas
    with pytest.raises(ImageFailure) as failed:
        decode(data)
    assert failed.value.code == "too_large"


def test_a_gif_frame_cannot_enlarge_its_screen(encode: Callable) -> None:
    data = bytearray(encode(np.zeros((4, 4, 3), np.uint8), "GIF"))
    at = data.rindex(b"\x2c\x00\x00\x00\x00\x04\x00\x04\x00")
    struct.pack_into("<HHHH", data, at + 1, 65_000, 65_000, 4, 4)
    with pytest.raises(ImageFailure) as failed:
        decode(bytes(data))
    assert failed.value.code == "too_large"


def test_endless_frames_are_counted_up_to_the_limit_only(encode: Callable) -> None:
    data = encode(np.zeros((1, 1, 3), np.uint8), "GIF")
    at = data.rindex(b"\x2c\x00\x00\x00\x00")
    frame = data[at:-1]
    assert decode(data[:-1] + frame * 9 + b"\x3b").frames == 10
    with pytest.raises(ImageFailure) as failed:
        decode(data[:-1] + frame * limits.MAX_FRAMES + b"\x3b")
    assert failed.value.code == "too_large"


def test_formats_are_told_by_their_bytes() -> None:
    for data in (b"", b"\xff", b"BM", b"BMI of patients, 2024: and so on and so on", b"II", b"GIF", b"RIFF____WAVEfmt ",
                 b"%PDF-1.7", b"<svg/>", b"DICM" * 50, bytes(200)):  # fmt: skip
        with pytest.raises(ImageFailure) as failed:
            decode(data)
        assert failed.value.code == "not_an_image"


def test_dicom_is_told_as_such_also_behind_the_head_of_a_tiff() -> None:
    for preamble in (bytes(128), b"II*\x00" + bytes(124)):
        with pytest.raises(ImageFailure, match="is DICOM") as failed:
            decode(preamble + b"DICM" + bytes(500))
        assert failed.value.code == "not_an_image"
    # A file can be both: scanners of whole slides write such.
    grey = bytes(120) + b"DICM" + bytes(276)
    tags = {256: 20, 257: 20, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 20, 279: len(grey)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    both = b"II*\x00" + struct.pack("<I", 8 + len(grey)) + grey + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert both[128:132] == b"DICM" and (decode(both).width, decode(both).pixels[6, 0, 0]) == (20, ord("D"))
