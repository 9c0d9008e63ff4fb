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
from pipelines.serving.handshakes import Handshakes
from pipelines.serving.settings import ServeSettings


class GuardedServer(Server):
    """A server that bounds handshakes too, and has descriptors for all connections that the system permits.

    Args:
        app: From `make_app`.
        settings: Where to listen, what with, and how many connections and handshakes there may be.
    """

    def __init__(self, app: FastAPI, settings: ServeSettings) -> None:
        super().__init__(_config(app, settings))
        self._settings = settings
        self._metrics = app.state.metrics
        self._handshakes: Handshakes | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen at open sockets.

        Args:
            sockets: Bound sockets; they are the caller's to make, so that it knows their port and whether it is free.
        """
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        await super().startup(sockets=[])
        if self.config.ssl is not None:
            seconds, most = self._settings.header_seconds, self._settings.connections
            self._handshakes = Handshakes(self.config.ssl, seconds, most, self._connection, self._metrics)
        for listening in sockets or []:
            if self._handshakes is not None:
                self._handshakes.accept_from(listening, self.config.backlog)
                continue
            server = await asyncio.get_running_loop().create_server(
                self._connection, sock=listening, backlog=self.config.backlog
            )
            self.servers.append(server)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and let what is under way come to its end.

        Args:
            sockets: Those of `startup`.
        """
        if self._handshakes is not None:
            self._handshakes.close()
        await super().shutdown(sockets)

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


def _config(app: FastAPI, settings: ServeSettings) -> Config:
    """Nothing but HTTP, and nothing of clients in its log."""
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
