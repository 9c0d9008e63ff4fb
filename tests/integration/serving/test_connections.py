"""Clients that are slow, silent, endless, many or up to no good, at the level of sockets."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import struct
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from guarded_in_thread import HOST, Running, heard, running
from served_pages import certificate

GET = b"GET /healthz HTTP/1.1\r\n" + HOST
LAST = GET + b"Connection: close\r\n\r\n"
POST = b"POST /predict HTTP/1.1\r\n" + HOST
LIMIT = 1_000_000


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Running]:
    with running(header_seconds=0.8, body_seconds=1.6, max_body_bytes=LIMIT, max_batch_bytes=LIMIT) as found:
        yield found


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "endpoint" in request.fixturenames:
        endpoint: Running = request.getfixturevalue("endpoint")
        deadline = time.monotonic() + 15
        while endpoint.server.server_state.connections or endpoint.server.server_state.tasks:
            assert time.monotonic() < deadline, "a connection or a request is left behind"
            time.sleep(0.02)
        assert b"200 OK" in endpoint.say(LAST)


def statuses(told: bytes) -> list[int]:
    return [int(piece[:3]) for piece in told.split(b"HTTP/1.1 ")[1:]]


SLOW = {
    "a silent one": ([], None),
    "half a head": ([b"GET / HT"], 408),
    "line ends only": ([b"\r\n"] * 12, None),
    "a head by drops": ([b"GET / HTTP/1.1\r\n", *[b"a: b\r\n"] * 12], 408),
    "a body that stops": ([POST + b"Content-Length: 100\r\n\r\nabc"], 408),
    "a body by drops": ([POST + b"Content-Length: 100\r\n\r\n", *[b"x"] * 18], 408),
    "chunks that stop": ([POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"], 408),
}


def test_slow_clients_are_told_so_and_end(endpoint: Running) -> None:
    """All at once, so that the limits are waited for once."""

    def converse(pieces: list[bytes]) -> tuple[bytes, float]:
        began = time.monotonic()
        told = endpoint.say(*pieces, pause=0.1)
        return told, time.monotonic() - began

    with ThreadPoolExecutor(len(SLOW)) as threads:
        found = list(threads.map(converse, [pieces for pieces, _ in SLOW.values()]))
    for (name, (_, status)), (told, seconds) in zip(SLOW.items(), found, strict=True):
        assert statuses(told) == ([] if status is None else [status]), name
        assert 0.7 < seconds < 8, name
        assert status is None or b'"error_code": "request_timeout"' in told


def test_a_slow_but_steady_body_is_waited_for(endpoint: Running) -> None:
    told = endpoint.say(POST + b"Connection: close\r\nContent-Length: 6\r\n\r\n", *[b"x"] * 6, pause=0.12)
    assert statuses(told) == [200]


def test_who_does_not_read_the_answers_is_cut_off(endpoint: Running) -> None:
    with endpoint.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        asked = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\n" + HOST + b"\r\n"
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 12:
                connection.sendall(asked)
                time.sleep(0.05)


REFUSED = {
    "both lengths": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG", 400),
    "both lengths the other way": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nG", 400),
    "two lengths": (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400),
    "a list of lengths": (POST + b"Content-Length: 5, 5\r\n\r\nabcde", 400),
    "a length with a sign": (POST + b"Content-Length: +5\r\n\r\nabcde", 400),
    "a hexadecimal length": (POST + b"Content-Length: 0x5\r\n\r\nabcde", 400),
    "an unknown coding": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\nG", 400),
    "chunked not last": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\nG", 400),
    "a hidden coding": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\nG", 400),
    "a folded header": (GET + b"a: b\r\n c\r\nConnection: close\r\n\r\n", 400),
    "bare line ends": (b"GET /healthz HTTP/1.1\nHost: localhost\n\n", 400),
    "a null in a header": (GET + b"a: \x00\r\n\r\n", 400),
    "a trailer": (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nHost: x\r\n\r\n", 400),
    "a body under an upgrade": (
        POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 99\r\n\r\nGET /model HTTP/1.1\r\n",
        400,
    ),
    "a wrong chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "an endless chunk size": (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n", 400),
    "chunks of one byte": (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 150_000, 400),
    "no host": (b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
    "two hosts": (LAST[:-2] + b"Host: evil.example\r\n\r\n", 400),
    "a foreign host": (b"GET /model HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 421),
    "a tunnel": (b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "bytes in the path": (b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a long path": (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431),
    "a long header": (GET + b"a: " + b"x" * 40_000 + b"\r\n\r\n", 431),
    "an endless header": (GET + b"a: " + b"x" * 400_000, 431),
    "many headers": (GET + b"a: b\r\n" * 101 + b"\r\n", 431),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "an absolute path up": (b"GET /docs/../../../etc/passwd HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 404),
    "an encoded path up": (b"GET /docs/..%2f..%2fetc/passwd HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 404),
    "a doubly encoded path": (b"GET /%252e%252e/model HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 404),
    "two slashes": (b"GET //model HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 404),
    "a null in the path": (b"GET /model%00 HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 404),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_in_two_ways_or_is_too_much_is_refused(endpoint: Running, name: str) -> None:
    said, status = REFUSED[name]
    told = endpoint.say(said)
    assert statuses(told) == [status]
    head, _, body = told.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head and b"no-store" in head and b"server:" not in head.lower()
    assert json.loads(body)["status"] == status
    assert b"evil" not in told and b"passwd" not in told


def test_nothing_follows_an_answer_that_is_under_way(endpoint: Running) -> None:
    """A second answer would be taken for that of another request."""
    assert statuses(endpoint.say(GET + b"\r\n" + b"\x00garbage\r\n\r\n")) in ([], [200])
    assert statuses(endpoint.say(GET + b"\r\n" + LAST)) == [200, 200]
    assert statuses(endpoint.say(LAST + GET + b"\r\n")) == [200]


def test_too_long_a_body_is_refused_and_its_rest_thrown_away(endpoint: Running) -> None:
    body = b"x" * (2 * LIMIT)
    chunks = b"".join(b"10000\r\n" + b"x" * 65_536 + b"\r\n" for _ in range(20)) + b"0\r\n\r\n"
    for framed in (b"Content-Length: %d\r\n\r\n" % len(body) + body, b"Transfer-Encoding: chunked\r\n\r\n" + chunks):
        # The connection goes on where the body came to its end …
        assert statuses(endpoint.say(POST + framed, LAST)) == [413, 200]
        # … and whoever wants it closed gets to read why first.
        assert statuses(endpoint.say(POST + b"Connection: close\r\n" + framed)) == [413]
    waiting = POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with endpoint.connect() as connection:
        connection.sendall(waiting % (2 * LIMIT))
        assert statuses(connection.recv(65_536)) == [413]
    assert endpoint.say(waiting % 3 + b"abc", LAST).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


def test_other_protocols_are_not_changed_to(endpoint: Running) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    with endpoint.connect() as connection:
        connection.sendall(GET + upgrade)
        assert statuses(connection.recv(65_536)) == [200]
        connection.sendall(LAST)
        assert statuses(heard(connection)) == [200]
    websocket = (
        b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    assert statuses(endpoint.say(b"GET /predict HTTP/1.1\r\n" + HOST + websocket)) == [405]


def test_a_client_that_cuts_its_connection_leaves_nothing_behind(endpoint: Running) -> None:
    for said in (b"GET", POST + b"Content-Length: 9\r\n\r\nabc", POST + b"Content-Length: 3\r\n\r\nabc"):
        with endpoint.connect() as connection:
            connection.sendall(said)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_who_only_holds_a_connection_makes_room_for_who_asks() -> None:
    with running(connections=5, header_seconds=5.0) as endpoint:
        idle = endpoint.connect()
        idle.sendall(GET + b"\r\n")
        assert statuses(idle.recv(65_536)) == [200]
        holding = [endpoint.connect() for _ in range(30)]
        for connection in holding[-3:]:
            connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(3):
            told = endpoint.say(b"GET /model HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
            assert statuses(told) == [200]
        for connection in (idle, *holding[:25]):
            assert heard(connection) == b""
        for connection in (idle, *holding):
            connection.close()


def test_where_all_are_busy_only_health_is_answered() -> None:
    with running(connections=3, header_seconds=2.0) as endpoint:
        busy = [endpoint.connect() for _ in range(3)]
        for connection in busy:
            connection.sendall(POST + b"Content-Length: 3\r\n\r\na")
        time.sleep(0.1)
        told = endpoint.say(b"GET /model HTTP/1.1\r\n" + HOST + b"\r\n")
        assert statuses(told) == [503] and b'"error_code": "too_many_connections"' in told
        assert statuses(endpoint.say(LAST)) == [200]
        for connection in busy:
            connection.sendall(b"bc")
            assert statuses(connection.recv(65_536)) == [200]
            connection.close()
        deadline = time.monotonic() + 15
        while endpoint.server.server_state.connections:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_tls_with_a_token_and_handshakes_that_hang(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    token = "a-token-of-enough-letters"
    trust = ssl.create_default_context(cafile=str(cert))
    with running(tls_cert=cert, tls_key=key, token=token, header_seconds=0.5) as endpoint:
        hanging = endpoint.connect()
        with httpx.Client(verify=trust, base_url=f"https://127.0.0.1:{endpoint.port}") as client:
            assert client.get("/healthz").status_code == 200
            refused = client.post("/predict", content=b"image")
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer realm="nightread"')
            assert (
                client.post("/predict", content=b"image", headers={"Authorization": f"Bearer {token}"}).status_code
                == 200
            )
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with endpoint.connect() as connection, pytest.raises((ssl.SSLError, OSError)):
            old.wrap_socket(connection)
        # It never says a word; uvicorn itself would wait a minute for it.
        assert heard(hanging) == b""
        hanging.close()


def test_handshakes_that_hang_make_room_for_one_that_does_not(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(cert))
    hello = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        trust.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="127.0.0.1").do_handshake()
    said = hello.read()
    with running(tls_cert=cert, tls_key=key, connections=8, header_seconds=60) as endpoint:
        began = time.monotonic()
        # Silent ones, ones that stop in the middle and one that speaks something else.
        hanging = [endpoint.connect() for _ in range(20)]
        for connection in hanging[::2]:
            with contextlib.suppress(OSError):
                connection.sendall(said[:100])
        assert endpoint.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")[:3] != b"HTT"
        with httpx.Client(verify=trust, base_url=f"https://127.0.0.1:{endpoint.port}") as client:
            assert client.get("/healthz").status_code == 200
            # Of twenty silent ones and this one itself eight may stay; the longest waiting went.
            assert [heard(connection) for connection in hanging[:12]] == [b""] * 12
            turned_away = re.search(r'turned_away_total\{reason="connections"\} (\d+)', client.get("/metrics").text)
            assert turned_away is not None and int(turned_away[1]) >= 12
        assert time.monotonic() - began < 30
        for connection in hanging:
            connection.close()
