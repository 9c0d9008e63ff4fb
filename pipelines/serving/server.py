"""The endpoint on this machine: one process that speaks HTTP, and the processes that answer.

It listens before the model is loaded, so that `/healthz` answers at once and `/readyz` tells when images are. It ends
by SIGTERM or SIGINT: what was accepted is answered first, for at most `DRAIN_SECONDS`. SIGHUP has the champion looked
at, and certificates read again.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from socket import socket as Socket
from typing import TYPE_CHECKING

import uvloop

from pipelines.serving.answering import ServedModel
from pipelines.serving.following import Following
from pipelines.serving.listening import check_certificate, listen, load_certificate, url_of
from pipelines.serving.pool import Pool
from pipelines.serving.settings import ServeSettings

if TYPE_CHECKING:
    from uvicorn import Server

# An image may take 30 s, and others wait before it.
DRAIN_SECONDS = 60


@dataclass(frozen=True)
class Ready:
    """What was reached when the first image can be answered.

    Attributes:
        url: Where.
        model: What answers.
        workers: How many processes answer; on a cluster, how many replicas at most.
    """

    url: str
    model: ServedModel
    workers: int


def serve(
    ref: str,
    precision: str,
    settings: ServeSettings,
    tell: Callable[[str], None],
    on_ready: Callable[[Ready], None],
) -> None:
    """Answer until SIGTERM or SIGINT.

    Args:
        ref: A bundle's folder, MODELS/NAME or MODELS/NAME@VERSION.
        precision: `float32` or `int8`.
        settings: Where to listen, whom to let in, how many processes answer.
        tell: Gets a sentence when something happens that an operator wants to know.
        on_ready: Called once, when images are answered.

    Raises:
        UsageError: If the host, the port, the certificate or the audit log cannot be used, or the model has no scorer
            of this precision.
        ModelRefused: If the model is missing, altered or fails its self-test.
        TryLater: If the model's storage does not answer, or a process does not start.
    """
    # Requests wait in this process: a core file would hold patients' pictures.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    check_certificate(settings)
    with listen(settings.host, settings.port) as sockets, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_Serving(ref, precision, settings, tell, on_ready).run(sockets))


class _Serving:
    """One server from its start to its end; arguments as `serve`."""

    def __init__(
        self,
        ref: str,
        precision: str,
        settings: ServeSettings,
        tell: Callable[[str], None],
        on_ready: Callable[[Ready], None],
    ) -> None:
        self._settings = settings
        self._tell = tell
        self._on_ready = on_ready
        self._pool = Pool(settings.workers, settings.queue_per_worker, tell)
        self._following = Following(ref, precision, self._pool, tell)
        self._server: Server | None = None
        self._stopping = False

    async def run(self, sockets: list[Socket]) -> None:
        """Load, listen and answer until a signal comes or the first model is refused."""
        with _signals(self._stop, self._reread):
            # What answers starts first: its libraries load in other processes while those of the web load in this one.
            await self._pool.warm_up()
            answering = asyncio.create_task(self._answer(url_of(sockets[0].getsockname()[1], self._settings)))
            try:
                server = self._server = self._make_server()
                server.should_exit = self._stopping
                listening = asyncio.create_task(server.serve(sockets))
                await asyncio.wait((listening, answering), return_when=asyncio.FIRST_COMPLETED)
                server.should_exit = True
                await listening
                if answering.done():
                    answering.result()
            finally:
                answering.cancel()
                await asyncio.wait((answering,))
                await self._pool.close()

    async def _answer(self, url: str) -> None:
        """Load the model, say so, and keep to its champion."""
        await self._following.load_first()
        model = self._pool.model()
        assert model is not None
        self._on_ready(Ready(url, model, self._settings.workers))
        await self._following.follow()
        await asyncio.Event().wait()

    def _make_server(self) -> Server:
        # Not at the top, for half of a second that the processes that answer need not wait.
        from pipelines.serving.app import make_app
        from pipelines.serving.guarded_server import GuardedServer

        server = GuardedServer(make_app(self._pool, self._settings), self._settings)
        server.config.timeout_graceful_shutdown = DRAIN_SECONDS
        server.config.load()
        return server

    def _stop(self) -> None:
        """Drain and end; who asks twice does not want to wait."""
        if self._server is not None:
            self._server.force_exit = self._stopping
            self._server.should_exit = True
        self._stopping = True

    def _reread(self) -> None:
        """Look at the champion and read the certificate again."""
        self._following.look_now()
        context = None if self._server is None else self._server.config.ssl
        if context is None:
            return
        try:
            load_certificate(context, self._settings)
        except (OSError, ValueError):
            self._tell("The certificate and its key cannot be read again, and those before go on.")
        else:
            self._tell("The certificate was read again; new connections get it.")


@contextlib.contextmanager
def _signals(stop: Callable[[], None], reread: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    acts = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reread}
    before = {number: signal.getsignal(number) for number in acts}
    for number, act in acts.items():
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
