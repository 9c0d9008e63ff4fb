"""Small files, written whole or not at all: records, markers, parts, bundles.

Local files become 0640 and folders 0750. In buckets one put does it; everything goes through the same bounded
retries. All functions raise `UsageError` where access is refused or the place cannot be right, and `TryLater` for a
full disk and for storage that does not answer.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from pipelines.storage import faults, local_files, paths
from pipelines.storage.faults import Fault, Result
from pipelines.storage.scratch import Scratch
from pipelines.storage.settings import fsspec_filesystem, open_store, settings_of

_PIECE = 8 << 20


def read_bytes(uri: str) -> bytes:
    """Return a file's content.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    place = paths.canonical(uri)
    if paths.is_bucket(place):
        _, key = paths.split_bucket(place)
        return _do(place, lambda: bytes(_store(place).get(key).bytes()))
    if paths.is_local(place):
        return _do(place, lambda: Path(place).read_bytes())
    return _do(place, lambda: bytes(fsspec_filesystem(place).cat_file(place)))


@contextlib.contextmanager
def open_input(uri: str) -> Iterator[IO[bytes]]:
    """Open a file for reading in pieces at any place in it.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    place = paths.canonical(uri)
    if paths.is_local(place):
        handle = _do(place, lambda: Path(place).open("rb"))  # noqa: SIM115 - the `with` is below
    else:
        handle = _do(place, lambda: fsspec_filesystem(place).open(place, "rb"))
    with handle:
        yield handle


def write_atomic(uri: str, data: bytes) -> None:
    """Write a file so that a reader, and a crash at any moment, sees the old content or the new, never a part."""
    place = paths.canonical(uri)
    if paths.is_bucket(place):
        _, key = paths.split_bucket(place)
        _do(place, lambda: _store(place).put(key, data))
    elif paths.is_local(place):
        _do(place, lambda: local_files.write(place, data), writing=True)
    else:
        _do(place, lambda: fsspec_filesystem(place).pipe_file(place, data))


def create_exclusive(uri: str, data: bytes) -> bool:
    """Create a file only if there is none; of any number of callers exactly one is told True.

    Args:
        uri: The file.
        data: Its content, which must be this caller's own (hold a random token): an answer that was lost on the
            way is settled by reading the file back.
    """
    place = paths.canonical(uri)
    if paths.is_bucket(place):
        return _create_object(place, data)
    if paths.is_local(place):
        return _do(place, lambda: local_files.create(place, data), writing=True)
    try:
        _do(place, lambda: fsspec_filesystem(place).pipe_file(place, data, mode="create"))
    except FileExistsError:
        return False
    return True


def _create_object(place: str, data: bytes) -> bool:
    _, key = paths.split_bucket(place)
    unsure = False

    def attempt() -> bool:
        nonlocal unsure
        try:
            _store(place).put(key, data, mode="create")
        except Exception as error:
            if faults.fault_of(error) is Fault.EXISTS:
                return False
            # A put whose answer was lost may have been done all the same.
            unsure = True
            raise
        return True

    created = _do(place, attempt)
    return created or (unsure and read_bytes(place) == data)


def exists(uri: str) -> bool:
    """Say whether there is a file, or a folder with something in it, of this name."""
    place = paths.canonical(uri)
    if paths.is_local(place):
        return os.path.lexists(place)
    if not paths.is_bucket(place):
        return bool(_do(place, lambda: fsspec_filesystem(place).exists(place)))
    try:
        size(place)
    except FileNotFoundError:
        return bool(list_names(place))
    return True


def size(uri: str) -> int:
    """Return a file's size in bytes.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    place = paths.canonical(uri)
    if paths.is_local(place):
        return _do(place, lambda: os.stat(place).st_size)
    if not paths.is_bucket(place):
        return int(_do(place, lambda: fsspec_filesystem(place).size(place)))
    _, key = paths.split_bucket(place)
    if not key:
        raise FileNotFoundError(place)
    return int(_do(place, lambda: _store(place).head(key)["size"]))


def list_names(folder: str) -> list[str]:
    """Return the sorted names of what lies directly in a folder; none if there is no such folder."""
    place = paths.canonical(folder)
    try:
        if paths.is_local(place):
            return sorted(_do(place, lambda: os.listdir(place)))
        if paths.is_bucket(place):
            return sorted(_do(place, lambda: _names_in_bucket(place)))
        return sorted(paths.name(item) for item in _do(place, lambda: fsspec_filesystem(place).ls(place, detail=False)))
    except FileNotFoundError:
        return []


def _names_in_bucket(place: str) -> set[str]:
    _, key = paths.split_bucket(place)
    found = _patient_store(place).list_with_delimiter(key or None)
    # A key that is the folder's own name with a slash is a marker, not something in it.
    inside = [item["path"] for item in found["objects"] if item["path"] != key]
    return {paths.name(path) for path in [*inside, *found["common_prefixes"]]}


def delete(uri: str) -> None:
    """Delete one file; one that is not there is fine."""
    place = paths.canonical(uri)
    with contextlib.suppress(FileNotFoundError):
        if paths.is_local(place):
            _do(place, lambda: os.unlink(place))
        elif paths.is_bucket(place):
            _, key = paths.split_bucket(place)
            _do(place, lambda: _store(place).delete(key))
        else:
            _do(place, lambda: fsspec_filesystem(place).rm_file(place))


def delete_tree(folder: str) -> None:
    """Delete a folder and all in it, and nothing beside it: `runs/1` leaves `runs/10` alone.

    A link to a folder is removed, not what it points to.
    """
    place = paths.canonical(folder)
    with contextlib.suppress(FileNotFoundError):
        if paths.is_local(place):
            _do(place, lambda: local_files.delete_tree(place))
        elif paths.is_bucket(place):
            _do(place, lambda: _delete_prefix(place))
        else:
            _do(place, lambda: fsspec_filesystem(place).rm(place, recursive=True))


def _delete_prefix(place: str) -> None:
    _, key = paths.split_bucket(place)
    if not key:
        raise ValueError("a whole bucket is never deleted")
    store = _patient_store(place)
    # obstore ends the prefix with a slash, so that a neighbour whose name begins alike is not met.
    for found in store.list(key, chunk_size=1000):
        store.delete([item["path"] for item in found])


def fetch(uri: str, local_path: str) -> None:
    """Copy a file to a local path, whole or not at all.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    place = paths.canonical(uri)
    with local_files.replacing(os.path.abspath(local_path)) as temporary:
        if paths.is_bucket(place):
            _, key = paths.split_bucket(place)
            _do(place, lambda: _download(_store(place), key, temporary))
        elif paths.is_local(place):
            _do(place, lambda: shutil.copyfile(place, temporary))
        else:
            _do(place, lambda: fsspec_filesystem(place).get_file(place, temporary))


def _download(store: Any, key: str, path: str) -> None:
    with open(path, "wb") as file:
        for piece in store.get(key).stream(min_chunk_size=_PIECE):
            file.write(piece)


def put(local_path: str, uri: str) -> None:
    """Copy a local file to a place, where it appears whole or not at all.

    Raises:
        FileNotFoundError: If there is no such local file.
    """
    place = paths.canonical(uri)
    if paths.is_bucket(place):
        _, key = paths.split_bucket(place)
        _do(place, lambda: _patient_store(place).put(key, Path(local_path)))
    elif paths.is_local(place):

        def copy() -> None:
            with local_files.replacing(place) as temporary:
                shutil.copyfile(local_path, temporary)

        _do(place, copy)
    else:
        staged = f"{place}.{secrets.token_hex(6)}.tmp"
        file_system = fsspec_filesystem(place)
        _do(place, lambda: file_system.put_file(local_path, staged))
        _do(place, lambda: file_system.mv(staged, place))


@contextlib.contextmanager
def filling(uri: str) -> Iterator[str]:
    """Give the path of an empty local file to be filled; at the end it appears at `uri`, whole.

    For files too large to be held in memory. If the body fails, nothing appears.
    """
    place = paths.canonical(uri)
    with explaining(place):
        if paths.is_local(place):
            with local_files.replacing(place) as temporary:
                yield temporary
            return
        with Scratch() as folder:
            path = str(folder / "file")
            yield path
            put(path, place)


def _store(place: str) -> Any:
    """Return the client for single requests, which `_do` repeats."""
    return open_store(paths.split_bucket(place)[0], settings_of(place), own_retries=True)


def _patient_store(place: str) -> Any:
    """Return the client for what takes many requests: it repeats each of them by itself."""
    return open_store(paths.split_bucket(place)[0], settings_of(place))


def _do(place: str, action: Callable[[], Result], writing: bool = False) -> Result:
    """Run with retries; turn a client's error into one that a person can act on."""
    with explaining(place):
        try:
            return faults.with_retries(action)
        except FileNotFoundError:
            if writing:
                raise faults.explained(Fault.WRONG_PLACE, place) from None
            raise


@contextlib.contextmanager
def explaining(place: str) -> Iterator[None]:
    """Turn the errors of a storage client that is used within into ones that a person can act on.

    `FileNotFoundError` and `FileExistsError` pass, for the caller to answer, unless it is the bucket that is missing.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError) as error:
        if faults.fault_of(error) is not Fault.NO_BUCKET:
            raise
        raise faults.explained(Fault.NO_BUCKET, place) from None
    except Exception as error:
        raise faults.translated(error, place) from None
