"""A client that keeps an HTTP endpoint busy from one core: an equal of wrk (closed loop) and of wrk2 (open loop).

Requests are made before the clock starts; connections are kept; every answer is handed to a check. In an open loop a
request's time begins when it was due, not when a connection was free for it, so that a server that falls behind cannot
hide it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Check = Callable[[int, int, bytes], bool]


@dataclass
class Load:
    """What a load came to.

    Attributes:
        seconds: From the first request to the last answer.
        milliseconds: Of each answered request, in the order of the answers.
        statuses: How often each HTTP status was answered.
        wrong: Answers that the check refused.
        lost: Requests whose connection ended without an answer.
    """

    seconds: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    lost: int = 0

    @property
    def rate(self) -> float:
        """Requests answered with 200 a second."""
        return self.statuses[200] / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float | None:
        """The time in milliseconds that this share of the answers did not exceed."""
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None

    def figures(self) -> dict[str, object]:
        """What a benchmark prints."""
        return {
            "requests": sum(self.statuses.values()),
            "seconds": round(self.seconds, 2),
            "requests_per_second": round(self.rate, 2),
            "p50_ms": _rounded(self.percentile(0.50)),
            "p90_ms": _rounded(self.percentile(0.90)),
            "p99_ms": _rounded(self.percentile(0.99)),
            "largest_ms": _rounded(self.percentile(1.0)),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "wrong_answers": self.wrong,
            "lost": self.lost,
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def http_request(path: str, body: bytes, content_type: str, host: str = "127.0.0.1") -> bytes:
    """One POST, whole."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Connection(asyncio.Protocol):
    """One kept connection: one request at a time."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    @property
    def is_open(self) -> bool:
        """Whether the server has not closed it: it ends what has lain idle for long."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; the status and the body of its answer."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        if not self.is_open:
            self._answer.set_exception(ConnectionResetError())
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        start = head.find(b"content-length:")
        length = int(head[start + 15 :].split(b"\r\n", 1)[0])
        if len(self._received) < end + 4 + length:
            return
        body = bytes(self._received[end + 4 : end + 4 + length])
        del self._received[: end + 4 + length]
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((int(head[9:12]), body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError())

    def close(self) -> None:
        """End it."""
        if self._transport is not None:
            self._transport.close()


async def _opened(port: int) -> _Connection:
    _, protocol = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", port)
    return protocol


async def _one(
    connection: _Connection, requests: Sequence[bytes], number: int, due: float, load: Load, check: Check
) -> bool:
    """Ask once and note what came; False where the connection is of no more use."""
    try:
        status, body = await connection.ask(requests[number])
    except OSError:
        load.lost += 1
        return False
    load.milliseconds.append((time.perf_counter() - due) * 1000)
    load.statuses[status] += 1
    if not check(number, status, body):
        load.wrong += 1
    return True


async def _closed(port: int, requests: Sequence[bytes], connections: int, seconds: float, check: Check) -> Load:
    load, began, counter = Load(), time.perf_counter(), iter(range(1 << 60))

    async def keep_asking() -> None:
        connection = await _opened(port)
        while (now := time.perf_counter()) < began + seconds:
            if not await _one(connection, requests, next(counter) % len(requests), now, load, check):
                connection = await _opened(port)
        connection.close()

    await asyncio.gather(*(keep_asking() for _ in range(connections)))
    load.seconds = time.perf_counter() - began
    return load


async def _open(port: int, requests: Sequence[bytes], rate: float, seconds: float, even: bool, check: Check) -> Load:
    load, free, tasks = Load(), list[_Connection](), set[asyncio.Task[None]]()
    source = random.Random(11)

    async def ask(number: int, due: float) -> None:
        while free and not free[-1].is_open:
            free.pop()
        connection = free.pop() if free else await _opened(port)
        if await _one(connection, requests, number, due, load, check):
            free.append(connection)

    for _ in range(8):
        free.append(await _opened(port))
    began = due = time.perf_counter()
    number = 0
    while due < began + seconds:
        if (pause := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        task = asyncio.create_task(ask(number % len(requests), due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
        due += 1 / rate if even else source.expovariate(rate)
    await asyncio.gather(*tasks)
    load.seconds = time.perf_counter() - began
    for connection in free:
        connection.close()
    return load


def closed_loop(port: int, requests: Sequence[bytes], connections: int, seconds: float, check: Check) -> Load:
    """As many connections, each sending its next request when it has the answer to the last.

    Args:
        port: Of the server on this machine.
        requests: Sent in turn, again and again.
        connections: How many.
        seconds: How long.
        check: From the number of a request, the status and the body to whether the answer is right.
    """
    return asyncio.run(_closed(port, requests, connections, seconds, check))


def open_loop(
    port: int, requests: Sequence[bytes], rate: float, seconds: float, check: Check, *, even: bool = True
) -> Load:
    """Requests at a rate, whatever becomes of those before.

    Args:
        port: Of the server on this machine.
        requests: Sent in turn, again and again.
        rate: A second.
        seconds: How long.
        check: As in `closed_loop`.
        even: At equal distances; False draws them as independent clients come (Poisson).
    """
    return asyncio.run(_open(port, requests, rate, seconds, even, check))
