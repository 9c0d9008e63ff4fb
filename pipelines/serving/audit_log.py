"""Who was told what of which image: one line of JSON for every image, without a name and without a picture."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.errors import UsageError
from pipelines.serving.problems import Refused, refused

MODE = 0o640
AGAIN_SECONDS = 60
"""When a caller may try again whose answer could not be recorded."""

LOG = logging.getLogger("nightread.serve")


@dataclass(frozen=True)
class Entry:
    """One image.

    Attributes:
        time: ISO 8601, UTC.
        request_id: The request's, as in the answer and the log.
        caller: The address that asked.
        token: Who asked, as far as the token tells: the first eight digits of its SHA-256; None without token.
        content_sha256: Of the file's bytes.
        model_id: What answered; None where nothing did.
        decision: `negative`, `refer` or `positive`; None without thresholds or without answer.
        status: `answered`, or the code of why not.
    """

    time: str
    request_id: str
    caller: str | None
    token: str | None
    content_sha256: str
    model_id: str | None
    decision: str | None
    status: str


class AuditLog:
    """Appends entries; follows its path when the file there was moved away or replaced.

    An entry is with the system before its answer leaves, so that a death of this process loses none; a power cut may
    lose those of the last seconds.

    Args:
        path: The file; it is created, for its owner to write and its group to read.

    Raises:
        UsageError: If it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._torn = False
        self._failed_at: float | None = None
        try:
            self._descriptor = self._opened()
        except OSError as error:
            raise UsageError(
                f"--audit-log {path} cannot be written: {error.strerror}.", "Name a file in a folder of this user."
            ) from error

    def append(self, entries: Iterable[Entry]) -> None:
        """Write entries, each whole.

        Raises:
            Refused: If they cannot be written: no answer may leave then (503).
        """
        text = "".join(json.dumps(asdict(entry)) + "\n" for entry in entries)
        try:
            self._follow()
            # After half a line, the next one begins on its own.
            rest = memoryview(("\n" + text if self._torn else text).encode())
            while rest:
                written = os.write(self._descriptor, rest)
                self._torn = written < len(rest)
                rest = rest[written:]
        except OSError as error:
            if self._failed_at is None:
                LOG.error("The audit log cannot be written (%s): nothing is answered until it can.", error.strerror)
            self._failed_at = time.monotonic()
            raise self.refusal() from None
        if self._failed_at is not None:
            LOG.warning("The audit log is written again.")
            self._failed_at = None

    @property
    def is_failing(self) -> bool:
        """Whether the last entry could not be written, and callers have not been let try again since."""
        return self._failed_at is not None and time.monotonic() - self._failed_at < AGAIN_SECONDS

    @staticmethod
    def refusal() -> Refused:
        """What a caller is told whose answer cannot be recorded."""
        told = "The audit log cannot be written, so that nothing is answered."
        return refused("audit_failed", told, AGAIN_SECONDS)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _opened(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, MODE)

    def _follow(self) -> None:
        """Open the path again where another file is there now, or none: whoever rotates logs need not tell us."""
        ours = os.fstat(self._descriptor)
        try:
            there = os.stat(self._path)
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
        except FileNotFoundError:
            pass
        opened = self._opened()
        os.close(self._descriptor)
        self._descriptor, self._torn = opened, False
