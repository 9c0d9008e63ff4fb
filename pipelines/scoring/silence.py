"""A night that shows nothing for a while says so, and what is known of the reason.

Actors that wait for an archive which went away, or for a core of a cluster that others use, give no receipt. The
driver does not see what they see; it asks the same places itself.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from pipelines.storage.reading import lists_something

SILENT_SECONDS = 30.0
LOOK_SECONDS: Final = 5.0


class Silence:
    """Watches for receipts that do not come.

    Args:
        tell: Called with what keeps the night waiting, in words; from another thread.
        reason: Finds what is known of it; may take long, and is then not waited for.
        clock: Monotonic seconds.
    """

    def __init__(
        self, tell: Callable[[str], None], reason: Callable[[], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._reason = reason
        self._clock = clock
        self._heard_at = clock()
        self._known = ""
        self._asking: threading.Thread | None = None

    def broken(self) -> None:
        """Take note of a receipt."""
        self._heard_at, self._known = self._clock(), ""

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look every few seconds while the block runs."""
        left = threading.Event()
        self._heard_at = self._clock()

        def look() -> None:
            while not left.wait(LOOK_SECONDS):
                self.look()

        thread = threading.Thread(target=look, name="silence", daemon=True)
        thread.start()
        try:
            yield
        finally:
            left.set()
            thread.join(2 * LOOK_SECONDS)

    def look(self) -> None:
        """Tell, if it has been silent for long; find out more for the next time."""
        seconds = self._clock() - self._heard_at
        if seconds < SILENT_SECONDS:
            return
        # A share that hangs holds whoever asks it, for ever perhaps: not this thread.
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=self._ask, name="reason", daemon=True)
            self._asking.start()
        self._asking.join(LOOK_SECONDS)
        self._tell(f"no news for {seconds:.0f} s" + (f": {self._known}" if self._known else ""))

    def _ask(self) -> None:
        since = self._heard_at
        with contextlib.suppress(Exception):  # it only explains; what fails here fails in its own place too
            known = self._reason()
            if since == self._heard_at:
                self._known = known


def of_storage(root: str | None, results: str) -> str:
    """Say what is wrong with archive or results; "" where nothing is to be seen from here.

    Args:
        root: The archive as a person typed it; None where its images have no place in common.
        results: The results, in which something always lies.
    """
    if root is not None and lists_something(root) is False:
        return "the archive is gone or empty, and is waited for"
    if lists_something(results) is False:
        return "the results do not answer, and are waited for"
    return ""
