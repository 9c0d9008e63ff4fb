"""Pictures and files that the tests of `pipelines.images` draw for themselves."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

Picture = np.ndarray


@pytest.fixture(scope="session")
def photo() -> Callable[..., Picture]:
    """Draw a seeded textured picture: uint8 [height, width, 3]."""

    def draw(width: int, height: int, seed: int = 0) -> Picture:
        random = np.random.default_rng(seed)
        coarse = random.uniform(20, 235, (5, 5, 3))
        smooth = ndimage.zoom(coarse, (height / 5, width / 5, 1), order=1, mode="nearest", grid_mode=True)
        return np.clip(smooth + random.normal(0, 6, (height, width, 1)), 0, 255).astype(np.uint8)

    return draw


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Encode a picture with Pillow: `encode(pixels, "JPEG", mode="L", quality=90)`."""

    def write(pixels: Picture, kind: str, mode: str | None = None, **options: object) -> bytes:
        image = Image.fromarray(pixels)
        buffer = io.BytesIO()
        (image if mode is None else image.convert(mode)).save(buffer, kind, **options)
        return buffer.getvalue()

    return write


@pytest.fixture(scope="session")
def write_png() -> Callable[..., bytes]:
    """Write a PNG by hand, unfiltered: `write_png(samples, colour=2, depth=16, chunks=[(b"sBIT", …)])`."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    def write(
        samples: Picture,
        colour: int,
        depth: int,
        chunks: list[tuple[bytes, bytes]] | None = None,
        stream: bytes | None = None,
    ) -> bytes:
        height, width = samples.shape[:2]
        rows = samples.astype(">u2" if depth == 16 else np.uint8)
        raw = b"".join(b"\x00" + rows[row].tobytes() for row in range(height))
        parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), *(chunks or [])]
        parts += [(b"IDAT", zlib.compress(raw) if stream is None else stream), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)

    return write


@pytest.fixture(scope="session")
def write_tiff() -> Callable[..., bytes]:
    """Write an uncompressed one-strip TIFF by hand, with any further fields: `{tag: (type letter, values)}`."""

    def write(
        samples: Picture, fields: dict[int, tuple[str, tuple[float, ...]]] | None = None, pages: int = 1
    ) -> bytes:
        height, width = samples.shape[:2]
        channels = 1 if samples.ndim == 2 else samples.shape[2]
        pixels = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
        bits = samples.dtype.itemsize * 8
        number = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
        wanted: dict[int, tuple[str, tuple[float, ...]]] = {
            256: ("I", (width,)), 257: ("I", (height,)), 258: ("H", (bits,) * channels), 259: ("H", (1,)),
            262: ("H", (2 if channels >= 3 else 1,)), 273: ("I", (8,)), 277: ("H", (channels,)), 278: ("I", (height,)),
            279: ("I", (len(pixels),)), 284: ("H", (1,)), 339: ("H", (number,) * channels), **(fields or {}),
        }  # fmt: skip
        body = bytearray(b"II*\x00" + struct.pack("<I", 0) + pixels)
        link = 4
        for _ in range(pages):
            entries = b""
            for tag, (letter, values) in sorted(wanted.items()):
                packed = struct.pack(f"<{len(values)}{letter}", *values)
                if len(packed) > 4:
                    place, inline = len(body), b""
                    body += packed
                    inline = struct.pack("<I", place)
                else:
                    inline = packed.ljust(4, b"\x00")
                kind = {"H": 3, "I": 4, "h": 8, "i": 9, "f": 11}[letter]
                entries += struct.pack("<HHI", tag, kind, len(values)) + inline
            struct.pack_into("<I", body, link, len(body))
            body += struct.pack("<H", len(wanted)) + entries + struct.pack("<I", 0)
            link = len(body) - 4
        return bytes(body)

    return write
