"""A perceptual fingerprint that finds copies of a picture after re-encoding or resizing."""

from __future__ import annotations

import numpy as np

from pipelines.images.members import load_cv2
from pipelines.images.samples import Bytes

SIDE = 16


def difference_hash(pixels: Bytes) -> bytes:
    """The 256-bit difference hash (dHash): is each cell of a 16 × 17 thumbnail darker than its right neighbour?

    Args:
        pixels: uint8 [H, W, 3] RGB.

    Returns:
        32 bytes, row by row, the first comparison in the highest bit. True copies differ in at most 10 bits.
    """
    cv2 = load_cv2()
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    thumbnail = cv2.resize(grey, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA)
    return np.packbits(thumbnail[:, :-1] < thumbnail[:, 1:]).tobytes()
