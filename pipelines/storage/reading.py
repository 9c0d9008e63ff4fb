"""Reading one image's bytes together with the version that these very bytes have."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipelines.errors import ImageFailure
from pipelines.storage import faults, paths
from pipelines.storage.faults import Fault
from pipelines.storage.settings import S3Settings, fsspec_filesystem, open_store, settings_of


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
    changed = info.get("mtime") or info.get("LastModified") or info.get("last_modified") or info.get("created")
    if tag:
        return str(tag).strip('"')
    # Some file systems give a time as a date in one answer and as a number in another.
    moment = changed.timestamp() if isinstance(changed, datetime) else changed
    return f"{info.get('size')}-{moment}"


class ImageReader:
    """Reads images; may be shared by threads and sent to other processes.

    Args:
        max_bytes: Files of more bytes are refused before their content is read.
        sleep: Instead of the real one, between tries.
    """

    def __init__(self, max_bytes: int, sleep: Callable[[float], None] = time.sleep) -> None:
        self.max_bytes = max_bytes
        self._sleep = sleep

    def __reduce__(self) -> tuple[type[ImageReader], tuple[int]]:
        """Send the limit only: connections and credentials are opened where the reader is used."""
        return type(self), (self.max_bytes,)

    def read(self, uri: str) -> Blob:
        """Read one image.

        Args:
            uri: A canonical image URI, escaped as listing gives it.

        Raises:
            ImageFailure: not_found, permission, too_large, or storage when it failed again and again.
        """
        place = paths.unescape_name(uri)
        read: Callable[[str], Blob]
        if paths.is_bucket(place):
            read = self._read_object
        else:
            read = self._read_local if paths.is_local(place) else self._read_other
        try:
            return faults.with_retries(lambda: read(place), sleep=self._sleep)
        except ImageFailure:
            raise
        except Exception as error:
            raise _as_failure(error) from None

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

    def _read_object(self, uri: str) -> Blob:
        bucket, key = paths.split_bucket(uri)
        settings = settings_of(uri)
        store = open_store(bucket, settings, own_retries=True)
        try:
            answer = store.get(key)
        except Exception as error:
            if faults.fault_of(error) is Fault.BAD_KEY:
                return self._read_odd_key(bucket, key, settings)
            raise
        meta = answer.meta
        self._check_size(meta["size"])
        data = answer.bytes().to_bytes()
        if len(data) != meta["size"]:
            raise _Changing
        return Blob(data, object_version(meta["e_tag"], meta["size"], meta["last_modified"]))

    def _read_odd_key(self, bucket: str, key: str, settings: S3Settings) -> Blob:
        answer = settings.botocore_client().get_object(Bucket=bucket, Key=key)
        with answer["Body"] as body:
            self._check_size(answer["ContentLength"])
            data = body.read()
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
    if fault in (Fault.DENIED, Fault.NO_CREDENTIALS):
        return ImageFailure("permission", "The file may not be read with these rights.")
    return ImageFailure("storage", "Storage failed again and again while the file was read.")
