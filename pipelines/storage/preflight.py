"""Whether a place can hold results, tried before anything is written there.

The lease and the commit stand on one promise: of any number of writers that create a file of one name, exactly one
succeeds. Some stores accept the condition and ignore it, and then commits are lost without an error; so the promise
is put to the proof, with a file of a random name that is gone afterwards. The table's library asks stores for the
same condition as the lease does (`If-None-Match: *`), so that one proof holds for both.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.errors import NightreadError, UsageError
from pipelines.storage import faults, files, local_files, paths

CURE = "Keep results on a disk or on a store with conditional writes."

_TRIES = 5
# What a file system says that cannot sync a folder; the names in it are then as safe as it can make them.
_NO_FOLDER_SYNC = frozenset((errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EISDIR))


@dataclass(frozen=True)
class Proof:
    """What a place for results has been found to do.

    Attributes:
        hard_links: Whether a file can get a second name there. Without it the table can only be committed by a
            rename that replaces, which nothing but the lease guards; buckets need none.
    """

    hard_links: bool

    @property
    def remark(self) -> str:
        """What a person should know of the place; empty where there is nothing."""
        if self.hard_links:
            return ""
        return (
            "This file system knows no hard links: commits go by a plain rename, and only the lease keeps two writers "
            "apart."
        )


def prove_place(uri: str) -> Proof:
    """Try whether results can be kept in a place; nothing is left behind.

    Milliseconds on a disk, five requests in a bucket. Several hosts may try the same place at once; a folder that was
    not there yet may then stay, empty.

    Args:
        uri: The results folder; it need not exist.

    Raises:
        UsageError: If creating is not exclusive there, a rename does not replace, or it may not be written; says why.
        TryLater: If the disk is full or storage does not answer.
    """
    place = paths.canonical(uri)
    if paths.is_local(place):
        return _prove_disk(place)
    _prove_store(place)
    return Proof(hard_links=True)


def has_hard_links(uri: str) -> bool:
    """Say whether a file can get a second name in a folder that exists; true of every bucket, which needs none.

    Raises:
        UsageError, TryLater: As `prove_place`.
    """
    place = paths.canonical(uri)
    if not paths.is_local(place):
        return True
    with _explained(place):
        return faults.with_retries(lambda: _try_links(place))


def _try_links(folder: str) -> bool:
    with _probe_folder(folder) as probe:
        _create(os.path.join(probe, "one"), b"")
        return _links(os.path.join(probe, "one"), os.path.join(probe, "two"))


def _prove_disk(place: str) -> Proof:
    with _explained(place):
        return faults.with_retries(lambda: _prove_folder(place))


def _prove_folder(place: str) -> Proof:
    with _probe_folder(place) as probe:
        one, two = os.path.join(probe, "one"), os.path.join(probe, "two")
        first, second = secrets.token_bytes(16), secrets.token_bytes(16)
        if not _create(one, first) or _create(one, second) or _content(one) != first:
            raise UsageError(
                f"{place!r} is no place for results: a file that is there already can be created once more.", CURE
            )
        _create(two, second)
        os.replace(two, one)
        if _content(one) != second or os.path.lexists(two):
            raise UsageError(f"{place!r} is no place for results: a rename does not replace a file there.", CURE)
        linked = _links(one, two)
        if linked and _links(one, two):
            raise UsageError(f"{place!r} is no place for results: a link replaces a file that is there.", CURE)
        try:
            local_files.sync(probe)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise
        return Proof(linked)


def _create(path: str, data: bytes) -> bool:
    """Create a file for good; False if there is one already."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, local_files.FILE_MODE)
    except FileExistsError:
        return False
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    return True


def _links(existing: str, path: str) -> bool:
    """Give a file a second name; False where links are not known, or the name is taken."""
    try:
        os.link(existing, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in local_files.NO_LINKS:
            raise
        return False
    return True


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@contextlib.contextmanager
def _probe_folder(place: str) -> Iterator[str]:
    """A folder of a random name in `place`, gone afterwards together with the folders that had to be made for it."""
    made = _missing(place)
    try:
        probe = _make_probe(place)
        try:
            yield probe
        finally:
            local_files.delete_tree(probe)
    finally:
        # Another host may be using them by now, or have removed them.
        with contextlib.suppress(OSError):
            for folder in made:
                os.rmdir(folder)


def _missing(place: str) -> list[str]:
    """The folders that are not there yet, from `place` upwards."""
    missing = []
    while not os.path.lexists(place):
        missing.append(place)
        place = os.path.dirname(place)
    return missing


def _make_probe(place: str) -> str:
    probe = os.path.join(place, f".nightread-probe-{secrets.token_hex(8)}")
    for attempt in range(_TRIES):
        try:
            local_files.make_folder(place)
            os.mkdir(probe, local_files.FOLDER_MODE)
        except FileNotFoundError:  # another host has made the folder, and removed it again, meanwhile
            if attempt == _TRIES - 1:
                raise
        else:
            break
    return probe


def _prove_store(place: str) -> None:
    files.list_names(paths.join(place, "leases"))  # the lease needs it, and a store that is down is found out here
    probe = paths.join(place, f".nightread-probe-{secrets.token_hex(8)}")
    first, second = secrets.token_bytes(16), secrets.token_bytes(16)
    try:
        sound = (
            _create_object(place, probe, first)
            and not _create_object(place, probe, second)
            and files.read_bytes(probe) == first
        )
    except BaseException:
        with contextlib.suppress(NightreadError):
            files.delete(probe)
        raise
    files.delete(probe)
    if not sound:
        raise UsageError(
            f"The store of {place!r} takes the condition If-None-Match and ignores it: of two writers the second "
            "would replace what the first one wrote.",
            CURE,
        )


def _create_object(place: str, probe: str, data: bytes) -> bool:
    """Create on condition; a store that writes, but not on condition, is told apart from one that does not write."""
    try:
        return files.create_exclusive(probe, data)
    except NightreadError:
        if _writes(probe) and not _writes_on_condition(probe, data):
            raise UsageError(f"The store of {place!r} refuses conditional writes.", CURE) from None
        raise


def _writes(probe: str) -> bool:
    try:
        files.write_atomic(probe, b"")
        files.delete(probe)
    except NightreadError:
        return False
    return True


def _writes_on_condition(probe: str, data: bytes) -> bool:
    try:
        return files.create_exclusive(probe, data)
    except NightreadError:
        return False


@contextlib.contextmanager
def _explained(place: str) -> Iterator[None]:
    """Say why a folder cannot be written, not only that it cannot."""
    try:
        yield
    except OSError as error:
        told = faults.explained(faults.fault_of(error) or faults.Fault.PASSING, place)
        reason = (error.strerror or type(error).__name__).lower()
        if isinstance(told, NightreadError):
            raise type(told)(f"Nothing can be kept in {place!r}: {reason}.", told.cure) from None
        raise UsageError(f"Nothing can be kept in {place!r}: {reason}.", "Name a folder that can be made.") from None
