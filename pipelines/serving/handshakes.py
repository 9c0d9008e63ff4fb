"""TLS handshakes that cost us no more than they may: some seconds each, and so many at once.

The loop's own servers give each handshake its end, but take any number of them, and tell nobody of one before it is
done. So connections are accepted here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from socket import socket as Socket
from typing import Final

from pipelines.serving.metrics import Metrics

AGAIN_SECONDS: Final = 0.5
"""When to accept again where the system had no descriptor for a connection."""


class Handshakes:
    """Accepts connections and encrypts them.

    Args:
        context: Certificate, key and versions.
        seconds: Time for one handshake.
        most: How many there may be at once; the longest waiting makes room for the next.
        make: The protocol of an encrypted connection.
        metrics: Counts who is turned away.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        seconds: float,
        most: int,
        make: Callable[[], asyncio.Protocol],
        metrics: Metrics,
    ) -> None:
        self._context = context
        self._seconds = seconds
        self._most = most
        self._make = make
        self._metrics = metrics
        self._accepting: list[asyncio.Task[None]] = []
        self._waiting: dict[asyncio.Task[None], None] = {}

    def accept_from(self, listening: Socket, backlog: int) -> None:
        """Listen, and accept until `close`.

        Args:
            listening: A bound socket that does not block.
            backlog: Connections that the system may keep for us.
        """
        listening.listen(backlog)
        self._accepting.append(asyncio.get_running_loop().create_task(self._accept(listening)))

    def close(self) -> None:
        """Accept no more, and break off what is not encrypted yet."""
        for task in (*self._accepting, *self._waiting):
            task.cancel()

    async def _accept(self, listening: Socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError:
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            if len(self._waiting) == self._most:
                self._metrics.count_turned_away("connections")
                longest = next(iter(self._waiting))
                del self._waiting[longest]
                longest.cancel()
            task = loop.create_task(self._encrypt(connection))
            self._waiting[task] = None
            task.add_done_callback(lambda done: self._waiting.pop(done, None))

    async def _encrypt(self, connection: Socket) -> None:
        # Clients that hang up, speak no TLS or want an old one are no news.
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make, connection, ssl=self._context, ssl_handshake_timeout=self._seconds
            )
