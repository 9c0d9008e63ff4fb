"""Files that can be read and nothing else, for a library that would also write: the wall is below the library."""

from __future__ import annotations

import datetime
import os
import threading
from collections.abc import Mapping
from typing import Any

from fsspec import AbstractFileSystem

from pipelines.errors import NightreadError, TryLater
from pipelines.storage import faults, paths
from pipelines.storage.settings import fsspec_filesystem

SCHEME = "nightread"


class ReadOnlyFile:
    """A file that several threads read at once, each from a place of its own.

    DuckDB shares a file among its threads, seeks, then reads: with one place for all of them another thread's seek
    comes in between now and then, and what is read is from elsewhere; answers were wrong without a word.

    Args:
        handle: Open for reading; closed with this one.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._lock = threading.Lock()
        self._place = threading.local()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the calling thread's place."""
        if whence == os.SEEK_CUR:
            offset += self.tell()
        elif whence == os.SEEK_END:
            with self._lock:
                offset = self._handle.seek(offset, os.SEEK_END)
        self._place.offset = offset
        return offset

    def tell(self) -> int:
        """The calling thread's place, from 0."""
        return getattr(self._place, "offset", 0)

    def read(self, count: int = -1) -> bytes:
        """Read at the calling thread's place and move it on."""
        with self._lock:
            self._handle.seek(self.tell())
            data: bytes = self._handle.read(count)
        self._place.offset = self.tell() + len(data)
        return data

    def seekable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Close it for all threads."""
        self._handle.close()


class ReadOnlyFiles(AbstractFileSystem):  # type: ignore[misc]
    """A file system of some files under names of its own; it opens them for reading and does nothing else.

    A library that wraps an error in text of its own leaves the error itself in `failure`.

    Args:
        uris: What each name below `nightread://` stands for: a local path or another URI, all of one kind of storage.
        remote: The fsspec file system of those URIs; by default found by their scheme, and none for local paths.
    """

    protocol = SCHEME
    cachable = False

    def __init__(self, uris: Mapping[str, str], remote: AbstractFileSystem | None = None) -> None:
        super().__init__()
        self.failure: NightreadError | None = None
        self._uris = dict(uris)
        first = next(iter(self._uris.values()), "/")
        self._remote = remote if remote is not None or paths.is_local(first) else fsspec_filesystem(first)

    def open(self, path: str, mode: str = "rb", **_options: Any) -> ReadOnlyFile:
        """Open a file for reading.

        Raises:
            PermissionError: For any other mode.
            FileNotFoundError: For a name that is none of these files.
            NightreadError: If storage fails.
        """
        if mode != "rb":
            raise PermissionError(f"{path!r} can only be read")
        uri = self._uri_of(path)
        try:
            # Unbuffered: the library reads in large pieces.
            return ReadOnlyFile(self._remote.open(uri, "rb") if self._remote else open(uri, "rb", buffering=0))
        except Exception as error:
            raise self._remembered(error, uri) from None

    def info(self, path: str, **_options: Any) -> dict[str, Any]:
        """Name, type and size in bytes of a file."""
        uri = self._uri_of(path)
        try:
            size = self._remote.size(uri) if self._remote else os.stat(uri).st_size
        except Exception as error:
            raise self._remembered(error, uri) from None
        return {"name": path, "type": "file", "size": size}

    def glob(self, path: str, **_options: Any) -> list[str]:
        """The name itself if it is one of these files: names hold no patterns."""
        return [path] if path in self._uris else []

    def modified(self, path: str) -> datetime.datetime:
        """The same moment always: these files never change."""
        self._uri_of(path)
        return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

    def _uri_of(self, path: str) -> str:
        if path not in self._uris:
            raise FileNotFoundError(path)
        return self._uris[path]

    def _remembered(self, error: Exception, uri: str) -> Exception:
        told = faults.translated(error, uri)
        if isinstance(told, FileNotFoundError):
            told = TryLater(f"The file {uri!r} is gone.", "If it was being cleaned or moved, ask again.")
        if isinstance(told, NightreadError):
            self.failure = told
        return told if isinstance(told, Exception) else error
