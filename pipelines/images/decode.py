"""Bytes to pixels: total, limited before memory is taken, and with the same answer from every decoder of the chain.

| format | decoders, in order |
|---|---|
| JPEG | simplejpeg; OpenCV and Pillow for variants that it does not know |
| PNG, TIFF with 16 bits and several channels | OpenCV |
| everything else | Pillow |

Rules that are part of `preprocessing_id`: the scaled-decode rule (`jpeg.scale_factor`), the bit-depth rule
(`samples.deep_to_eight`), transparency composited over black, CMYK without profile, EXIF orientation applied, colour
profiles and gamma ignored, the first frame of several. A file must be whole: whatever ends early or is damaged fails.
Bytes after the end of an image do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.errors import ImageFailure
from pipelines.images import containers, jpeg, members, png, tiff
from pipelines.images.header import MAX_BYTES, Header, sniff, truncated, unsupported
from pipelines.images.samples import Bytes, deep_to_eight, over_black, png_range, turned


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded picture.

    Attributes:
        pixels: uint8 [H, W, 3] RGB, upright, contiguous; a JPEG's may be 2, 4 or 8 times smaller than the original.
        width: Pixels of the original, upright.
        height: Likewise.
        frames: Frames or pages in the file; `pixels` is the first.
        decoder: `simplejpeg`, `opencv` or `pillow`.
    """

    pixels: Bytes
    width: int
    height: int
    frames: int
    decoder: str


def decode(data: bytes, target: int | None = None) -> Decoded:
    """Decode any bytes.

    Args:
        data: A whole file.
        target: The side in pixels to which the caller will shrink the picture; lets a JPEG be decoded smaller, never
            below `target` on either side. None decodes in full.

    Returns:
        The picture.

    Raises:
        ImageFailure: `not_an_image`, `unsupported`, `truncated` or `too_large`; nothing else for any bytes.
    """
    try:
        return _decoded(data, target)
    except ImageFailure as failure:
        if failure.code == "too_large" or data[128:132] != b"DICM":
            raise
        # What is before its own mark may be the head of a TIFF without the rest.
        raise ImageFailure("not_an_image", "The file is DICOM: export it as PNG, JPEG or TIFF.") from failure


def _decoded(data: bytes, target: int | None) -> Decoded:
    kind = sniff(data)
    if kind is None:
        what = "of no format that is read" if data else "empty"
        raise ImageFailure("not_an_image", f"The file is {what}.")
    if len(data) > MAX_BYTES:
        raise ImageFailure("too_large", f"{len(data)} bytes; the limit is {MAX_BYTES}.")
    try:
        return _READERS[kind](data, target)
    except (ImageFailure, ImportError):
        # A broken installation is no fault of the image.
        raise
    except members.UnknownVariant as error:
        raise unsupported(kind, "a variant that no decoder knows") from error
    except MemoryError as error:
        raise ImageFailure("too_large", "Decoding needs more memory than there is.") from error
    except Exception as error:
        # Three libraries report damage with whatever they like: OSError, SyntaxError, struct.error, cv2.error, …
        raise truncated(kind) from error


def _decode_jpeg(data: bytes, target: int | None) -> Decoded:
    header = jpeg.read_jpeg_header(data)
    factor = jpeg.scale_factor(header.width, header.height, target)
    try:
        pixels = members.simplejpeg_jpeg(data, header.width, header.height, header.components, factor)
    except ValueError as error:
        failure = jpeg.failure_of(str(error))
        if failure is not None:
            raise failure from error
    else:
        return _finished(header, pixels, "simplejpeg", factor)
    jpeg.check_whole(data, header)
    found = members.opencv_jpeg(data, factor)
    if found is not None:
        return _finished(header, found, "opencv", factor)
    return _finished(header, members.pillow_jpeg(data, header.width, header.height, factor), "pillow", factor)


def _decode_png(data: bytes, target: int | None) -> Decoded:
    header = png.read_png(data)
    if header.depth < 16:
        pixels = members.pillow_picture(header.plain, "PNG", multiplied=header.for_phones)
        if header.for_phones and header.colour in (png.RGB, png.RGB_ALPHA):
            pixels = pixels[..., ::-1]
        if header.key:
            # Pillow compares the key with samples that it has already stretched to 8 bits.
            stretched = [value * 255 // ((1 << header.depth) - 1) for value in header.key]
            pixels = _keyed(pixels, pixels, stretched)
        return _finished(header, pixels, "pillow")
    png.check_stream(header)
    samples = members.opencv_deep(header.plain)
    if samples is None or samples.dtype != np.uint16:
        raise truncated("png")
    layers = samples[..., None] if samples.ndim == 2 else samples
    colours = layers[..., :3]
    high = png_range(colours, header.significant)
    pixels = _three(deep_to_eight(colours, 0, high))
    if layers.shape[2] == 4:
        pixels = over_black(pixels, _alpha(layers[..., 3], high))
    if header.key:
        pixels = _keyed(pixels, colours, list(header.key))
    return _finished(header, pixels, "opencv")


def _keyed(pixels: Bytes, samples: members.Samples, key: list[int]) -> Bytes:
    """Make the pixels black whose samples are the transparent colour."""
    shown: Bytes = pixels * np.any(samples != np.asarray(key), axis=-1, keepdims=True)
    return shown


def _alpha(samples: members.Samples, high: int) -> Bytes:
    # An alpha channel may be all opaque or all clear, so the sixteenth rule is not for it.
    share = np.minimum(samples, high).astype(np.float32) * (255.0 / high)
    rounded: Bytes = np.floor(share + 0.5).astype(np.uint8)
    return rounded


def _three(pixels: Bytes) -> Bytes:
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _decode_tiff(data: bytes, target: int | None) -> Decoded:
    header = tiff.read_tiff_header(data)
    if header.bits <= 8 and header.sample_format == tiff.UNSIGNED:
        with members.silenced():
            return _finished(header, members.pillow_picture(header.plain, "TIFF"), "pillow")
    if header.samples == 1 and header.photometric in (tiff.WHITE_IS_ZERO, tiff.BLACK_IS_ZERO):
        return _finished(header, _deep_grey(header), "pillow")
    deep_colour = header.samples in (3, 4) and header.bits == 16 and header.sample_format == tiff.UNSIGNED
    if deep_colour and header.photometric == tiff.RGB:
        return _finished(header, _deep_colour(header), "opencv")
    raise unsupported("tiff", f"{header.samples} samples of {header.bits} bits in this arrangement")


def _deep_grey(header: tiff.TiffHeader) -> Bytes:
    with members.silenced():
        samples = members.pillow_deep(header.plain, "TIFF")
    inverted = header.photometric == tiff.WHITE_IS_ZERO
    high = header.high
    if high is None:
        if header.bits > 16 or header.sample_format != tiff.UNSIGNED:
            raise unsupported("tiff", "signed, 32-bit or floating-point samples without a declared range")
        high = float((1 << header.bits) - 1)
    grey = deep_to_eight(samples, header.low, high)
    return np.repeat((255 - grey if inverted else grey)[..., None], 3, axis=2)


def _deep_colour(header: tiff.TiffHeader) -> Bytes:
    samples = members.opencv_deep(header.plain)
    if samples is None or samples.dtype != np.uint16 or samples.ndim != 3:
        raise truncated("tiff")
    high = 65_535.0 if header.high is None else header.high
    pixels = deep_to_eight(samples[..., :3], header.low, high)
    if samples.shape[2] == 4 and header.alpha == 2:
        return over_black(pixels, _alpha(samples[..., 3], int(high)))
    return pixels


def _decode_gif(data: bytes, target: int | None) -> Decoded:
    return _finished(containers.read_gif_header(data), members.pillow_picture(data, "GIF"), "pillow")


def _decode_bmp(data: bytes, target: int | None) -> Decoded:
    return _finished(containers.read_bmp_header(data), members.pillow_picture(data, "BMP"), "pillow")


def _decode_webp(data: bytes, target: int | None) -> Decoded:
    return _finished(containers.read_webp_header(data), members.pillow_picture(data, "WEBP"), "pillow")


def _finished(header: Header, pixels: Bytes, decoder: str, factor: int = 1) -> Decoded:
    """Check that the decoder has read what the header announced, and turn the picture upright."""
    expected = (-(-header.height // factor), -(-header.width // factor), 3)
    if pixels.shape != expected or pixels.dtype != np.uint8:
        raise truncated(header.kind)
    width, height = (header.height, header.width) if header.orientation >= 5 else (header.width, header.height)
    return Decoded(turned(pixels, header.orientation), width, height, header.frames, decoder)


_READERS = {
    "jpeg": _decode_jpeg,
    "png": _decode_png,
    "gif": _decode_gif,
    "bmp": _decode_bmp,
    "webp": _decode_webp,
    "tiff": _decode_tiff,
}
