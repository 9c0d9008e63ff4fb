"""Who was told what of which image: one line of JSON for every image, without a name and without a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.errors import UsageError
from pipelines.serving.problems import refused

MODE = 0o640


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
        except OSError:
            raise refused("audit_failed", "The audit log cannot be written, so that nothing is answered.", 60) from None

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
