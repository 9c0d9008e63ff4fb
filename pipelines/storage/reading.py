"""Reading one image's bytes together with the version that these very bytes have."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from pipelines.errors import ImageFailure
from pipelines.storage import faults, paths
from pipelines.storage.faults import Fault, Hold
from pipelines.storage.settings import S3Settings, fsspec_filesystem, open_store, settings_of
from pipelines.storage.throttle import Throttle


@dataclass(frozen=True)
class Blob:
    """A file's content.

    Attributes:
        data: All its bytes.
        version: What listing reports for it as long as it is not replaced.
    """

    data: bytes
    version: str


class _Changing(OSError):
    """The file was written to while it was read."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "changed while it was read")


def local_version(status: os.stat_result) -> str:
    """Return the version of a local file: size in bytes and time of modification in nanoseconds."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def object_version(e_tag: str | None, size: int, modified: datetime) -> str:
    """Return the version of an object: its ETag without quotes, or size and time where a store gives none."""
    if e_tag:
        return e_tag.strip('"')
    return f"{size}-{int(modified.timestamp()) * 1_000_000_000 + modified.microsecond * 1000}"


def other_version(info: Mapping[str, Any]) -> str:
    """Return the version of a file of another fsspec scheme, from its details."""
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    if tag:
        return str(tag).strip('"')
    changed = changed_at(info)
    # Some file systems give a time as a date in one answer and as a number in another.
    moment = changed.timestamp() if isinstance(changed, datetime) else changed
    return f"{info.get('size')}-{moment}"


def changed_at(info: Mapping[str, Any]) -> Any:
    """Return when a file of another fsspec scheme was last written: a date, a number of seconds, or None."""
    return info.get("mtime") or info.get("LastModified") or info.get("last_modified") or info.get("created")


class ImageReader:
    """Reads images; may be shared by threads and sent to other processes.

    What a server asks one thread for (`Retry-After`) all threads that share a reader comply with.

    Args:
        max_bytes: Files of more bytes are refused before their content is read.
        throttle: Is waited for before each request, those of further tries included; None: as fast as it goes.
        sleep: Instead of the real one, between tries.
    """

    def __init__(
        self, max_bytes: int, throttle: Throttle | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.max_bytes = max_bytes
        self._throttle = throttle
        self._sleep = sleep
        self._hold = Hold(sleep)

    def __reduce__(self) -> tuple[type[ImageReader], tuple[int, Throttle | None]]:
        """Send the limits only: connections and credentials are opened where the reader is used."""
        return type(self), (self.max_bytes, self._throttle)

    def read(self, uri: str) -> Blob:
        """Read one image.

        Args:
            uri: A canonical image URI, escaped as listing gives it.

        Raises:
            ImageFailure: not_found, permission, too_large, or storage when it failed again and again.
        """
        place = paths.unescape_name(uri)
        try:
            return faults.with_retries(self._tries_at(place), sleep=self._sleep, before=self._await_leave)
        except ImageFailure:
            raise
        except Exception as error:
            raise _as_failure(error) from None

    def _await_leave(self) -> None:
        self._hold.wait()
        if self._throttle is not None:
            self._throttle.wait()

    def _tries_at(self, place: str) -> Callable[[], Blob]:
        """Return what reads a file once; after a refusal for too many requests it reads so that it hears the reason."""
        if paths.is_local(place):
            return lambda: self._read_local(place)
        if not paths.is_bucket(place):
            return lambda: self._read_other(place)
        bucket, key = paths.split_bucket(place)
        refused = False

        def attempt() -> Blob:
            nonlocal refused
            read = self._read_plainly if refused else self._read_object
            try:
                return read(bucket, key, settings_of(place))  # each time: credentials may have been renewed
            except Exception as error:
                refused = faults.is_throttled(error)
                self._hold.ask_for(faults.told_to_wait(error))
                raise

        return attempt

    def _read_local(self, path: str) -> Blob:
        # Not blocking: a pipe that has taken the file's place would never answer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise ImageFailure("not_found", "In the file's place is something else, such as a folder.")
            self._check_size(before.st_size)
            data = _read_whole(descriptor, before.st_size)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if len(data) != after.st_size or local_version(before) != local_version(after):
            raise _Changing
        return Blob(data, local_version(after))

    def _read_object(self, bucket: str, key: str, settings: S3Settings) -> Blob:
        store = open_store(bucket, settings, own_retries=True)
        try:
            answer = store.get(key)
        except Exception as error:
            if faults.fault_of(error) is Fault.BAD_KEY:
                return self._read_plainly(bucket, key, settings)
            raise
        # One answer gives version and bytes, so that they belong together whatever happens to the object meanwhile.
        meta = answer.meta
        self._check_size(meta["size"])
        data = answer.bytes().to_bytes()
        if len(data) != meta["size"]:
            raise _Changing
        return Blob(data, object_version(meta["e_tag"], meta["size"], meta["last_modified"]))

    def _read_plainly(self, bucket: str, key: str, settings: S3Settings) -> Blob:
        """Read by the client that knows every key and shows the headers of refusals, at seven times the cost."""
        answer = _plain_client(settings).get_object(Bucket=bucket, Key=key)
        with answer["Body"] as body:
            self._check_size(answer["ContentLength"])
            data = body.read()
        if len(data) != answer["ContentLength"]:
            raise _Changing
        return Blob(data, object_version(answer.get("ETag"), len(data), answer["LastModified"]))

    def _read_other(self, uri: str) -> Blob:
        file_system = fsspec_filesystem(uri)
        before = file_system.info(uri)
        self._check_size(before["size"] or 0)
        data = file_system.cat_file(uri)
        if other_version(file_system.info(uri)) != other_version(before):
            raise _Changing
        return Blob(data, other_version(before))

    def _check_size(self, size: int) -> None:
        if size > self.max_bytes:
            raise ImageFailure("too_large", f"The file has {size} bytes; at most {self.max_bytes} are read.")


@lru_cache(maxsize=8)
def _plain_client(settings: S3Settings) -> Any:
    return settings.botocore_client(tries=1)


def lists_something(root: str) -> bool | None:
    """Say whether a place is there and not empty; None where that cannot be said: it may not be listed.

    Args:
        root: A folder as a person typed it (not escaped), or a URI.
    """
    place = paths.canonical(root)
    try:
        return faults.with_retries(lambda: _has_entry(place))
    except Exception as error:
        return None if faults.fault_of(error) in (Fault.DENIED, Fault.NO_CREDENTIALS, Fault.BAD_KEY) else False


def _has_entry(place: str) -> bool:
    if paths.is_local(place):
        with os.scandir(place) as entries:
            return next(entries, None) is not None
    if not paths.is_bucket(place):
        return bool(fsspec_filesystem(place).ls(place, detail=False))
    bucket, prefix = paths.split_bucket(place)
    store = open_store(bucket, settings_of(place), own_retries=True)
    first = next(iter(store.list(prefix or None, chunk_size=2)), [])
    # A marker of the folder itself comes without its slash.
    return any(item["path"] != prefix for item in first)


def _read_whole(descriptor: int, size: int) -> bytes:
    """Read to the end of a file that should have this size; one byte more tells when it has grown."""
    pieces: list[bytes] = []
    wanted = size + 1
    while wanted > 0:
        piece = os.read(descriptor, wanted)
        if not piece:
            break
        pieces.append(piece)
        wanted -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _as_failure(error: Exception) -> Exception:
    if isinstance(error, _Changing):
        return ImageFailure("storage", "The file kept changing while it was read.")
    if isinstance(error, ValueError) and "null" in str(error):
        return ImageFailure("not_found", "No file can have this name.")
    fault = faults.fault_of(error)
    if fault is None:
        return error
    if fault in (Fault.MISSING, Fault.NO_BUCKET, Fault.BAD_KEY):
        return ImageFailure("not_found", "The file was gone when it was read.")
    if fault in (Fault.DENIED, Fault.NO_CREDENTIALS, Fault.EXPIRED):
        return ImageFailure("permission", "The file may not be read with these rights.")
    return ImageFailure("storage", "Storage failed again and again while the file was read.")
