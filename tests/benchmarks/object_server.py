"""A small object store for benchmarks: it lists and serves the files of a folder as s3://bench/…, each answer late.

One thread and kept connections, so that it costs little beside what is measured. It knows GET of an object and
ListObjectsV2 with continuation tokens, and nothing else. Run as a process of its own:
`python object_server.py FOLDER --delay-ms 30` prints its address.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import os
import subprocess
import sys
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bench"
PAGE = 1000


class _Store:
    def __init__(self, folder: Path, delay_seconds: float) -> None:
        self._folder = folder
        self._delay = delay_seconds
        self._keys = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(self._delay)
                writer.write(self._answer(head.split(b" ", 2)[1].decode()))
                await writer.drain()
        writer.close()

    def _answer(self, target: str) -> bytes:
        parts = urlsplit(target)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        if bucket != BUCKET:
            return _answer_of(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        if not key:
            return _answer_of(200, self._page(parse_qs(parts.query)), "Content-Type: application/xml\r\n")
        path = self._folder / key
        if not path.is_file():
            return _answer_of(404, b"<Error><Code>NoSuchKey</Code></Error>")
        status = path.stat()
        told = f'ETag: "{_tag(status)}"\r\nLast-Modified: {formatdate(status.st_mtime, usegmt=True)}\r\n'
        return _answer_of(200, path.read_bytes(), told)

    def _page(self, query: dict[str, list[str]]) -> bytes:
        prefix = query.get("prefix", [""])[0]
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        wanted = [key for key in self._keys if key.startswith(prefix) and key > after]
        page = wanted[: int(query.get("max-keys", [str(PAGE)])[0])]
        more = len(wanted) > len(page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        entries = "".join(self._entry(key) for key in page)
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>{BUCKET}</Name><KeyCount>{len(page)}'
            f"</KeyCount><MaxKeys>{PAGE}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}"
            "</ListBucketResult>"
        ).encode()

    def _entry(self, key: str) -> str:
        status = (self._folder / key).stat()
        changed = datetime.datetime.fromtimestamp(status.st_mtime, datetime.UTC)
        return (
            f"<Contents><Key>{escape(key)}</Key><LastModified>{changed:%Y-%m-%dT%H:%M:%S}.000Z</LastModified>"
            f"<ETag>&quot;{_tag(status)}&quot;</ETag><Size>{status.st_size}</Size></Contents>"
        )


def _tag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:016x}{status.st_size:016x}"


def _answer_of(code: int, body: bytes, headers: str = "") -> bytes:
    return f"HTTP/1.1 {code} -\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _serve(folder: Path, delay_seconds: float) -> None:
    server = await asyncio.start_server(_Store(folder, delay_seconds).talk, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def serving(folder: Path, delay_ms: float, core: int) -> Iterator[str]:
    """Run the server in a process of its own, on one core; gives its address."""
    command = [sys.executable, __file__, str(folder), "--delay-ms", str(delay_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            os.sched_setaffinity(process.pid, {core})
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--delay-ms", type=float, default=30.0)
    given = parser.parse_args()
    asyncio.run(_serve(given.folder, given.delay_ms / 1000))


if __name__ == "__main__":
    main()
