"""What parent and decoding child say to each other: length-prefixed messages over two pipes.

Parent to child: 8 bytes length (little-endian), then a file's bytes. Child to parent: 4 bytes length of a JSON object,
the object, then, for a prepared picture, its `side × side × 3` bytes. The child's first message is `{"ready": true}`.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from pipelines.errors import ImageFailure
from pipelines.images.preprocess import Prepared

REQUEST = struct.Struct("<Q")
ANSWER = struct.Struct("<I")
READY = {"ready": True}


def pack(message: dict[str, Any], pixels: bytes = b"") -> bytes:
    """One message of the child."""
    text = json.dumps(message).encode()
    return ANSWER.pack(len(text)) + text + pixels


def pack_prepared(prepared: Prepared) -> bytes:
    """A success."""
    facts = {
        "content_sha256": prepared.content_sha256,
        "width": prepared.width,
        "height": prepared.height,
        "mean_intensity": prepared.mean_intensity,
        "decoder": prepared.decoder,
        "frames": prepared.frames,
    }
    return pack({"prepared": facts}, prepared.pixels.tobytes())


def pack_failure(failure: ImageFailure) -> bytes:
    """A failure that lies in the image."""
    return pack({"code": failure.code, "message": failure.message})


def unpack(message: dict[str, Any], pixels: bytes, side: int) -> Prepared:
    """Turn the child's answer into a picture, or raise its failure.

    Args:
        message: The JSON object.
        pixels: What followed it.
        side: The input size.

    Raises:
        ImageFailure: As the child raised it.
    """
    if "code" in message:
        raise ImageFailure(message["code"], message["message"])
    array = np.frombuffer(bytearray(pixels), np.uint8).reshape(side, side, 3)
    return Prepared(pixels=array, **message["prepared"])
