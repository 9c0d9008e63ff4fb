"""What each process of ours does first."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
# Whatever is written is at most 0640, folders 0750: names of images are nobody else's business.
CLOSED_TO_OTHERS = 0o027


def close_to_others() -> int:
    """Have what this process and its children write closed to others, libraries' files too.

    Returns:
        The mask of modes before, for `os.umask`.
    """
    before = os.umask(0o077)
    os.umask(before | CLOSED_TO_OTHERS)
    return before


def begin_worker() -> None:
    """Begin a process that Ray started: its files are closed to others, and it ends with its node.

    A node of a joined cluster may have been started by a hand that leaves its files open.
    """
    close_to_others()
    _end_with_parent()


def _end_with_parent() -> None:
    """Have the kernel end this process with its node's daemon.

    Without it one that waits for a dead daemon, even at its own exit, waits for ever and holds its memory.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
