"""`audit.jsonl`: one line for each act that changed what results or models mean, added and never changed.

The line is written after the act, and tells what really came of it: no line tells of something that did not happen. A
process that dies between the two leaves an act without its line; the table's log and champion.json have it all the
same. Two writers lose no line: a local file grows by one write of a whole line at its end, under a lock; an object of a
bucket is replaced only if it is still the one that was read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pipelines.errors import TryLater
from pipelines.storage import faults, files, local_files, paths
from pipelines.storage.faults import Fault
from pipelines.storage.settings import open_store, settings_of

if TYPE_CHECKING:
    from obstore.store import S3Store

FORMAT: Final = 1
FILE: Final = "audit.jsonl"
_TRIES: Final = 50


def audit_uri(folder: str) -> str:
    """Where the audit of a results or models folder lies."""
    return paths.join(paths.canonical(folder), FILE)


def check_audit(folder: str) -> None:
    """Refuse an act whose line could not be written, before it is done.

    Raises:
        UsageError: If the file is there and may not be written to.
        TryLater: If storage does not answer.
    """
    place = audit_uri(folder)
    with files.explaining(place), contextlib.suppress(FileNotFoundError):
        if paths.is_local(place):
            os.close(os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
        else:
            files.size(place)


def add_line(folder: str, entry: Mapping[str, Any]) -> None:
    """Add one line, whole.

    Args:
        folder: The results or models folder.
        entry: What is told, as JSON values; text of any kind becomes part of one line of ASCII.

    Raises:
        UsageError: If the file may not be written.
        TryLater: If storage does not answer, the disk is full, or others write without end.
    """
    place = audit_uri(folder)
    line = json.dumps({"format": FORMAT, **entry}).encode() + b"\n"
    if paths.is_local(place):
        with files.explaining(place):
            _append_locally(place, line)
    elif paths.is_bucket(place):
        with files.explaining(place):
            _append_to_object(place, line)
    else:
        files.write_atomic(place, _with_line(_content(place), line))


def read_audit(folder: str) -> tuple[list[dict[str, Any]], int]:
    """Read every line.

    Returns:
        Those that can be read, oldest first, and how many cannot.

    Raises:
        UsageError: If the file may not be read.
        TryLater: If storage does not answer.
    """
    entries, damaged = [], 0
    for line in _content(audit_uri(folder)).split(b"\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict) and {"at", "action"} <= value.keys():
            entries.append(value)
        else:
            damaged += 1
    return entries, damaged


def _content(place: str) -> bytes:
    try:
        return files.read_bytes(place)
    except FileNotFoundError:
        return b""


def _with_line(content: bytes, line: bytes) -> bytes:
    """A line that was cut off before does not take this one with it."""
    return content + (b"\n" if content and not content.endswith(b"\n") else b"") + line


def _append_locally(place: str, line: bytes) -> None:
    local_files.make_folder(os.path.dirname(place))
    is_new = not os.path.exists(place)
    descriptor = os.open(place, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, local_files.FILE_MODE)
    with open(descriptor, "r+b", buffering=0) as file:
        # Appending is one step on a disk; on NFS only the lock makes it one. Where there are no locks it has to do.
        with contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        last = os.pread(descriptor, 1, size - 1) if size else b"\n"
        written = os.write(descriptor, line if last == b"\n" else b"\n" + line)
        if written < len(line):
            raise OSError(errno.ENOSPC, "the disk is full", place)
        os.fsync(descriptor)
    if is_new:
        with contextlib.suppress(OSError):  # mounts that know no modes, or cannot sync a folder
            os.chmod(place, local_files.FILE_MODE)
            local_files.sync(os.path.dirname(place))


def _object(store: S3Store, key: str) -> tuple[bytes, Any]:
    """An object's content, and the condition under which it may be replaced: that it is still this one."""
    try:
        found = faults.with_retries(lambda: store.get(key))
    except FileNotFoundError:
        return b"", "create"
    return bytes(found.bytes()), {"e_tag": found.meta["e_tag"]}


def _append_to_object(place: str, line: bytes) -> None:
    bucket, key = paths.split_bucket(place)
    store = open_store(bucket, settings_of(place), own_retries=True)
    for _ in range(_TRIES):
        content, condition = _object(store, key)
        if line in content:  # written by a request whose answer was lost
            return
        try:
            store.put(key, _with_line(content, line), mode=condition)
            return
        except Exception as error:
            if faults.fault_of(error) not in (Fault.EXISTS, Fault.PASSING):
                raise
        time.sleep(random.uniform(0, 0.2))
    raise TryLater(f"{place!r} is being written by others without end.", "Start the same command again.")
