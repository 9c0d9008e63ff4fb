"""Temporary folders that do not pile up: what a killed process left is removed by the next one of the same user."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final

PREFIX: Final = "nightread."
NAME_LENGTH: Final = len(PREFIX) + 8
# A folder is locked at once after it was made; nobody may take it for a dead one in between.
YOUNGEST: Final = 60.0


class Scratch:
    """A folder of this process's own in the system's temporary folder; only its user can enter it.

    It is locked as long as this process lives, so that those of dead processes can be told; making one removes them.

    Attributes:
        path: The folder, empty at first.

    Raises:
        OSError: If it cannot be made.
    """

    def __init__(self) -> None:
        remove_stale(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.suppress(OSError):  # a file system without locks: then nobody else can lock it either
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def remove_stale(root: Path, now: float | None = None) -> None:
    """Remove this user's folders of processes that ended without removing them.

    Args:
        root: The system's temporary folder.
        now: The time, in seconds since 1970; by default this machine's.
    """
    limit = (time.time() if now is None else now) - YOUNGEST
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and len(entry.name) == NAME_LENGTH:
                with contextlib.suppress(OSError):
                    _remove_if_stale(Path(entry.path), limit)


def _remove_if_stale(folder: Path, limit: float) -> None:
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_ctime > limit:
        return
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
