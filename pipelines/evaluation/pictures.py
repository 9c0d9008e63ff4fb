"""Small pictures for a report: the image itself, and the image with a heat map laid over it.

Only pixels go in: no metadata of a file, no colour profile and no thumbnail finds its way into a report.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ImageFailure
from pipelines.images.header import MAX_BYTES
from pipelines.images.members import load_cv2
from pipelines.images.preprocess import Preprocessing, resize
from pipelines.storage.reading import ImageReader

SIDE = 224
"""Pixels of a picture's longer side."""
QUALITY = 80
HEAT_SHARE = 0.5
"""Of the colours in an overlay; the rest is the picture in grey."""

Bytes = NDArray[np.uint8]


class Reads:
    """Reads images for pictures, and gives up on a place that does not answer: no report waits for a lost share.

    Attributes:
        left: How many further files may fail. One that storage does not give after all its tries has cost many seconds,
            and counts `SLOW` times.
    """

    SLOW = 25

    def __init__(self, failures: int = 50) -> None:
        self.left = failures
        self._reader = ImageReader(MAX_BYTES)

    def read(self, uri: str) -> bytes | None:
        """An image's bytes; None where it cannot be read, and once too many could not.

        Args:
            uri: A canonical image URI.
        """
        if self.left <= 0:
            return None
        try:
            return self._reader.read(uri).data
        except ImageFailure as failure:
            self.left -= self.SLOW if failure.code == "storage" else 1
            return None

    def read_unchanged(self, uri: str, content_sha256: str) -> bytes | None:
        """An image's bytes if they are still those that were judged; None otherwise.

        What has these bytes was decoded before without harm, so that it can be decoded here, outside the decoding
        process.

        Args:
            uri: A canonical image URI.
            content_sha256: Of the bytes that were judged, 64 hexadecimal digits.
        """
        data = self.read(uri)
        if data is None or hashlib.sha256(data).hexdigest() == content_sha256:
            return data
        self.left -= 1
        return None


def shrink(data: bytes) -> Bytes:
    """A file's picture at `SIDE` pixels, upright and in its own proportions; smaller ones are enlarged.

    Args:
        data: The whole file.

    Returns:
        uint8 `[h, w, 3]` RGB, the longer side `SIDE`.

    Raises:
        ImageFailure: As `Preprocessing.prepare`.
    """
    prepared = Preprocessing(SIDE).prepare(data)
    scale = SIDE / max(prepared.width, prepared.height)
    size = max(1, round(prepared.width * scale)), max(1, round(prepared.height * scale))
    cv2 = load_cv2()
    shrunk: Bytes = cv2.resize(prepared.pixels, size, interpolation=cv2.INTER_AREA)
    return shrunk


def fit(pixels: Bytes) -> Bytes:
    """A square picture that a model saw, no larger than `SIDE`.

    Args:
        pixels: uint8 `[S, S, 3]`.

    Returns:
        uint8 `[s, s, 3]`, s the smaller of S and `SIDE`.
    """
    return resize(pixels, min(SIDE, len(pixels)))


def overlay(pixels: Bytes, heat: NDArray[np.float32]) -> Bytes:
    """A picture in grey under the colours of a heat map, from dark violet (0) over green to yellow (1).

    The colours are viridis (Smith and van der Walt, 2015): equal steps of heat look equal, with and without colour
    vision, and it grows lighter all the way, so that a print in grey is read the same.

    Args:
        pixels: uint8 `[h, w, 3]` RGB.
        heat: `[m, n]`, 0-1; each value belongs to the middle of its part of the picture.

    Returns:
        uint8 `[h, w, 3]` RGB.
    """
    cv2 = load_cv2()
    height, width = pixels.shape[:2]
    spread = cv2.resize(heat.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    steps = np.rint(np.clip(spread, 0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(steps, cv2.COLORMAP_VIRIDIS)[..., ::-1]
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    mixed: Bytes = np.rint(HEAT_SHARE * colours + (1 - HEAT_SHARE) * grey).astype(np.uint8)
    return mixed


def encode_jpeg(pixels: Bytes) -> bytes:
    """A picture as a JPEG file without metadata; the same pixels give the same bytes.

    Args:
        pixels: uint8 `[h, w, 3]` RGB.
    """
    cv2 = load_cv2()
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return bytes(encoded.tobytes())
