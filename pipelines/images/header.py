"""What is known of an image before one pixel is decoded, and the limits that are checked on it."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import ImageFailure

MAX_BYTES = 512 * 1024 * 1024
"""Of a file: far above any single picture that is read, and little enough to be held in memory while it is decoded."""
MAX_PIXELS = 200_000_000
"""Of a picture: 600 MB as RGB; whole-slide pyramids are beyond and want tiles, not one score."""
MAX_SIDE = 65_535
"""Of a picture: JPEG's own limit."""
MAX_FRAMES = 65_535
"""In a file: frames are counted from headers, never decoded, and the counting must end."""


@dataclass(frozen=True)
class Header:
    """An image's header.

    Attributes:
        kind: `jpeg`, `png`, `gif`, `bmp`, `webp` or `tiff`.
        width: Pixels of the stored picture, before the EXIF turn.
        height: Likewise.
        frames: Frames, pages or animation steps that the file holds, at least 1.
        orientation: EXIF orientation, 1–8; 1 is upright.
    """

    kind: str
    width: int
    height: int
    frames: int = 1
    orientation: int = 1


def truncated(kind: str) -> ImageFailure:
    """The failure of a file whose data end early or are damaged."""
    return ImageFailure("truncated", f"The {kind.upper()} data end early or are damaged.")


def unsupported(kind: str, what: str) -> ImageFailure:
    """The failure of an image of a variant that cannot be read faithfully."""
    return ImageFailure("unsupported", f"This {kind.upper()} cannot be read faithfully: {what}.")


def check_size(kind: str, width: int, height: int) -> None:
    """Refuse a picture by its header alone, before memory is taken for it.

    Raises:
        ImageFailure: `truncated` without any pixel, `too_large` beyond `MAX_SIDE` or `MAX_PIXELS`.
    """
    if width < 1 or height < 1:
        raise truncated(kind)
    if width > MAX_SIDE or height > MAX_SIDE:
        raise ImageFailure("too_large", f"A side of {max(width, height)} pixels; the limit is {MAX_SIDE}.")
    if width * height > MAX_PIXELS:
        raise ImageFailure("too_large", f"{width} × {height} pixels; the limit is {MAX_PIXELS} in all.")


def check_frames(frames: int) -> None:
    """Refuse a file of endless frames while they are counted, not decoded.

    Raises:
        ImageFailure: `too_large` beyond `MAX_FRAMES`.
    """
    if frames > MAX_FRAMES:
        raise ImageFailure("too_large", f"More than {MAX_FRAMES} frames.")


def sniff(data: bytes) -> str | None:
    """The format by the first bytes, never by a suffix; None for what is not read."""
    for kind, beginnings in _BEGINNINGS.items():
        if data.startswith(beginnings):
            return kind
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    return "bmp" if _is_bitmap(data[:18]) else None


_BEGINNINGS = {
    "jpeg": (b"\xff\xd8\xff",),
    "png": (b"\x89PNG\r\n\x1a\n",),
    "gif": (b"GIF87a", b"GIF89a"),
    "tiff": (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),
}


def _is_bitmap(head: bytes) -> bool:
    # "BM" alone also begins plain text: the size of the information header must be one that exists.
    return head.startswith(b"BM") and head[14:18] in {bytes([size, 0, 0, 0]) for size in (12, 40, 52, 56, 64, 108, 124)}
