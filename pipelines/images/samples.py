"""Arithmetic on samples: deep samples to 8 bits, alpha, CMYK and the EXIF turn. Pure functions, no decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import ImageFailure

Bytes = npt.NDArray[np.uint8]

# A deep picture whose samples span less than this share of their range would come out black (or white).
SMALLEST_SHARE = 16


def deep_to_eight(values: npt.NDArray[Any], low: float, high: float) -> Bytes:
    """The bit-depth rule: `round(255 × (v − low) / (high − low))`, halves upwards.

    Args:
        values: Samples of any number type and shape.
        low: The sample that becomes 0.
        high: The sample that becomes 255.

    Returns:
        uint8 of the same shape.

    Raises:
        ImageFailure: `unsupported` where the range is empty, samples are not finite or leave it, or where they
            span less than a sixteenth of it: black with a confident number would be worse.
    """
    if not high > low:
        raise ImageFailure("unsupported", "The declared range of the samples is empty.")
    smallest, largest = float(values.min()), float(values.max())
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        raise ImageFailure("unsupported", "The samples are not all finite numbers.")
    if smallest < low or largest > high:
        raise ImageFailure("unsupported", "The samples leave the range that the file declares.")
    if (largest - smallest) * SMALLEST_SHARE < high - low:
        raise ImageFailure(
            "unsupported",
            f"The picture uses less than 1/{SMALLEST_SHARE} of its range: samples from {smallest:g} to {largest:g} "
            f"of {low:g} to {high:g}; without a declared range it would be almost one colour.",
        )
    if values.dtype == np.uint16:
        table = np.arange(int(largest) + 1, dtype=np.float64)
        eight: Bytes = _scaled(table, low, high)[values]
        return eight
    return _scaled(values.astype(np.float64), low, high)


def _scaled(values: npt.NDArray[np.float64], low: float, high: float) -> Bytes:
    share = (np.maximum(values, low) - low) * (255.0 / (high - low)) + 0.5
    return np.floor(share).astype(np.uint8)


def png_range(values: npt.NDArray[np.uint16], significant: int) -> int:
    """The largest sample that a 16-bit PNG declares.

    With sBIT = s the specification wants samples stretched to the full range; many writers of 12-bit pictures leave
    them as they are. Samples count as left as they are when none exceeds `2^s − 1` and at least one is not what
    stretching (by zeros or by repeating the leading bits) would have made.

    Args:
        values: Colour samples, uint16.
        significant: sBIT, 0 where none is declared.

    Returns:
        65535, or `2^s − 1`.
    """
    full = 65_535
    if not 0 < significant < 16:
        return full
    declared = (1 << significant) - 1
    if int(values.max()) > declared:
        return full
    shift = 16 - significant
    leading = values >> shift
    stretched = leading << shift
    repeated = stretched | (stretched >> significant)
    step = significant * 2
    while step < 16:
        repeated |= stretched >> step
        step += significant
    as_specified = bool(np.all((values == stretched) | (values == repeated)))
    return full if as_specified else declared


def over_black(colours: Bytes, alpha: Bytes) -> Bytes:
    """The alpha rule: composite over black, `round(colour × alpha / 255)`.

    Args:
        colours: uint8 [H, W, 3].
        alpha: uint8 [H, W].

    Returns:
        uint8 [H, W, 3].
    """
    if int(alpha.min()) == 255:
        return colours
    product = colours.astype(np.uint16) * alpha[..., None]
    return ((product + 127) // 255).astype(np.uint8)


def inverted_cmyk_to_rgb(samples: Bytes) -> Bytes:
    """CMYK as JPEG files hold it (Adobe's convention: 255 is no ink) to RGB, without a colour profile.

    Args:
        samples: uint8 [H, W, 4].

    Returns:
        uint8 [H, W, 3]: `round(C × K / 255)` and so on.
    """
    return over_black(samples[..., :3], samples[..., 3])


def turned(pixels: Bytes, orientation: int) -> Bytes:
    """The picture upright.

    Args:
        pixels: uint8 [H, W, 3] as stored.
        orientation: EXIF orientation 1–8.

    Returns:
        uint8, contiguous; 5 to 8 exchange height and width.
    """
    if orientation == 1:
        return np.ascontiguousarray(pixels)
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
