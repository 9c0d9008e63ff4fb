"""The endpoint behind real sockets, in a thread of the test: what answers stands in, everything before it is real."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "serving"))
from stand_in_service import StandIn

from pipelines.serving.app import make_app
from pipelines.serving.guarded_server import GuardedServer
from pipelines.serving.settings import ServeSettings

HOST = b"Host: localhost\r\n"


@dataclass
class Running:
    """A running endpoint.

    Attributes:
        port: Where.
        service: What answers.
        server: To look into.
    """

    port: int
    service: StandIn
    server: GuardedServer

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.settimeout(10)
        return connection

    def say(self, *pieces: bytes, pause: float = 0.0) -> bytes:
        """Send pieces of a conversation, and hear what comes until the server closes."""
        with self.connect() as connection:
            with contextlib.suppress(OSError):  # the server may have had enough
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause)
            return heard(connection)


def heard(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            pieces.append(piece)
    return b"".join(pieces)


@contextlib.contextmanager
def running(**settings: Any) -> Iterator[Running]:
    """Serve until the end of the block."""
    service = StandIn()
    known = ServeSettings(**settings)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        server = GuardedServer(make_app(service, known), known)
        thread = threading.Thread(target=_serve, args=(server, listening))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the endpoint did not start"
                time.sleep(0.01)
            yield Running(listening.getsockname()[1], service, server)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the endpoint did not end"


def _serve(server: GuardedServer, listening: socket.socket) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve([listening]))
