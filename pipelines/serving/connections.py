"""Connections that cost us no more than they may: slow, silent, endless and too many clients.

uvicorn waits for ever for a head or a body, and takes heads of any length. Its protocol is kept; what is added is one
timer for each connection, limits on what is not a body, and refusals that are problems like all others.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pipelines.serving.door import head_of
from pipelines.serving.metrics import Metrics
from pipelines.serving.problems import Problem
from pipelines.serving.settings import ServeSettings

KEEP_ALIVE_SECONDS = 15
"""How long a connection may lie idle between two requests."""
LINGER_SECONDS = 5.0
"""How long the rest of a refused body is read and thrown away, so that its sender gets to read why."""
MOST_HEADERS = 100
MOST_HEAD_BYTES = 32 * 1024
RESERVE = 32
"""Connections beyond a limit of busy ones that may ask for `/healthz` and `/readyz`; further ones are cut off."""
HEALTH = (b"/healthz", b"/readyz")
_FRAMING = (b"content-length", b"transfer-encoding")
SLOWEST_BYTES = 128 * 1024
"""A body gets another second for each of so many bytes."""
LEAST_FRAMING = 256 * 1024
"""What the framing of a body in chunks may take beyond as many bytes as the body itself has."""


# uvicorn has a line for every request that is no HTTP; they are counted, for there may be any number of them.
_LOG = logging.getLogger("nightread.serve.connections")
_LOG.setLevel(logging.ERROR)


class _Phase(Enum):
    """What a connection waits for."""

    HEAD = auto()  # the head of a request
    BODY = auto()  # the rest of its body
    ANSWER = auto()  # us
    REST = auto()  # the rest of a body whose answer is given
    IDLE = auto()  # the next request


# Who asks for nothing makes room for who does: an honest client's head is there within a moment.
_MAKES_ROOM = (_Phase.HEAD, _Phase.REST, _Phase.IDLE)


class GuardedProtocol(HttpToolsProtocol):
    """One connection, with limits. `guarded` makes the class that knows its settings.

    Attributes:
        settings: Times, and how many connections there may be.
        metrics: Counts who is turned away.
        waiting: Connections of the server that have nothing for us to do, the longest waiting first.
    """

    settings: ClassVar[ServeSettings]
    metrics: ClassVar[Metrics]
    waiting: ClassVar[dict[GuardedProtocol, None]]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.logger = _LOG
        self._phase = _Phase.HEAD
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._is_extra = self._closes = False
        self._problem: Problem | None = None
        self._app_of_all = self.app
        self._requests = self._raw = self._head = self._body = self._seen = 0
        self._began = 0.0
        self._has_spoken = False

    # What the loop calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for it, and give it time for a first head."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.connections and self.waiting:
            next(iter(self.waiting))._cut_off()
        count = len(self.connections)
        if count > self.settings.connections + RESERVE:
            self._cut_off()
            return
        self._is_extra = count > self.settings.connections
        self._enter(_Phase.HEAD)
        self._arm(self._head_seconds, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget its timers."""
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self.waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and look at how much of it is no body."""
        if self.transport.is_closing():
            return
        self._raw += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._phase is _Phase.HEAD and self._raw > MOST_HEAD_BYTES:
            self._refuse(Problem("header_too_large", "The head of the request is too long."))
        elif self._phase is _Phase.BODY and self._raw > 2 * self._body + LEAST_FRAMING:
            self._refuse(Problem("bad_request", "The body is in too small chunks."))

    def pause_writing(self) -> None:
        """Give a client that does not read its answer some time."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.settings.body_seconds, self._unread)

    def resume_writing(self) -> None:
        """It reads on."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # What the parser calls.

    def on_message_begin(self) -> None:
        """The first byte of a head: from now on it has to come to its end."""
        super().on_message_begin()
        self._has_spoken = True
        self._raw = self._head = 0
        if self._phase is not _Phase.HEAD:
            self._enter(_Phase.HEAD)
            self._arm(self._head_seconds, self._late)

    def on_url(self, url: bytes) -> None:
        """Count a piece of the address."""
        super().on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header; take none after the head."""
        if self._phase is not _Phase.HEAD:
            # Trailers would be added to headers that have been looked at already.
            self._stop(Problem("bad_request", "Trailers are not taken."))
        super().on_header(name, value)
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Let the application begin, and look after the body."""
        if self.parser.should_upgrade() and any(name in _FRAMING and value != b"0" for name, value in self.headers):
            # The parser would take the body for what comes after the upgrade, and then for requests.
            self._stop(Problem("bad_request", "A request with a body cannot ask for another protocol (Upgrade)."))
        if self._is_extra:
            is_health = self.url.partition(b"?")[0] in HEALTH
            self.app = self._app_of_all if is_health else self._too_many
        super().on_headers_complete()
        self._requests += 1
        self.cycle.transport = _Gently(self)  # type: ignore[assignment]
        self._enter(_Phase.BODY)
        self._raw = self._body = self._seen = 0
        self._began = self.loop.time()
        self._arm(self._pause, self._look)

    def on_body(self, body: bytes) -> None:
        """Count a piece of the body."""
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Nothing more is to come for this request."""
        super().on_message_complete()
        if self._phase is _Phase.BODY:
            self._enter(_Phase.ANSWER)
            self._disarm()
        elif self._phase is _Phase.REST:
            self._rest()

    # What the answer calls.

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one."""
        super().on_response_complete()
        if self.transport.is_closing() or not self.cycle.response_complete:
            return
        if self._phase is _Phase.BODY:
            self._enter(_Phase.REST)
            self._arm(LINGER_SECONDS, self._end)
        elif self._phase is _Phase.ANSWER:
            self._rest()

    def shutdown(self) -> None:
        """Close when the server ends: at once, or after the answer that is under way."""
        super().shutdown()
        if self.transport.is_closing():
            self._end()

    def close_gently(self) -> None:
        """Close after an answer; where its request's body is still coming, once that has come."""
        if self._phase is _Phase.BODY and not self.pipeline:
            self._closes = True
        else:
            self._end()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or more of it than we take."""
        self._refuse(self._problem or Problem("bad_request", "This is no HTTP that is understood."))

    def _unsupported_upgrade_warning(self) -> None:
        """A client may ask for another protocol, and is answered in this one; that is worth no line in the log."""

    # Our own.

    @property
    def _head_seconds(self) -> float:
        return min(self.settings.header_seconds, 2.0) if self._is_extra else self.settings.header_seconds

    @property
    def _pause(self) -> float:
        return min(self.settings.header_seconds, self.settings.body_seconds)

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self.waiting.pop(self, None)
        if phase in _MAKES_ROOM:
            self.waiting[self] = None

    def _cut_off(self) -> None:
        self.metrics.count_turned_away("connections")
        self.waiting.pop(self, None)
        self.connections.discard(self)
        self.transport.abort()

    def _arm(self, seconds: float, act: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, act)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rest(self) -> None:
        """The answer is given and its request complete: wait for the next, or close."""
        if self._closes:
            self._end()
            return
        self._enter(_Phase.IDLE)
        self._arm(KEEP_ALIVE_SECONDS, self._end)

    def _look(self) -> None:
        """See how a body comes on."""
        now = self.loop.time()
        if self.flow.read_paused:
            self._began += self._pause  # it waits for us
        elif self._body == self._seen or now - self._began > self.settings.body_seconds + self._body / SLOWEST_BYTES:
            self._late()
            return
        self._seen = self._body
        self._arm(self._pause, self._look)

    def _late(self) -> None:
        if not self._has_spoken:
            # A connection on which nobody ever spoke: browsers open such ahead of need.
            self._end()
            return
        self._refuse(Problem("request_timeout", "The request came too slowly."))

    def _unread(self) -> None:
        self.metrics.count_turned_away("unread")
        self.transport.abort()

    def _end(self) -> None:
        """Close; and where the other side does not read what is still to be sent, cut off."""
        self.transport.close()
        self._arm(LINGER_SECONDS, self.transport.abort)

    def _count_head(self, count: int) -> None:
        self._head += count
        if self._head > MOST_HEAD_BYTES or len(self.headers) > MOST_HEADERS:
            self._stop(Problem("header_too_large", "The head of the request is too long."))

    def _stop(self, problem: Problem) -> None:
        """Leave the parser from inside one of its calls: uvicorn answers by `send_400_response`."""
        self._problem = problem
        raise ValueError(problem.error_code)

    def _refuse(self, problem: Problem) -> None:
        """Answer a request that no application sees to its end, and close.

        Where another answer is under way or given already, a second one would be taken for that of another request.
        """
        if self.transport.is_closing():
            return
        self.metrics.count_turned_away(problem.error_code)
        is_first = self._requests == 0 or self.cycle.response_complete
        is_open = self._phase is _Phase.BODY and not self.cycle.response_started and not self.pipeline
        if not (self._phase in (_Phase.HEAD, _Phase.IDLE) and is_first) and not is_open:
            self.transport.abort()
            return
        request_id = secrets.token_hex(8)
        body = json.dumps(problem.as_json(request_id)).encode()
        head = [*self.server_state.default_headers, *head_of(problem, request_id, body), (b"connection", b"close")]
        lines = [STATUS_LINE[problem.status], *(b"%s: %s\r\n" % header for header in head), b"\r\n", body]
        self.transport.write(b"".join(lines))
        self._end()

    async def _too_many(self, scope: Any, receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        self.metrics.count_turned_away("connections")
        problem = Problem("too_many_connections", "As many clients are connected as may be; ask again later.", 5)
        request_id = secrets.token_hex(8)
        body = json.dumps(problem.as_json(request_id)).encode()
        headers = [*head_of(problem, request_id, body), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _Gently:
    """A transport for answers, which leaves it to the connection when to close."""

    def __init__(self, connection: GuardedProtocol) -> None:
        self._connection = connection
        self.is_closing = connection.transport.is_closing

    def write(self, data: bytes) -> None:
        if not self.is_closing():
            self._connection.transport.write(data)

    def close(self) -> None:
        self._connection.close_gently()


def guarded(settings: ServeSettings, metrics: Metrics) -> type[GuardedProtocol]:
    """The protocol of all connections of one server.

    Args:
        settings: Times, and how many connections there may be.
        metrics: Counts who is turned away.
    """
    return type("Guarded", (GuardedProtocol,), {"settings": settings, "metrics": metrics, "waiting": {}})
