"""A stand-in for S3 that answers ListObjectsV2 fast, in pages of 1,000, so that a client's own speed can be measured.

It lists `--keys` keys `folder000000/image0000.jpg` … in order, understands start-after and continuation tokens, tells
at `/cost` how many pages it was asked for and what they cost it, and knows nothing else. Run as a process of its own:
`python s3_stand_in.py --keys 1000000` prints its address.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import itertools
import json
import re
import socketserver
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import numpy as np

PAGE = 1000
_ENTRY = (
    "<Contents><Key>folder@PAGE@/image{i:04d}.jpg</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;@PAGE@{i:026x}&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
_BODY = np.frombuffer("".join(_ENTRY.format(i=i, size=180_000 + i) for i in range(PAGE)).encode(), np.uint8)
_PLACES = np.array([match.start() for match in re.finditer(b"@PAGE@", _BODY.tobytes())])
# All entries are equally long.
_ENTRY_BYTES = len(_BODY) // PAGE


def key_of(number: int) -> str:
    """The key at this place of the listing."""
    return f"folder{number // PAGE:06d}/image{number % PAGE:04d}.jpg"


def tag_of(number: int) -> str:
    """The ETag, without quotes, of the key at this place."""
    return f"{number // PAGE:06d}{number % PAGE:026x}"


def _entries(first: int, end: int) -> bytes:
    """The entries of a page's keys, from one place to another."""
    page, cut = divmod(first, PAGE)
    both = _folder(page) + (_folder(page + 1) if end > (page + 1) * PAGE else b"")
    return both[cut * _ENTRY_BYTES : (cut + end - first) * _ENTRY_BYTES]


def _folder(page: int) -> bytes:
    """The entries of a folder: only its number differs from one to the next."""
    body = _BODY.copy()
    for place, digit in enumerate(b"%06d" % page):
        body[_PLACES + place] = digit
    return body.tobytes()


class _Handler(socketserver.StreamRequestHandler):
    keys: int
    delay_seconds: float
    asked = itertools.count()

    def handle(self) -> None:
        while line := self.rfile.readline():
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
            address = urlsplit(line.split()[1].decode())
            if address.path == "/cost":
                self._send(json.dumps({"pages": next(self.asked), "cpu_seconds": time.process_time()}).encode())
                return
            next(self.asked)
            time.sleep(self.delay_seconds)
            self._send(self._page({name: values[0] for name, values in parse_qs(address.query).items()}))

    def _page(self, query: dict[str, str]) -> bytes:
        first = int(query.get("continuation-token", "0"))
        if "start-after" in query and "continuation-token" not in query:
            first = bisect.bisect_right(range(self.keys), query["start-after"], key=key_of)
        end = min(first + PAGE, self.keys)
        head = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>bench</Name><Prefix></Prefix>'
            f"<KeyCount>{end - first}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
            f"<IsTruncated>{str(end < self.keys).lower()}</IsTruncated>"
            + (f"<NextContinuationToken>{end}</NextContinuationToken>" if end < self.keys else "")
        ).encode()
        return head + (_entries(first, end) if first < end else b"") + b"</ListBucketResult>"

    def _send(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.connection.sendall(head + body)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


@contextlib.contextmanager
def stand_in(keys: int, delay_ms: float = 0.0) -> Iterator[str]:
    """Run the server in a process of its own; gives its address."""
    command = [sys.executable, __file__, "--keys", str(keys), "--delay-ms", str(delay_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def main() -> None:
    """Serve until killed."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--keys", type=int, default=1_000_000)
    arguments.add_argument("--delay-ms", type=float, default=0.0)
    given = arguments.parse_args()
    _Handler.keys = given.keys
    _Handler.delay_seconds = given.delay_ms / 1000
    server = _Server(("127.0.0.1", 0), _Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
