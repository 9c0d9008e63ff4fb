"""GIF, BMP and WebP: sizes and frames from the headers, without decoding."""

from __future__ import annotations

import struct

from pipelines.images.header import Header, check_frames, check_size, truncated, unsupported
from pipelines.images.ifd import exif_orientation


def read_gif_header(data: bytes) -> Header:
    """Walk through every block of a GIF to its trailer.

    Raises:
        ImageFailure: `truncated` where the blocks do not end in a trailer, `too_large`.
    """
    if len(data) < 13:
        raise truncated("gif")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    check_size("gif", width, height)
    position, frames = 13 + _colours(flags), 0
    while True:
        introducer = data[position : position + 1]
        if introducer == b"\x3b" and frames:
            return Header("gif", width, height, frames)
        if introducer == b"\x21":
            position = _skip_blocks(data, position + 2)
        elif introducer == b"\x2c" and position + 10 <= len(data):
            left, top, columns, rows, flags = struct.unpack_from("<HHHHB", data, position + 1)
            # Decoders enlarge the screen for a frame that leaves it, so the frame counts too.
            check_size("gif", max(width, left + columns), max(height, top + rows))
            frames += 1
            check_frames(frames)
            position = _skip_blocks(data, position + 11 + _colours(flags))
        else:
            raise truncated("gif")


def _colours(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _skip_blocks(data: bytes, position: int) -> int:
    end = len(data)
    while position < end:
        size = data[position]
        position += size + 1
        if size == 0:
            return position
    raise truncated("gif")


def read_bmp_header(data: bytes) -> Header:
    """Read a bitmap's information header.

    Raises:
        ImageFailure: `truncated`, `unsupported` (embedded JPEG or PNG), `too_large`.
    """
    if len(data) < 26:
        raise truncated("bmp")
    if struct.unpack_from("<I", data, 10)[0] >= len(data):
        raise truncated("bmp")
    if data[14] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        if len(data) < 54:
            raise truncated("bmp")
        width, height = struct.unpack_from("<ii", data, 18)
        if struct.unpack_from("<I", data, 30)[0] not in (0, 1, 2, 3, 6):
            raise unsupported("bmp", "its compression is not read")
    check_size("bmp", width, abs(height))
    return Header("bmp", width, abs(height))


def read_webp_header(data: bytes) -> Header:
    """Walk through a WebP's chunks.

    Raises:
        ImageFailure: `truncated` where the file is shorter than it says, `unsupported`, `too_large`.
    """
    if len(data) < 30 or struct.unpack_from("<I", data, 4)[0] + 8 > len(data):
        raise truncated("webp")
    size = _webp_size(data)
    check_size("webp", *size)
    end, position, frames, orientation = struct.unpack_from("<I", data, 4)[0] + 8, 12, 0, 1
    while position + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, position)
        if position + 8 + length > end:
            raise truncated("webp")
        if name == b"ANMF":
            frames += 1
            check_frames(frames)
        elif name == b"EXIF":
            orientation = exif_orientation(data[position + 8 : position + 8 + length])
        position += 8 + length + (length & 1)
    return Header("webp", *size, max(frames, 1), orientation)


def _webp_size(data: bytes) -> tuple[int, int]:
    name = data[12:16]
    if name == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if name == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if name == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise truncated("webp")
