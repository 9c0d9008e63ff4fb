"""JPEG: the header, the scaled-decode rule, and proof that the file is whole."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import ImageFailure
from pipelines.images.header import Header, check_size, truncated, unsupported
from pipelines.images.ifd import exif_orientation

# The factors that libjpeg's scaled decode has in simplejpeg, OpenCV and Pillow alike. simplejpeg also knows
# eighths such as 3/8; measured, they gain 2 % and the members would no longer give the same pixels.
FACTORS = (8, 4, 2)
# Below this side rounding makes several scales alike, and there is nothing to gain.
MIN_SIDE_TO_SCALE = 16
# Each further scan of a progressive file decodes the whole picture again: an old way to stall a decoder.
MAX_SCANS = 500

_SOF_READ = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_SOF_OTHER = {0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF}
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1


@dataclass(frozen=True)
class JpegHeader(Header):
    """A JPEG's header: also its components (1 grey, 3 colour, 4 CMYK or YCCK) and where the first scan begins."""

    components: int = 3
    scan: int = 0


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Read the segments before the first scan.

    Raises:
        ImageFailure: `truncated`, `unsupported` or `too_large`.
    """
    position, orientation, frame = 2, 0, None
    while True:
        marker, position = _next_marker(data, position)
        if marker in _STANDALONE:
            continue
        if marker == _EOI:
            raise truncated("jpeg")
        body, end = _segment(data, position)
        if marker == _SOS:
            break
        if marker in _SOF_OTHER:
            raise unsupported("jpeg", "lossless and hierarchical coding are not read")
        if marker in _SOF_READ:
            if frame is not None:
                raise truncated("jpeg")
            frame = _frame(data[body:end], marker)
        elif marker == _APP1 and not orientation and data[body : body + 6] == b"Exif\x00\x00":
            orientation = exif_orientation(data[body:end])
        position = end
    if frame is None:
        raise truncated("jpeg")
    width, height, components, progressive = frame
    if progressive and data.count(b"\xff\xda") > MAX_SCANS:
        raise unsupported("jpeg", f"more than {MAX_SCANS} scans")
    return JpegHeader("jpeg", width, height, 1, orientation or 1, components, position)


def _next_marker(data: bytes, position: int) -> tuple[int, int]:
    if data[position : position + 1] != b"\xff":
        raise truncated("jpeg")
    while data[position : position + 1] == b"\xff":
        position += 1
    if position >= len(data):
        raise truncated("jpeg")
    return data[position], position + 1


def _segment(data: bytes, position: int) -> tuple[int, int]:
    length = int.from_bytes(data[position : position + 2], "big")
    if length < 2 or position + length > len(data):
        raise truncated("jpeg")
    return position + 2, position + length


def _frame(body: bytes, marker: int) -> tuple[int, int, int, bool]:
    if len(body) < 6:
        raise truncated("jpeg")
    precision, components = body[0], body[5]
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    if precision != 8:
        raise unsupported("jpeg", f"{precision} bits a sample, where 8 are read")
    if components not in (1, 3, 4):
        raise unsupported("jpeg", f"{components} components")
    if height == 0 and width > 0:
        raise unsupported("jpeg", "the height is only given after the picture")
    check_size("jpeg", width, height)
    return width, height, components, marker in (0xC2, 0xCA)


def scale_factor(width: int, height: int, target: int | None) -> int:
    """The scaled-decode rule: the largest of 8, 4, 2 that leaves both sides at least `target`, else 1."""
    if target is None or min(width, height) < MIN_SIDE_TO_SCALE:
        return 1
    return next((factor for factor in FACTORS if min(-(-width // factor), -(-height // factor)) >= target), 1)


def check_whole(data: bytes, header: JpegHeader) -> None:
    """Walk through every scan to the end-of-image marker.

    OpenCV and Pillow fill what is missing with grey and say nothing, so they are only given files that pass.

    Raises:
        ImageFailure: `truncated` if the marker is missing or a segment does not lie in the file.
    """
    position = header.scan
    while True:
        marker, position = _next_marker(data, _end_of_scan(data, position))
        if marker == _EOI:
            return
        if marker not in _STANDALONE:
            _, position = _segment(data, position)


def _end_of_scan(data: bytes, position: int) -> int:
    """The place of the next marker that is neither a stuffed 0xFF nor a restart."""
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 1 >= len(data):
            raise truncated("jpeg")
        following = data[position + 1]
        if following == 0xFF:
            position += 1
        elif following == 0 or 0xD0 <= following <= 0xD7:
            position += 2
        else:
            return position


def failure_of(message: str) -> ImageFailure | None:
    """Sort an error of the strict decoder: damage is a failure, a variant it does not know is None (try the next).

    Args:
        message: simplejpeg's error text, which is libjpeg-turbo's and holds nothing of the file's metadata.
    """
    variant = ("subsampling", "Unsupported", "not supported", "unsupported", "colorspace", "color space", "conversion")
    return None if any(word in message for word in variant) else truncated("jpeg")
