"""An HTTP forwarder that can fail: it stands between a client and a server and breaks what a rule tells it to."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

# A status to answer with; or: close the connection without an answer (reset), do what was asked but close before the
# answer (lost), answer with half of the body (cut), pause in the middle of the body (slow).
Fault = int | Literal["reset", "lost", "cut", "slow"] | None
Rule = Callable[[str, str], Fault]

_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "expect", "host", "content-length")


def one_in(count: int, fault: Fault, seed: int = 7) -> Rule:
    """Break one request in `count`, at random but the same ones in each test run that asks in the same order."""
    source = random.Random(seed)
    return lambda _method, _path: fault if source.randrange(count) == 0 else None


def mixed(share: float, faults: Sequence[Fault], seed: int = 7) -> Rule:
    """Break this share of the requests, at random, each by one of some faults."""
    source = random.Random(seed)
    return lambda _method, _path: source.choice(faults) if source.random() < share else None


class FaultProxy:
    """A running forwarder.

    Attributes:
        endpoint: Its address.
        rule: Called with method and path (query included) of each request; may be replaced at any time.
        faults: How many requests were broken so far.
        requests: How many came.
        arrivals: When each came, monotonic seconds.
        connections: How many connections were opened.
        drop_headers: Names, in lower case, of request headers that are not passed on.
        error_body: Body of answers that the proxy gives itself.
        error_headers: Their headers.
        slow_seconds: How long a slow body pauses.
    """

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self.rule: Rule = lambda _method, _path: None
        self.faults = 0
        self.requests = 0
        self.arrivals: list[float] = []
        self.connections = 0
        self.error_headers: dict[str, str] = {}
        self.slow_seconds = 0.5
        self.drop_headers: tuple[str, ...] = ()
        self.error_body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def decide(self, method: str, path: str) -> Fault:
        """Ask the rule, one request at a time."""
        with self._lock:
            self.arrivals.append(time.monotonic())
            fault = self.rule(method, path)
            self.requests += 1
            self.faults += fault is not None
            return fault

    def forward(
        self, method: str, path: str, headers: list[tuple[str, str]], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the real server."""
        dropped = (*_HOP_BY_HOP, *self.drop_headers)
        connection = http.client.HTTPConnection(self._target.hostname or "", self._target.port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                if name.lower() not in dropped:
                    connection.putheader(name, value)
            host = next((value for name, value in headers if name.lower() == "host"), self._target.netloc)
            connection.putheader("Host", host)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, answer.getheaders(), content


@contextlib.contextmanager
def running_proxy(target: str) -> Iterator[FaultProxy]:
    """Run a forwarder in front of `target` (an http address)."""
    proxy = FaultProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()


def _handler_of(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # a connection that is kept must not wait for an acknowledgement

        def setup(self) -> None:
            proxy.connections += 1
            super().setup()

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.decide(self.command, self.path)
            if fault == "reset":
                self._reset()
                return
            if isinstance(fault, int):
                headers = [("Content-Type", "application/xml"), *proxy.error_headers.items()]
                self._answer(fault, headers, proxy.error_body)
                return
            status, headers, content = proxy.forward(self.command, self.path, self.headers.items(), body)
            if fault == "lost":
                self._reset()
            elif fault == "cut":
                self._answer(status, headers, content, sent=len(content) // 2)
                self._reset()
            elif fault == "slow":
                half = len(content) // 2
                self._answer(status, headers, content, sent=half)
                time.sleep(proxy.slow_seconds)
                if self.command != "HEAD":
                    with contextlib.suppress(OSError):
                        self.wfile.write(content[half:])
            else:
                self._answer(status, headers, content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, sent: int | None = None) -> None:
            self.send_response_only(status)
            length = str(len(content))
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                elif name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                with contextlib.suppress(OSError):  # the client may have seen enough
                    self.wfile.write(content[:sent])

        def _reset(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.wfile.flush()
                # Closing without lingering sends a reset.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
