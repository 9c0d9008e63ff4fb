"""The three decoders of the fallback chain, loaded on first use and kept silent.

Each function turns bytes into samples and lets its library's errors through; `decode` sorts them. All are told to
leave EXIF turns, gamma and colour profiles alone: one rule of ours serves all of them.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pipelines.images.samples import Bytes, inverted_cmyk_to_rgb, over_black

Samples = npt.NDArray[Any]


class UnknownVariant(Exception):
    """A decoder does not know this variant of its format: nothing is damaged."""


@cache
def load_cv2() -> ModuleType:
    """OpenCV with one thread (an actor has one core) and without its log."""
    import cv2

    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


@cache
def _load_simplejpeg() -> ModuleType:
    import simplejpeg

    return cast(ModuleType, simplejpeg)


@cache
def load_pillow() -> tuple[ModuleType, ModuleType]:
    """Pillow's modules `Image` and `ImageFile`."""
    from PIL import Image, ImageFile

    return Image, ImageFile


_STDERR = threading.Lock()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Send file descriptor 2 to nowhere: libjpeg, libpng and libtiff print from C and offer no other way.

    Only rare variants are decoded inside, so other threads hardly ever lose a line by it.
    """
    with _STDERR, contextlib.ExitStack() as stack:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            # What Python still holds back was said before and must not be lost; a daemon may have no stderr at all.
            sys.stderr.flush()
        try:
            kept = os.dup(2)
        except OSError:
            kept = -1
        if kept >= 0:
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        yield


def simplejpeg_jpeg(data: bytes, width: int, height: int, components: int, factor: int) -> Bytes:
    """A JPEG by simplejpeg, strict: each of libjpeg's warnings is an error.

    Args:
        data: The whole file.
        width: As stored.
        height: As stored.
        components: 1, 3 or 4.
        factor: 1, 2, 4 or 8; the sides become `ceil(side / factor)`.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        ValueError: With libjpeg's message.
    """
    least = {} if factor == 1 else {"min_height": -(-height // factor), "min_width": -(-width // factor)}
    space = "CMYK" if components == 4 else "RGB"
    pixels = _load_simplejpeg().decode_jpeg(data, colorspace=space, strict=True, **least)
    return inverted_cmyk_to_rgb(pixels) if components == 4 else cast(Bytes, pixels)


def opencv_jpeg(data: bytes, factor: int) -> Bytes | None:
    """A JPEG by OpenCV, which cannot tell a half picture: only for files that `jpeg.check_whole` has passed.

    Returns:
        uint8 [H, W, 3] RGB, or None where OpenCV gives up.
    """
    cv2 = load_cv2()
    scaled = cv2.IMREAD_COLOR if factor == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{factor}")
    with silenced():
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), scaled | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if pixels is None else cast(Bytes, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def opencv_deep(data: bytes) -> Samples | None:
    """A picture of 16 bits a sample by OpenCV, as stored.

    Returns:
        uint16 [H, W] or [H, W, 3 or 4] in the order RGB(A), or None where OpenCV gives up.
    """
    cv2 = load_cv2()
    with silenced():
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.ndim == 2:
        return cast("Samples | None", samples)
    order = [2, 1, 0, 3][: samples.shape[2]]
    return cast(Samples, samples[..., order])


@contextlib.contextmanager
def _opened(data: bytes, kind: str) -> Iterator[Any]:
    """The file in Pillow, restricted to one format, whole or not at all, without warnings."""
    pillow, files = load_pillow()
    # Our own limits were checked on the header; Pillow's would warn in between.
    pillow.MAX_IMAGE_PIXELS = None  # type: ignore[attr-defined]
    files.LOAD_TRUNCATED_IMAGES = False  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = pillow.open(io.BytesIO(data), formats=[kind])
        except pillow.UnidentifiedImageError as error:
            raise UnknownVariant from error
        with image:
            yield image


def pillow_jpeg(data: bytes, width: int, height: int, factor: int) -> Bytes:
    """A JPEG by Pillow: only for files that `jpeg.check_whole` has passed.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    with _opened(data, "JPEG") as image:
        if factor > 1:
            # Pillow scales by the largest power of two that fits into the quotient of the sides.
            image.draft(image.mode, (width // factor, height // factor))
        image.load()
        if image.mode == "CMYK":
            return inverted_cmyk_to_rgb(255 - np.asarray(image))
        return np.asarray(image.convert("RGB"))


def pillow_picture(data: bytes, kind: str, *, multiplied: bool = False) -> Bytes:
    """The first frame of any other format of up to 8 bits a sample by Pillow, composited over black.

    Args:
        data: The whole file.
        kind: Pillow's name of the format.
        multiplied: True where the colours are already multiplied by alpha, which is what black behind them gives.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        UnknownVariant: For a colour space without a rule, such as Lab.
    """
    with _opened(data, kind) as image:
        image.load()
        if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
            samples = np.asarray(image.convert("RGBA"))
            return samples[..., :3] if multiplied else over_black(samples[..., :3], samples[..., 3])
        if image.mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"):
            raise UnknownVariant
        return np.asarray(image.convert("RGB"))


def pillow_deep(data: bytes, kind: str) -> Samples:
    """A grey picture of more than 8 bits a sample by Pillow, as stored.

    Returns:
        [H, W] of uint16, int32 or float32.

    Raises:
        UnknownVariant: Where Pillow would reduce it to 8 bits.
    """
    with _opened(data, kind) as image:
        image.load()
        if image.mode not in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
            raise UnknownVariant
        return np.asarray(image)
