"""Reading a body, within limits that hold before and while it comes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from pipelines.serving.problems import refused

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientLeft(Exception):
    """The client closed its connection; nobody waits for an answer."""


class Held:
    """What the bodies of all requests take of memory together.

    Args:
        limit: In bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.now = 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """One request's part of it, given back at the end of the block."""
        share = Share(self)
        try:
            yield share
        finally:
            self.now -= share.taken

    def take(self, count: int) -> None:
        """Count bytes that have come.

        Raises:
            Refused: If all requests hold as much as they may (429).
        """
        if self.now + count > self._limit:
            raise refused("queue_full", "Other requests hold all the memory there is for images.", 1)
        self.now += count


class Share:
    """Bytes that one request holds."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self.taken = 0

    def take(self, count: int) -> None:
        """Count bytes that have come; as `Held.take`."""
        self._held.take(count)
        self.taken += count


async def read_body(receive: Receive, content_length: str | None, limit: int, share: Share) -> bytes:
    """Read a whole body.

    Args:
        receive: The ASGI way to the next piece.
        content_length: The header, or None for a body in chunks.
        limit: The most bytes it may have.
        share: What counts the bytes.

    Raises:
        Refused: 413 if it is longer, seen from its header before anything is read, else while reading; 429 if there
            is no memory for it now.
        ClientLeft: If it does not come to its end.
    """
    if content_length is not None and (not content_length.isdecimal() or int(content_length[:20]) > limit):
        raise _too_large(limit)
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        piece = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        share.take(len(piece))
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(limit: int) -> Exception:
    return refused("too_large", f"The body is longer than {limit} bytes.")
