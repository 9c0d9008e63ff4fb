"""What the server and an answering process say to each other over a pair of connected sockets.

Every message is 12 bytes (little-endian: 4 bytes length of a JSON object, 8 bytes length of what follows it), the
object, and plain bytes. The server begins with the model: `model`, `io`, `uri` and `lengths` of the LiteRT model and of
the golden file (null where there is none), whose bytes follow; the process answers `{"ready": true}` or why it refuses.
Then each request is a file's bytes with `{}` for an answer or `{"side": N}` for a preview; each reply is `answer`,
`preview` (with the PNG's bytes), or `failure`: `code` and `message`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from pipelines.errors import ImageFailure

HEAD = struct.Struct("<IQ")
# The largest preview is 50 MB; who sends more has been taken over by an image.
LARGEST_REPLY = 128 * 1024**2
READY = {"ready": True}


def head(told: Mapping[str, Any], following: int = 0) -> bytes:
    """A message up to its plain bytes, of which so many follow."""
    text = json.dumps(told).encode()
    return HEAD.pack(len(text), following) + text


def failure_of(failure: ImageFailure) -> dict[str, Any]:
    """The reply about an image that has no answer."""
    return {"failure": {"code": failure.code, "message": failure.message}}


class Incoming:
    """Puts messages together from pieces of any size."""

    def __init__(self) -> None:
        self._pieces = bytearray()

    def take(self, piece: bytes) -> tuple[dict[str, Any], bytes] | None:
        """Add what came; the message that is complete with it, or None. Only one may be on its way.

        Returns:
            The object, and the bytes behind it.

        Raises:
            ValueError: If it is no message, or longer than any.
        """
        self._pieces += piece
        if len(self._pieces) < HEAD.size:
            return None
        text, following = HEAD.unpack_from(self._pieces)
        end = HEAD.size + text
        if end + following > LARGEST_REPLY:
            raise ValueError(f"a message of {end + following} bytes")
        if len(self._pieces) < end + following:
            return None
        told: dict[str, Any] = json.loads(self._pieces[HEAD.size : end])
        data = bytes(self._pieces[end : end + following])
        self._pieces = bytearray()
        return told, data
