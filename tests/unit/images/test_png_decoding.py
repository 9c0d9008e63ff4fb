from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import ImageFailure
from pipelines.images import png
from pipelines.images.decode import decode

PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}


def unfiltered(raw: memoryview, rows: int, stride: int, step: int) -> list[bytearray]:
    """The PNG filters, byte by byte from the specification."""
    before, out = bytearray(stride), []
    for row in range(rows):
        kind, line = raw[row * (stride + 1)], bytearray(raw[row * (stride + 1) + 1 : (row + 1) * (stride + 1)])
        for i in range(stride):
            a = line[i - step] if i >= step else 0
            b, c = before[i], before[i - step] if i >= step else 0
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            line[i] = (line[i] + (0, a, b, (a + b) // 2, paeth)[kind]) & 255
        before = line
        out.append(line)
    return out


def read_deep_png(data: bytes) -> tuple[np.ndarray, dict[bytes, bytes]]:
    """Samples of a 16-bit PNG as uint16 [H, W, C], and its chunks: a reader independent of every decoder."""
    chunks: dict[bytes, bytes] = {}
    position = 8
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        chunks[name] = chunks.get(name, b"") + data[position + 8 : position + 8 + length]
        position += length + 12
    width, height, _, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    step = 2 * CHANNELS[colour]
    raw = memoryview(zlib.decompress(chunks[b"IDAT"]))
    samples = np.zeros((height, width, CHANNELS[colour]), np.uint16)
    for left, top, across, down in PASSES if interlaced else ((0, 0, 1, 1),):
        part = samples[top::down, left::across]
        rows, columns = part.shape[:2]
        if rows and columns:
            lines = unfiltered(raw, rows, columns * step, step)
            part[...] = np.frombuffer(b"".join(lines), ">u2").reshape(part.shape)
            raw = raw[rows * (columns * step + 1) :]
    return samples, chunks


def expected_of_deep(data: bytes) -> np.ndarray:
    samples, chunks = read_deep_png(data)
    wide = samples.astype(np.float64)
    colours = wide[..., :1].repeat(3, axis=2) if wide.shape[2] < 3 else wide[..., :3]
    if wide.shape[2] in (2, 4):
        colours = colours * (wide[..., -1:] / 65535)
    elif b"tRNS" in chunks:
        key = np.frombuffer(chunks[b"tRNS"], ">u2")
        colours = np.where((samples == key).all(axis=-1, keepdims=True), 0, colours)
    return colours / 65535 * 255


def suite(shared_data: Path) -> list[Path]:
    return sorted((shared_data / "odd_images").rglob("*.png"))


def test_png_suite_corrupt_files_fail_and_all_others_decode(
    shared_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = suite(shared_data)
    assert len(files) > 100
    for file in files:
        data = file.read_bytes()
        if file.name.startswith("x"):
            with pytest.raises(ImageFailure):
                decode(data)
        else:
            assert decode(data).pixels.shape[0] > 0, file.name
    assert capfd.readouterr() == ("", "")


def test_png_suite_of_8_bits_agrees_with_pillow(shared_data: Path) -> None:
    for file in suite(shared_data):
        data = file.read_bytes()
        keyed_below_8_bits = data[25] in (0, 2) and data[24] < 8 and b"tRNS" in data
        if file.name.startswith("x") or data[24] == 16 or keyed_below_8_bits or b"CgBI" in data:
            continue
        samples = np.asarray(Image.open(file).convert("RGBA")).astype(float)
        expected = samples[..., :3] * samples[..., 3:] / 255
        assert np.abs(decode(data).pixels - expected).max() <= 2, file.name


def test_png_suite_of_16_bits_agrees_with_an_own_reader(shared_data: Path) -> None:
    files = [file for file in suite(shared_data) if file.read_bytes()[24] == 16 and b"CgBI" not in file.read_bytes()]
    assert len(files) > 20
    for file in files:
        data = file.read_bytes()
        found = decode(data)
        assert found.decoder == "opencv"
        assert np.abs(found.pixels - expected_of_deep(data)).max() <= 1, file.name


def test_pictures_for_phones_are_the_same_pictures(shared_data: Path) -> None:
    folder = shared_data / "odd_images"
    for file in sorted((folder / "iphone").iterdir()):
        original = next(folder.rglob(file.name.removeprefix("iphone_")), None)
        found = decode(file.read_bytes())
        if original is not None:
            assert np.abs(found.pixels.astype(int) - decode(original.read_bytes()).pixels).max() <= 2, file.name


def test_a_transparent_grey_below_8_bits_is_black(shared_data: Path) -> None:
    data = (shared_data / "odd_images" / "primary" / "tbbn0g04.png").read_bytes()
    pixels = decode(data).pixels
    stored = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    key = struct.unpack(">H", data[data.index(b"tRNS") + 4 :][:2])[0] * 17
    assert (pixels[stored == key] == 0).all()
    assert np.array_equal(pixels[stored != key][:, 0], stored[stored != key])


@pytest.mark.parametrize("depth", [8, 16])
def test_every_prefix_is_a_failure(photo: Callable, write_png: Callable, depth: int) -> None:
    samples = photo(9, 7).astype(np.uint16) * (257 if depth == 16 else 1)
    data = write_png(samples, 2, depth)
    for length in range(len(data)):
        with pytest.raises(ImageFailure) as failed:
            decode(data[:length])
        assert failed.value.code == ("truncated" if length >= 8 else "not_an_image")
    assert decode(data + b"garbage").pixels.shape == (7, 9, 3)


@pytest.mark.parametrize("depth", [8, 16])
def test_samples_that_end_early_in_whole_chunks_are_a_failure(photo: Callable, write_png: Callable, depth: int) -> None:
    samples = photo(9, 7).astype(np.uint16) * (257 if depth == 16 else 1)
    raw = b"".join(b"\x00" + row.astype(">u2" if depth == 16 else np.uint8).tobytes() for row in samples)
    whole = zlib.compress(raw)
    wrong_filter = zlib.compress(b"\x07" + raw[1:])
    for stream in (zlib.compress(raw[:-1]), whole[: len(whole) // 2], whole[:-8], b"", b"\x00" * 20, wrong_filter):
        with pytest.raises(ImageFailure) as failed:
            decode(write_png(samples, 2, depth, stream=stream))
        assert failed.value.code == "truncated"


def twelve_bits(photo: Callable) -> np.ndarray:
    return (photo(24, 18).astype(np.uint16) * 16 + 7) % 4096


def test_twelve_bits_without_a_declared_range_are_refused(photo: Callable, write_png: Callable) -> None:
    with pytest.raises(ImageFailure) as failed:
        decode(write_png(twelve_bits(photo), 2, 16))
    assert failed.value.code == "unsupported"
    assert "1/16" in failed.value.message


def test_declared_twelve_bits_are_scaled_by_their_range(photo: Callable, write_png: Callable) -> None:
    samples = twelve_bits(photo)
    expected = samples / 4095 * 255
    low = decode(write_png(samples, 2, 16, [(b"sBIT", bytes([12] * 3))]))
    assert np.abs(low.pixels - expected).max() <= 0.51
    # As the specification wants it: stretched to 16 bits, by zeros or by repeating the leading bits.
    for high in (samples << 4, samples << 4 | samples >> 8):
        stretched = decode(write_png(high, 2, 16, [(b"sBIT", bytes([12] * 3))]))
        assert np.abs(stretched.pixels - expected).max() <= 1.5


def test_a_dark_picture_that_is_stretched_as_specified_stays_dark(photo: Callable, write_png: Callable) -> None:
    values = photo(24, 18).astype(np.uint16) * 8  # 14-bit values that use an eighth of their range
    dark = values << 2 | values >> 12
    found = decode(write_png(dark, 2, 16, [(b"sBIT", bytes([14] * 3))]))
    assert np.abs(found.pixels - dark / 65535 * 255).max() <= 0.51


def test_a_sixteenth_of_the_range_is_enough_and_less_is_not(write_png: Callable) -> None:
    for top, fits in ((4096, True), (4095, False)):
        samples = np.linspace(0, top, 64).astype(np.uint16).reshape(8, 8, 1)
        data = write_png(samples, 0, 16)
        if fits:
            assert int(decode(data).pixels.max()) == 16
        else:
            with pytest.raises(ImageFailure):
                decode(data)


def test_16_bit_grey_with_alpha_and_with_a_key(write_png: Callable) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    both = np.stack([ramp, ramp[::-1]], -1)
    found = decode(write_png(both, 4, 16)).pixels
    assert np.abs(found[..., 0] - ramp / 65535 * (ramp[::-1] / 65535) * 255).max() <= 1
    key = int(ramp[3, 3])
    keyed = decode(write_png(ramp[..., None], 0, 16, [(b"tRNS", struct.pack(">H", key))])).pixels
    assert (keyed[3, 3] == 0).all() and (keyed[3, 4] > 0).all()


def test_animated_png_counts_its_frames(photo: Callable, encode: Callable) -> None:
    frames = [Image.fromarray(photo(20, 12, seed)) for seed in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    found = decode(buffer.getvalue())
    assert found.frames == 3
    assert np.array_equal(found.pixels, photo(20, 12, 0))


def test_exif_in_png_turns_the_picture(photo: Callable, encode: Callable) -> None:
    scene = photo(20, 12)
    exif = Image.Exif()
    exif[274] = 6
    data = encode(np.ascontiguousarray(np.rot90(scene, 1)), "PNG", exif=exif.tobytes())
    found = decode(data)
    assert (found.width, found.height) == (20, 12)
    assert np.array_equal(found.pixels, scene)


@pytest.mark.parametrize(("side", "other"), [(65_536, 1), (20_000, 20_000), (2**31, 2**31)])
def test_bombs_are_refused_by_their_header(write_png: Callable, side: int, other: int) -> None:
    data = bytearray(write_png(np.zeros((1, 1, 1), np.uint8), 0, 8))
    struct.pack_into(">II", data, 16, side, other)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    with pytest.raises(ImageFailure) as failed:
        decode(bytes(data))
    assert failed.value.code == "too_large"


def test_illegal_headers_are_refused(write_png: Callable) -> None:
    legal = {
        (c, d)
        for c, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items()
        for d in depths
    }
    for colour, depth in itertools.product(range(8), (0, 1, 2, 3, 4, 8, 16, 32)):
        if (colour, depth) not in legal:
            with pytest.raises(ImageFailure) as failed:
                decode(write_png(np.zeros((4, 4, 1), np.uint8), colour, depth))
            assert failed.value.code == "unsupported"


def test_row_starts_of_interlaced_pictures_follow_the_passes() -> None:
    starts, total = png._row_starts(5, 3, 16, True)
    rows = []
    offset = 0
    for left, top, across, down in PASSES:
        columns, count = len(range(left, 5, across)), len(range(top, 3, down))
        for _ in range(count if columns else 0):
            rows.append(offset)
            offset += 1 + 2 * columns
    assert (starts.tolist(), total) == (rows, offset)
