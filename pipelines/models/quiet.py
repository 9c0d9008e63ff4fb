"""Keep the native libraries' chatter away from the terminal.

TensorFlow and LiteRT write notes such as "Created TensorFlow Lite XNNPACK delegate" straight to file descriptor 2,
past Python's logging. An operator who reads stderr in the morning should find only our own sentences there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

_STDERR = 2


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Send what the process writes to descriptor 2 to nowhere while the block runs.

    The whole process is affected, other threads included, so the block should be short. Exceptions pass through.
    """
    sys.stderr.flush()
    before = os.dup(_STDERR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STDERR)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, _STDERR)
        os.close(before)
        os.close(nowhere)
