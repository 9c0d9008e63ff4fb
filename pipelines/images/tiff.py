"""TIFF: the directory's numbers, where the strips lie, and what range the samples declare."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from pipelines.images.header import Header, check_frames, check_size, truncated, unsupported
from pipelines.images.ifd import ORIENTATION_TAG, Damaged, Directory, read_directory, read_layout

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, SAMPLES, STRIP_BYTES, MAX_SAMPLE, PLANES = 273, 277, 279, 281, 284
TILE_OFFSETS, TILE_BYTES, EXTRA_SAMPLES, SAMPLE_FORMAT, SMIN_SAMPLE, SMAX_SAMPLE = 324, 325, 338, 339, 340, 341
OLD_JPEG = 6
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


@dataclass(frozen=True)
class TiffHeader(Header):
    """A TIFF's first directory.

    Attributes:
        bits: Bits a sample.
        samples: Samples a pixel.
        sample_format: 1 unsigned, 2 signed, 3 floating point.
        photometric: TIFF's number: 0 white is zero, 1 black is zero, 2 RGB, …
        alpha: 0 none, 1 already multiplied into the colours, 2 not multiplied.
        low: The declared smallest sample, 0 where none is.
        high: The declared largest sample; None where none is.
        plain: The same file set upright, and deep grey set to black is zero, so that no decoder turns what is turned
            here: their versions differ in that.
    """

    bits: int = 8
    samples: int = 1
    sample_format: int = UNSIGNED
    photometric: int = BLACK_IS_ZERO
    alpha: int = 0
    low: float = 0.0
    high: float | None = None
    plain: bytes = field(default=b"", repr=False)


def read_tiff_header(data: bytes) -> TiffHeader:
    """Read the first directory and count the others.

    Raises:
        ImageFailure: `truncated`, `unsupported` or `too_large`.
    """
    try:
        layout = read_layout(data)
        directory = read_directory(data, layout, layout.first)
        width, height = directory.number(data, WIDTH, 0), directory.number(data, HEIGHT, 0)
        check_size("tiff", width, height)
        _check_strips(data, directory)
        return _header(data, directory, width, height, _count_pages(data, directory))
    except Damaged as error:
        raise truncated("tiff") from error


def _header(data: bytes, directory: Directory, width: int, height: int, pages: int) -> TiffHeader:
    bits = directory.numbers(data, BITS) or (1,)
    formats = directory.numbers(data, SAMPLE_FORMAT) or (UNSIGNED,)
    if len(set(bits)) > 1 or len(set(formats)) > 1:
        raise unsupported("tiff", "its channels differ in depth or kind")
    samples = directory.number(data, SAMPLES, 1)
    extra = directory.numbers(data, EXTRA_SAMPLES)
    if bits[0] > 8 and samples > 1 and directory.number(data, PLANES, 1) != 1:
        raise unsupported("tiff", "more than 8 bits a sample in separate planes")
    orientation = directory.number(data, ORIENTATION_TAG, 1)
    low, high = _declared_range(data, directory, int(formats[0]))
    if directory.number(data, COMPRESSION, 1) == OLD_JPEG:
        raise unsupported("tiff", "JPEG compression of the withdrawn kind")
    return TiffHeader(
        "tiff", width, height, pages, orientation if 1 <= orientation <= 8 else 1,
        bits=int(bits[0]), samples=samples, sample_format=int(formats[0]),
        photometric=directory.number(data, PHOTOMETRIC, BLACK_IS_ZERO),
        alpha=int(extra[0]) if extra and extra[0] in (1, 2) else 0,
        low=low, high=high, plain=_without_turns(data, directory, deep_grey=bits[0] > 8 and samples == 1),
    )  # fmt: skip


def _declared_range(data: bytes, directory: Directory, sample_format: int) -> tuple[float, float | None]:
    """(smallest, largest) declared sample: MaxSampleValue, else the pair of SMin- and SMaxSampleValue.

    MinSampleValue is no lower bound: the specification calls it statistics, and writers mean it so.
    """
    highest = directory.numbers(data, SMAX_SAMPLE)
    lowest = directory.numbers(data, SMIN_SAMPLE)
    if highest and (lowest or sample_format == UNSIGNED):
        return float(min(lowest, default=0)), float(max(highest))
    plain = directory.numbers(data, MAX_SAMPLE)
    if plain and sample_format == UNSIGNED:
        return 0.0, float(max(plain))
    return 0.0, None


def _check_strips(data: bytes, directory: Directory) -> None:
    """Every strip or tile must lie in the file: decoders fill a missing one with black."""
    tiled = TILE_OFFSETS in directory.entries
    offsets = directory.numbers(data, TILE_OFFSETS if tiled else STRIP_OFFSETS)
    sizes = directory.numbers(data, TILE_BYTES if tiled else STRIP_BYTES)
    if not offsets or len(offsets) != len(sizes):
        raise Damaged
    begin, size = np.asarray(offsets, np.float64), np.asarray(sizes, np.float64)
    if float((begin + size).max()) > len(data) or float(size.min()) <= 0:
        raise Damaged


def _count_pages(data: bytes, first: Directory) -> int:
    pages, seen, following = 1, {first.layout.first}, first.following
    while following:
        if following in seen:
            raise Damaged
        seen.add(following)
        pages += 1
        check_frames(pages)
        following = read_directory(data, first.layout, following).following
    return pages


def _without_turns(data: bytes, directory: Directory, deep_grey: bool) -> bytes:
    changed = {ORIENTATION_TAG: 1, PHOTOMETRIC: BLACK_IS_ZERO} if deep_grey else {ORIENTATION_TAG: 1}
    copy = bytearray(data)
    for tag, value in changed.items():
        entry = directory.entries.get(tag)
        if entry is not None and entry.kind == 3:
            struct.pack_into(directory.layout.order + "H", copy, entry.at, value)
    return bytes(copy)
