"""A picture that a browser cannot draw, as a PNG made in memory."""

from __future__ import annotations

import numpy as np

from pipelines.errors import ImageFailure
from pipelines.images.decode import decode
from pipelines.images.members import load_cv2

LEAST_SIDE, MOST_SIDE = 16, 4096
"""Pixels of a preview's longer side that can be asked for."""
# Little time rather than few bytes: the picture goes over one connection, once.
_COMPRESSION = 1


def preview_png(data: bytes, side: int) -> bytes:
    """Decode as scoring does, shrink and encode; a picture that is small enough keeps its pixels.

    What is shown is therefore what the model is given before it is stretched to a square: upright, over black, deep
    samples in their declared range. Only pixels go into the PNG, nothing of the file's metadata.

    Args:
        data: A whole file.
        side: The most pixels of the longer side; taken as `LEAST_SIDE` below it and as `MOST_SIDE` above.

    Returns:
        A PNG of 8-bit RGB.

    Raises:
        ImageFailure: As `decode.decode`.
    """
    side, cv2 = min(max(side, LEAST_SIDE), MOST_SIDE), load_cv2()
    try:
        pixels = decode(data, side).pixels
        height, width = pixels.shape[:2]
        share = side / max(height, width)
        if share < 1:
            smaller = (max(1, round(width * share)), max(1, round(height * share)))
            pixels = np.asarray(cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA), np.uint8)
        _, png = cv2.imencode(".png", pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, _COMPRESSION])
    except MemoryError as error:
        raise ImageFailure("too_large", "There was not enough memory to decode the image.") from error
    return bytes(png)
