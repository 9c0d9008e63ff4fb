from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import ImageFailure
from pipelines.images import jpeg, members
from pipelines.images.decode import decode

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "4:2:0": ("RGB", {"subsampling": 2}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "4:4:4": ("RGB", {"subsampling": 0}),
    "kept as RGB": ("RGB", {"keep_rgb": True}),
    "progressive": ("RGB", {"progressive": True}),
    "restarts": ("RGB", {"restart_marker_blocks": 3}),
    "grey": ("L", {}),
    "progressive grey": ("L", {"progressive": True}),
    "CMYK": ("CMYK", {}),
}


@pytest.fixture(params=VARIANTS, scope="module")
def variant(request: pytest.FixtureRequest, photo: Callable, encode: Callable) -> Callable[[int, int], bytes]:
    mode, options = VARIANTS[request.param]
    return lambda width, height: encode(photo(width, height), "JPEG", mode=mode, quality=88, **options)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(131, 97), (64, 48)])
def test_the_members_of_the_chain_give_the_same_pixels(variant: Callable, size: tuple[int, int], factor: int) -> None:
    data = variant(*size)
    header = jpeg.read_jpeg_header(data)
    assert (header.width, header.height) == size
    one = members.simplejpeg_jpeg(data, *size, header.components, factor)
    two = members.opencv_jpeg(data, factor)
    three = members.pillow_jpeg(data, *size, factor)
    assert two is not None
    assert one.shape == two.shape == three.shape == (-(-size[1] // factor), -(-size[0] // factor), 3)
    assert np.abs(one.astype(int) - two).max() <= 2
    assert np.abs(one.astype(int) - three).max() <= 2


def test_what_is_decoded_is_the_picture(variant: Callable, photo: Callable, encode: Callable) -> None:
    found = decode(variant(131, 97))
    reference = np.asarray(Image.open(io.BytesIO(variant(131, 97))).convert("RGB")).astype(int)
    assert (found.width, found.height, found.frames, found.decoder) == (131, 97, 1, "simplejpeg")
    assert np.abs(found.pixels - reference).max() <= 2


def test_every_prefix_is_a_failure_and_trailing_bytes_are_not(variant: Callable) -> None:
    data = variant(33, 25)
    for length in range(len(data)):
        for target in (None, 8):
            with pytest.raises(ImageFailure) as failed:
                decode(data[:length], target)
            assert failed.value.code == ("truncated" if length >= 3 else "not_an_image")
    whole = decode(data).pixels
    for rest in (b"\x00", b"\xff", b"trailing garbage" * 9):
        assert np.array_equal(decode(data + rest).pixels, whole)


def test_every_prefix_fails_the_walk_that_guards_opencv_and_pillow(variant: Callable) -> None:
    data = variant(33, 25)
    jpeg.check_whole(data, jpeg.read_jpeg_header(data))
    header = jpeg.read_jpeg_header(data)
    for length in range(header.scan, len(data)):
        with pytest.raises(ImageFailure) as failed:
            jpeg.check_whole(data[:length], header)
        assert failed.value.code == "truncated"


@pytest.mark.parametrize(
    ("size", "target", "factor"),
    [((1024, 768), 224, 2), ((1024, 768), None, 1), ((1792, 1792), 224, 8), ((1791, 1791), 224, 8),
     ((1784, 1784), 224, 4), ((448, 447), 224, 2), ((447, 446), 224, 1), ((447, 446), 223, 2),
     ((15, 15), 1, 1), ((16, 16), 1, 8),
     ((4000, 300), 224, 1)],
)  # fmt: skip
def test_the_scaled_decode_rule(size: tuple[int, int], target: int | None, factor: int) -> None:
    # 1784 / 8 = 223 is below the target, 1791 / 8 is rounded up to 224.
    assert jpeg.scale_factor(*size, target) == factor


def test_scaled_pixels_are_never_below_the_target(photo: Callable, encode: Callable) -> None:
    data = encode(photo(333, 201), "JPEG")
    for target in (1, 25, 26, 50, 51, 100, 101, 201, 500):
        found = decode(data, target)
        assert min(found.pixels.shape[:2]) >= min(target, 201)
        assert (found.width, found.height) == (333, 201)


def with_exif(data: bytes, orientation: int, order: str) -> bytes:
    mark = b"II*\x00" if order == "<" else b"MM\x00*"
    block = mark + struct.pack(order + "I", 8) + struct.pack(order + "HHHIHHI", 1, 274, 3, 1, orientation, 0, 0)
    body = b"Exif\x00\x00" + block
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def stored_as(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores, by the EXIF table: where row 0 and column 0 of the stored picture lie in the scene."""
    transposed = pixels.transpose(1, 0, 2)
    stored = {
        1: pixels, 2: np.fliplr(pixels), 3: np.rot90(pixels, 2), 4: np.flipud(pixels),
        5: transposed, 6: np.rot90(pixels, 1), 7: np.rot90(transposed, 2), 8: np.rot90(pixels, -1),
    }  # fmt: skip
    return np.ascontiguousarray(stored[orientation])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_turn_gives_the_same_picture(
    photo: Callable, encode: Callable, orientation: int, order: str
) -> None:
    scene = photo(96, 64)
    stored = encode(stored_as(scene, orientation), "JPEG", quality=100, subsampling=0)
    found = decode(with_exif(stored, orientation, order))
    assert (found.width, found.height) == (96, 64)
    assert np.abs(found.pixels.astype(int) - scene).max() <= 6
    with Image.open(io.BytesIO(with_exif(stored, orientation, order))) as image:
        assert image.getexif()[274] == orientation


@pytest.mark.parametrize("family", ["Landscape", "Portrait"])
def test_real_photos_in_all_eight_turns(shared_data, family: str) -> None:
    pictures = [decode((shared_data / "odd_images" / "exif" / f"{family}_{n}.jpg").read_bytes()) for n in range(1, 9)]
    first = pictures[0].pixels.astype(int)
    for other in pictures[1:]:
        assert other.pixels.shape == first.shape
        assert np.abs(other.pixels - first).mean() < 4


def test_damaged_exif_does_not_matter(photo: Callable, encode: Callable) -> None:
    data = encode(photo(40, 30), "JPEG")
    for block in (b"", b"II*\x00", b"II*\x00\xff\xff\xff\xff", b"MM\x00*\x00\x00\x00\x08\xff\xff"):
        body = b"Exif\x00\x00" + block
        found = decode(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:])
        assert found.pixels.shape == (30, 40, 3)


def flat_jpeg(luma_sampling: int, blocks: int, components: int = 3) -> bytes:
    """A mid-grey JPEG written by hand: every block is two zero bits, 'no difference' and 'end of block'."""
    across, down = luma_sampling >> 4, luma_sampling & 15
    frame = struct.pack(">BHHB", 8, 8 * down, 8 * across * blocks, components)
    frame += b"".join(bytes([n + 1, luma_sampling if n == 0 else 0x11, 0]) for n in range(components))
    one_code = bytes([1] + [0] * 15 + [0])
    bits = 2 * (across * down + components - 1) * blocks
    padding = -bits % 8
    scan = bytes((bits + padding) // 8 - 1) + bytes([(1 << padding) - 1])
    parts = [
        (0xDB, bytes([0]) + bytes([1] * 64)),
        (0xC0, frame),
        (0xC4, bytes([0x00]) + one_code + bytes([0x10]) + one_code),
        (0xDA, bytes([components]) + b"".join(bytes([n + 1, 0]) for n in range(components)) + bytes([0, 63, 0])),
    ]
    body = b"".join(bytes([0xFF, marker]) + struct.pack(">H", len(part) + 2) + part for marker, part in parts)
    return b"\xff\xd8" + body + scan + b"\xff\xd9"


def test_a_sampling_that_simplejpeg_does_not_know_goes_to_the_next_member() -> None:
    usual, odd = flat_jpeg(0x21, 3), flat_jpeg(0x31, 3)
    assert decode(usual).decoder == "simplejpeg"
    found = decode(odd)
    assert found.decoder == "opencv"
    assert found.pixels.shape == (8, 72, 3)
    assert int(np.ptp(found.pixels)) == 0 and abs(int(found.pixels[0, 0, 0]) - 128) <= 1
    assert np.array_equal(found.pixels, members.pillow_jpeg(odd, 72, 8, 1))
    for length in range(3, len(odd)):
        with pytest.raises(ImageFailure) as failed:
            decode(odd[:length])
        assert failed.value.code == "truncated"


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda frame: b"\x0c" + frame[1:], "unsupported"),
        (lambda frame: frame[:1] + b"\x00\x00" + frame[3:], "unsupported"),
        (lambda frame: frame[:1] + b"\xff\xff\xff\xff" + frame[5:], "too_large"),
        (lambda frame: frame[:3] + b"\x00\x00" + frame[5:], "truncated"),
        (lambda frame: frame[:5] + b"\x02" + frame[6:], "unsupported"),
    ],
)
def test_the_frame_is_judged_before_decoding(edit: Callable[[bytes], bytes], code: str) -> None:
    data = flat_jpeg(0x11, 2)
    start = data.index(b"\xff\xc0") + 4
    with pytest.raises(ImageFailure) as failed:
        decode(data[:start] + edit(data[start : start + 15]) + data[start + 15 :])
    assert failed.value.code == code


def test_lossless_coding_is_unsupported() -> None:
    with pytest.raises(ImageFailure) as failed:
        decode(flat_jpeg(0x11, 2).replace(b"\xff\xc0", b"\xff\xc3"))
    assert failed.value.code == "unsupported"


def test_a_scan_cut_in_the_middle_is_no_half_picture(photo: Callable, encode: Callable) -> None:
    data = encode(photo(160, 120), "JPEG", quality=88)
    scan = jpeg.read_jpeg_header(data).scan
    cut = data[: (scan + len(data)) // 2].rstrip(b"\xff") + b"\xff\xd9"
    with pytest.raises(ImageFailure) as failed:
        decode(cut)
    assert failed.value.code == "truncated"
