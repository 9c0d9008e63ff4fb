"""A server that knows ListObjectsV2 and nothing else, for keys and faults that real servers do not have.

Run as a process of its own: `python key_server.py KEYS.json` prints its address. Each request is one line of `--log`.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000


def tag_of(key: str) -> str:
    """The ETag, without quotes, of a key."""
    return f"{sum(key.encode()):x}-{len(key)}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    keys: list[str]
    sizes: dict[str, int]
    delay: float
    ignores_start: bool
    fail_share: float
    log: str
    source = random.Random(11)

    def do_GET(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        time.sleep(self.delay)
        if self.source.random() < self.fail_share:
            self._send(503, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>")
            return
        if "continuation-token" in query:
            after, first = query["continuation-token"], int(query["continuation-token"].partition(":")[0])
            after = after.partition(":")[2]
        else:
            after = query.get("start-after", "")
            first = 0 if self.ignores_start else bisect.bisect_right(self.keys, after)
        with open(self.log, "a") as file:
            file.write(json.dumps(after) + "\n")
        self._send(200, self._page(first, query).encode())

    def _page(self, first: int, query: dict[str, str]) -> str:
        found: list[str] = []
        while first < len(self.keys) and len(found) < PAGE:
            if self.keys[first].startswith(query.get("prefix", "")):
                found.append(self.keys[first])
            first += 1
        more = any(key.startswith(query.get("prefix", "")) for key in self.keys[first : first + PAGE])
        url = query.get("encoding-type") == "url"
        entries = "".join(
            f"<Contents><Key>{quote(key) if url else escape(key, {chr(9): '&#9;'})}</Key>"
            f"<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{tag_of(key)}&quot;</ETag>"
            f"<Size>{self.sizes[key]}</Size></Contents>"
            for key in found
        )
        token = f"<NextContinuationToken>{first}:{escape(found[-1])}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>b</Name><Prefix></Prefix>'
            + ("<EncodingType>url</EncodingType>" if url else "")
            + f"<KeyCount>{len(found)}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
            + f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        )

    def _send(self, status: int, body: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def key_server(folder: Path, objects: dict[str, int], *faults: str) -> Iterator[tuple[str, Path]]:
    """Run the server in a process of its own.

    Args:
        folder: Where its files go.
        objects: Keys and their sizes.
        faults: Options of its command line.

    Yields:
        Its address, and the file with one line, a JSON string, for each page: the key that it began after.
    """
    given, log = folder / "keys.json", folder / "requests.log"
    given.write_text(json.dumps(objects))
    log.write_text("")
    command = [sys.executable, __file__, str(given), "--log", str(log), *faults]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), log
        finally:
            process.kill()


def main() -> None:
    """Serve until killed."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("keys")
    arguments.add_argument("--log", required=True)
    arguments.add_argument("--delay-ms", type=float, default=0.0)
    arguments.add_argument("--fail-share", type=float, default=0.0)
    arguments.add_argument("--ignore-start", action="store_true")
    arguments.add_argument("--unsorted", action="store_true")
    given = arguments.parse_args()
    _Handler.sizes = json.loads(Path(given.keys).read_text())
    _Handler.keys = sorted(_Handler.sizes)
    if given.unsorted:
        random.Random(5).shuffle(_Handler.keys)
    _Handler.delay = given.delay_ms / 1000
    _Handler.fail_share = given.fail_share
    _Handler.ignores_start = given.ignore_start or given.unsorted
    _Handler.log = given.log
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
