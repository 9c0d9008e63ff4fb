"""uvicorn's server and its settings: guarded connections, and nothing of clients in its log."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from uvicorn import Config, Server

from pipelines.serving.connections import KEEP_ALIVE_SECONDS, guarded
from pipelines.serving.settings import ServeSettings


class GuardedServer(Server):
    """A server that gives handshakes an end too, and has descriptors for all connections that the system permits.

    Args:
        config: From `uvicorn_config`.
        handshake_seconds: Time for a TLS handshake.
    """

    def __init__(self, config: Config, handshake_seconds: float) -> None:
        super().__init__(config)
        self._handshake_seconds = handshake_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen at open sockets.

        Args:
            sockets: Bound sockets; they are the caller's to make, so that it knows their port and whether it is free.
        """
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        await super().startup(sockets=[])
        loop, config = asyncio.get_running_loop(), self.config
        for listening in sockets or []:
            server = await loop.create_server(
                self._connection,
                sock=listening,
                backlog=config.backlog,
                ssl=config.ssl,
                ssl_handshake_timeout=None if config.ssl is None else self._handshake_seconds,
            )
            self.servers.append(server)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the caller: uvicorn would raise once more what ended it, and 0 not be the exit code."""
        yield

    def _connection(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def uvicorn_config(app: FastAPI, settings: ServeSettings) -> Config:
    """Settings of uvicorn for an application of `make_app`: nothing but HTTP, and nothing of clients in its log.

    Args:
        app: The application.
        settings: Where to listen, and what with.
    """
    return Config(
        app,
        host=settings.host,
        port=settings.port,
        http=guarded(settings, app.state.metrics),
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        # Who calls is ours to say: by default uvicorn believes the headers of whoever comes from this machine.
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
