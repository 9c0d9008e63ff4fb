"""PNG: chunks are checked here, so that the decoders only meet whole files without anything to warn about."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

import numpy as np

from pipelines.images.header import Header, check_frames, check_size, truncated, unsupported
from pipelines.images.ifd import exif_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
_DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
_USED = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"sBIT", b"eXIf", b"acTL"}
# Adam7: first column, first row, column step, row step of each pass (PNG specification, section 8.2).
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE = 1 << 20


@dataclass(frozen=True)
class PngHeader(Header):
    """A PNG's header and the chunks that matter.

    Attributes:
        depth: Bits a sample: 1, 2, 4, 8, 16.
        colour: PNG colour type.
        interlaced: True for Adam7.
        significant: sBIT of the colour channels, the largest; 0 where none is declared.
        key: The one transparent colour of grey and RGB pictures, in stored samples; empty where there is none.
        for_phones: True for Apple's private variant: BGR(A), colours already multiplied by alpha.
        plain: The same picture as a file without ancillary chunks.
        stream: The compressed samples.
    """

    depth: int = 8
    colour: int = RGB
    interlaced: bool = False
    significant: int = 0
    key: tuple[int, ...] = ()
    for_phones: bool = False
    plain: bytes = field(default=b"", repr=False)
    stream: bytes = field(default=b"", repr=False)


def read_png(data: bytes) -> PngHeader:
    """Check every chunk that is used and read the header.

    Raises:
        ImageFailure: `truncated`, `unsupported` or `too_large`.
    """
    chunks = _Chunks(data)
    width, height, depth, colour, interlace = chunks.head
    frames = chunks.frames
    key: tuple[int, ...] = ()
    transparency = chunks.first.get(b"tRNS", b"")
    if colour in (GREY, RGB) and len(transparency) == 2 * _CHANNELS[colour]:
        key = struct.unpack(f">{_CHANNELS[colour]}H", transparency)
    stream = b"".join(chunks.stream)
    if chunks.for_phones:
        if depth == 16:
            raise unsupported("png", "Apple's private variant with 16 bits a sample")
        stream = _common_stream(stream, _row_starts(width, height, depth * _CHANNELS[colour], bool(interlace))[1])
    parts = [(b"IHDR", chunks.first[b"IHDR"])]
    if colour == PALETTE:
        if not 3 <= len(chunks.first.get(b"PLTE", b"")) <= 768:
            raise truncated("png")
        parts.append((b"PLTE", chunks.first[b"PLTE"]))
        if transparency:
            parts.append((b"tRNS", transparency[:256]))
    parts += [(b"IDAT", stream), (b"IEND", b"")]
    significant = max(chunks.first.get(b"sBIT", b"\x00")[: 1 if colour in (GREY, GREY_ALPHA) else 3], default=0)
    return PngHeader(
        "png", width, height, frames, exif_orientation(chunks.first.get(b"eXIf", b"")),
        depth, colour, bool(interlace), significant, key, chunks.for_phones,
        SIGNATURE + b"".join(map(_chunk, parts)), stream,
    )  # fmt: skip


def _common_stream(stream: bytes, expected: int) -> bytes:
    """Apple's private variant for iPhones leaves the frame of the compressed stream out: put it back.

    Its other peculiarity, samples as premultiplied BGRA, is `decode`'s to undo.
    """
    try:
        samples = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream, expected)
    except zlib.error as error:
        raise truncated("png") from error
    return zlib.compress(samples, 1)


def _chunk(part: tuple[bytes, bytes]) -> bytes:
    name, body = part
    return b"".join((struct.pack(">I", len(body)), name, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))))


class _Chunks:
    """The chunks of one file, checked: first body of each used name, the pieces of the stream."""

    def __init__(self, data: bytes) -> None:
        self.first: dict[bytes, bytes] = {}
        self.stream: list[memoryview] = []
        self.head = (0, 0, 0, 0, 0)
        self.for_phones = False
        view, position, name = memoryview(data), len(SIGNATURE), b""
        while name != b"IEND":
            if position + 12 > len(data):
                raise truncated("png")
            length, name = struct.unpack_from(">I4s", data, position)
            end = position + 8 + length
            if end + 4 > len(data):
                raise truncated("png")
            self._take(name, view[position + 8 : end], int.from_bytes(view[end : end + 4], "big"))
            position = end + 4
        if not self.stream:
            raise truncated("png")

    def _take(self, name: bytes, body: memoryview, checksum: int) -> None:
        if name == b"CgBI" and not self.first:
            self.for_phones = True
            return
        if not self.first and name != b"IHDR":
            raise truncated("png")
        if name not in _USED:
            if not name[0] & 0x20:
                raise unsupported("png", "a critical chunk that no specification knows")
            return
        if zlib.crc32(body, zlib.crc32(name)) != checksum:
            raise truncated("png")
        if name == b"IDAT":
            self.stream.append(body)
        else:
            self.first.setdefault(name, bytes(body))
        if name == b"IHDR":
            # Before anything else of the file is looked at: the limits.
            self.head = _read_head(self.first[name])

    @property
    def frames(self) -> int:
        control = self.first.get(b"acTL", b"")
        frames = int.from_bytes(control[:4], "big") if len(control) == 8 else 1
        check_frames(frames)
        return max(frames, 1)


def _read_head(body: bytes) -> tuple[int, int, int, int, int]:
    if len(body) != 13:
        raise truncated("png")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", body)
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise unsupported("png", "its header holds values that the specification does not allow")
    check_size("png", width, height)
    return width, height, depth, colour, interlace


def check_stream(header: PngHeader) -> None:
    """Inflate the samples piece by piece and look at their number and at every row's filter.

    OpenCV answers a short stream with a half picture, so it is only given files that pass.

    Raises:
        ImageFailure: `truncated`.
    """
    bits = header.depth * _CHANNELS[header.colour]
    starts, expected = _row_starts(header.width, header.height, bits, header.interlaced)
    inflater, rest, offset = zlib.decompressobj(), header.stream, 0
    try:
        while offset < expected:
            piece = inflater.decompress(rest, min(_PIECE, expected - offset))
            rest = inflater.unconsumed_tail
            if not piece:
                raise truncated("png")
            first, last = np.searchsorted(starts, (offset, offset + len(piece)))
            filters = np.frombuffer(piece, np.uint8)[starts[first:last] - offset]
            if filters.size and int(filters.max()) > 4:
                raise truncated("png")
            offset += len(piece)
    except zlib.error as error:
        raise truncated("png") from error


def _row_starts(width: int, height: int, bits: int, interlaced: bool) -> tuple[np.ndarray, int]:
    """Where each row's filter byte lies in the inflated samples of `bits` a pixel, and how many bytes there are."""
    rows, offset = [], 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, count = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and count > 0:
            stride = 1 + -(-columns * bits // 8)
            rows.append(offset + stride * np.arange(count, dtype=np.int64))
            offset += stride * count
    return np.concatenate(rows), offset
