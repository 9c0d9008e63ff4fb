"""An archive that goes away in mid-run: noticed, waited for, and blamed on no image.

An unmounted share is an empty folder, and every image below it is "not found". Such failures lie in storage and come
in a row, so an actor that meets them stops, waits, and reads the same images again once the archive is back.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

import pyarrow as pa

from pipelines.errors import ImageFailure, TryLater
from pipelines.storage.reading import lists_something

STORAGE_SIDE: Final = frozenset(("not_found", "permission", "storage"))
MOST_IN_A_ROW = 50
PATIENCE_SECONDS = 300.0
# How often a place is asked whether it still lists anything, while single images fail.
ASK_SECONDS = 2.0
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 15.0


class ArchiveLost(TryLater):
    """The archive went away while it was scored, and did not come back in time."""

    code = "archive_lost"


def is_storage_side(failure: ImageFailure | None) -> bool:
    """Whether an image failed for a reason that lies in storage and not in the image."""
    return failure is not None and failure.code in STORAGE_SIDE


class ArchiveWatch:
    """Follows what one actor reads, shard after shard, and tells when it is the archive that is missing.

    It is when 50 images in a row fail on storage's side, or when the archive's root is gone or empty after such a
    failure. An image that was not there when the plan was made is not missed.

    Args:
        root: The archive as a person typed it; None where its images have no place in common.
        listed: Whether the plan's versions were seen in storage. A manifest may state versions of its own, and then
            nobody knows whether its images ever were there: only the root tells.
        patience_seconds: How long it waits without one image read.
        is_readable: Tries to read an image again.
        sleep: Instead of the real one.
        clock: Monotonic seconds, instead of the real one.

    Attributes:
        doubtful: Shards written since an image was last read, with their images: their parts hold failures that may be
            the archive's.
    """

    def __init__(
        self,
        root: str | None,
        listed: bool,
        patience_seconds: float,
        is_readable: Callable[[str], bool],
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._listed = listed
        self._patience = patience_seconds
        self._is_readable = is_readable
        self._sleep = sleep
        self._clock = clock
        self._row: list[str] = []
        self._asked_at: float | None = None
        self._to_ask = False
        self._waiting_since: float | None = None
        self.doubtful: dict[int, pa.Table] = {}

    def saw(self, uri: str, version: str, failure: ImageFailure | None) -> bool:
        """Take note of what became of an image; True if the archive seems to be gone, and `wait` is to be called.

        Args:
            uri: The image.
            version: Its version in the plan; "" for one that was not there.
            failure: Why it failed; None for one that did not.
        """
        if failure is None or not is_storage_side(failure):
            self._row.clear()
            self._to_ask, self._waiting_since = False, None
            self.doubtful.clear()
            return False
        if failure.code == "not_found" and not version:
            return False
        self._to_ask = True
        if self._listed or failure.code != "not_found":
            self._row.append(uri)
        if len(self._row) >= MOST_IN_A_ROW:
            return True
        asked_lately = self._asked_at is not None and self._clock() - self._asked_at < ASK_SECONDS
        return not asked_lately and self._is_gone()

    def seems_gone(self) -> bool:
        """Ask the root before a shard's failures are written down, if the last of its images failed."""
        return self._to_ask and self._is_gone()

    def wrote(self, shard: int, images: pa.Table) -> None:
        """Take note of a part that was written."""
        if self._row:
            self.doubtful[shard] = images

    def wait(self) -> None:
        """Wait until the archive is back; what failed is then to be read again.

        Raises:
            ArchiveLost: If it does not come back in time.
        """
        if self._waiting_since is None:
            self._waiting_since = self._clock()
        until = self._waiting_since + self._patience
        longest = FIRST_PAUSE
        while True:
            left = until - self._clock()
            if left <= 0:
                raise self._lost()
            self._sleep(min(left, random.uniform(longest / 2, longest)))
            longest = min(2 * longest, LONGEST_PAUSE)
            if self._is_back():
                self._row.clear()
                self._to_ask = False
                return

    def _is_gone(self) -> bool:
        if self._root is None:
            return False
        self._asked_at, self._to_ask = self._clock(), False
        return lists_something(self._root) is False

    def _is_back(self) -> bool:
        if self._is_gone():
            return False
        if len(self._row) < MOST_IN_A_ROW:
            return True  # it was the root that was missed
        samples = dict.fromkeys((self._row[-1], self._row[0], self._row[len(self._row) // 2]))
        return any(self._is_readable(uri) for uri in samples)

    def _lost(self) -> ArchiveLost:
        waited = f"within {self._patience:g} seconds"
        kept = "The same command goes on with the rest: what was scored is kept, and no image is blamed."
        if self._is_gone():
            return ArchiveLost(
                f"The archive {self._root!r} is gone or empty, and did not come back {waited}.",
                f"Mount it again, or see why it does not answer. {kept}",
            )
        where = "" if self._root is None else f", though {self._root!r} still lists something"
        return ArchiveLost(
            f"{len(self._row)} images in a row could not be read{where}, and none of them came back {waited}.",
            f"See whether a share below it is missing, or whether they were deleted. {kept}",
        )
