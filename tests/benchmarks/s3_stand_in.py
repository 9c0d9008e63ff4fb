"""A stand-in for S3 that answers ListObjectsV2 fast, in pages of 1,000, so that a client's own speed can be measured.

It lists `--keys` keys `folder000000/image0000.jpg` … in order, understands prefix, start-after and
continuation tokens, and knows nothing else. Run as a process of its own: `python s3_stand_in.py --keys 1000000`
prints its address.
"""

from __future__ import annotations

import argparse
import contextlib
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


def key_of(number: int) -> str:
    """The key at this place of the listing."""
    return f"folder{number // PAGE:06d}/image{number % PAGE:04d}.jpg"


def tag_of(number: int) -> str:
    """The ETag, without quotes, of the key at this place."""
    return f"{number // PAGE:06d}{number % PAGE:026x}"


def _rendered(page: int) -> bytes:
    """The entries of a page: only the page's number differs from one to the next."""
    body = _BODY.copy()
    for place, digit in enumerate(b"%06d" % page):
        body[_PLACES + place] = digit
    return body.tobytes()


class _Handler(socketserver.StreamRequestHandler):
    pages: int
    delay_seconds: float

    def handle(self) -> None:
        while line := self.rfile.readline():
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
            time.sleep(self.delay_seconds)
            self.connection.sendall(self._answer(line.split()[1].decode()))

    def _answer(self, path: str) -> bytes:
        query = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        page = int(query.get("continuation-token", "0"))
        if "start-after" in query and "continuation-token" not in query:
            # Only whole pages are known: start at the page after the key's own.
            page = int(query["start-after"][6:12]) + 1
        more = page + 1 < self.pages
        head = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>bench</Name><Prefix></Prefix>'
            f"<KeyCount>{PAGE}</KeyCount><MaxKeys>{PAGE}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>"
            + (f"<NextContinuationToken>{page + 1}</NextContinuationToken>" if more else "")
        ).encode()
        body = head + (_rendered(page) if page < self.pages else b"") + b"</ListBucketResult>"
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(body) + body


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
    _Handler.pages = given.keys // PAGE
    _Handler.delay_seconds = given.delay_ms / 1000
    server = _Server(("127.0.0.1", 0), _Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
