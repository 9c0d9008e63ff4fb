"""Writing on local file systems so that nothing is ever seen half: temporary name, fsync, then rename or link."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator

FILE_MODE = 0o640
FOLDER_MODE = 0o750
NO_LINKS = frozenset((errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL))


def make_folder(path: str) -> None:
    """Make a folder and those above it that are missing."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    if above != path:
        make_folder(above)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, FOLDER_MODE)
        _set_mode(path, FOLDER_MODE)
    if not os.path.isdir(path):
        raise NotADirectoryError(errno.EISDIR, "a file is in the folder's place", path)


def write(path: str, data: bytes) -> None:
    """Replace a file's content in one step, and only once it is safely on the disk."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: str, beside: str | None = None) -> Iterator[str]:
    """Give the name of an empty file beside `path` to be filled; it takes the place of `path` at the end, whole.

    If the body fails, the temporary file is removed and `path` stays as it was. Temporary names begin with a dot
    and end in `.tmp`; a kill may leave one, which nothing here ever reads.

    Args:
        path: The file.
        beside: Fill it beside this name of the same file system instead, and call it after this one.
    """
    temporary = _new_file_beside(beside or path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(os.path.dirname(path))


def remove_leftovers(path: str) -> None:
    """Remove the temporary files that kills have left beside a path; only for a caller who alone writes it."""
    for leftover in glob.glob(f"{glob.escape(_stem(path))}*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(leftover)


def create(path: str, data: bytes) -> bool:
    """Create a file whole if there is none of that name.

    Returns:
        False if there is one already.
    """
    temporary = _new_file_beside(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _create_in_place(path, data)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    _sync_folder(os.path.dirname(path))
    return True


def delete_tree(path: str) -> None:
    """Delete a folder with all in it, or the link that stands in its place; others may delete it at the same time."""
    if os.path.islink(path) or not os.path.isdir(path):
        os.unlink(path)
        return
    while os.path.lexists(path):
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            continue


def _create_in_place(path: str, data: bytes) -> bool:
    """Create where hard links are unknown (SMB, FUSE): exclusive too, but a crash may leave it empty."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    except FileExistsError:
        return False
    with open(descriptor, "wb") as file:
        file.write(data)
    sync(path)
    _sync_folder(os.path.dirname(path))
    return True


def _new_file_beside(path: str) -> str:
    folder, _ = os.path.split(path)
    make_folder(folder or ".")
    temporary = f"{_stem(path)}{secrets.token_hex(6)}.tmp"
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
    _set_mode(temporary, FILE_MODE)
    return temporary


def _stem(path: str) -> str:
    """What the names of temporary files beside a path begin with."""
    folder, name = os.path.split(path)
    # The name is cut: with the random part it must stay below the 255 bytes that file systems allow.
    return os.path.join(folder, f".{name[:40]}.")


def _set_mode(path: str, mode: int) -> None:
    # Whatever the umask says; mounts that know no modes refuse.
    with contextlib.suppress(PermissionError, NotImplementedError):
        os.chmod(path, mode)


def sync(path: str) -> None:
    """Return once the disk has a file's content, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: str) -> None:
    # Some mounts cannot sync a folder; the file itself is safe by then.
    with contextlib.suppress(OSError):
        sync(path or ".")
