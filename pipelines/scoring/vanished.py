"""An archive that goes away in mid-run: noticed, waited for, and blamed on no image.

An unmounted share is an empty folder, and every image below it is "not found". Such failures lie in storage and come
in a row, so an actor that meets them stops, waits, and reads the same images again once the archive is back.

50 neighbours that were deleted, forbidden or moved to an archive class look the same. Ending the run for them would end
every night, for they are never settled and so are planned again. A run whose images do not come back is therefore ended
only where the archive is not proven to be there. The proof: the root still lists something, no image's folder is an
empty mount point, and some other image is read. It is taken after the patience, not before: a server that restarts may
give one image and refuse the next, and five minutes once a night cost little.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Final

import pyarrow as pa

from pipelines.errors import ImageFailure, TryLater
from pipelines.storage import paths
from pipelines.storage.reading import lists_something

STORAGE_SIDE: Final = frozenset(("not_found", "permission", "storage"))
MOST_IN_A_ROW = 50
PATIENCE_SECONDS = 300.0
# How often a place is asked whether it still lists anything, while single images fail.
ASK_SECONDS = 2.0
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 15.0
# How long other images are tried for the proof: one that a broken disk holds takes twelve seconds.
PROOF_SECONDS = 60.0


class ArchiveLost(TryLater):
    """The archive went away while it was scored, and did not come back in time."""

    code = "archive_lost"


def is_storage_side(failure: ImageFailure | None) -> bool:
    """Whether an image failed for a reason that lies in storage and not in the image."""
    return failure is not None and failure.code in STORAGE_SIDE


@dataclass(frozen=True)
class _Failed:
    """An image of a row of failures; `missed` where it was seen in storage when the plan was made."""

    uri: str
    code: str
    missed: bool


class ArchiveWatch:
    """Follows what one actor reads, shard after shard, and tells when it is the archive that is missing.

    It is when 50 images in a row fail on storage's side, or when the archive's root is gone or empty after such a
    failure. An image that was not there when the plan was made is not missed: for it the root alone decides.

    Once a row was proven to be its images' own fault, further rows of the same codes are not waited for, as long as the
    proof can still be taken: images that nobody can read may be many.

    Args:
        root: The archive as a person typed it; None where its images have no place in common.
        listed: Whether the plan's versions were seen in storage. A manifest may state versions of its own, and then
            nobody knows whether its images ever were there: only the root tells.
        patience_seconds: How long it waits without one image read.
        is_readable: Tries to read an image again.
        others: Images that ought to be readable, for the proof, where the one that was read last is not.
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
        others: Callable[[], Iterable[str]],
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._listed = listed
        self._patience = patience_seconds
        self._is_readable = is_readable
        self._others = others
        self._sleep = sleep
        self._clock = clock
        self._row: list[_Failed] = []
        self._read_last: str | None = None
        self._own_fault: set[str] = set()
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
            self._read_last = uri
            self._settle()
            return False
        self._to_ask = True
        missed = self._listed and bool(version)
        if missed or failure.code != "not_found":
            self._row.append(_Failed(uri, failure.code, missed))
        if len(self._row) >= MOST_IN_A_ROW:
            if not self._own_fault.issuperset(self._codes()) or not self._is_proven_there():
                return True
            self._settle()
            return False
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
        """Wait until the archive is back, or proven never to have been away; what failed is then to be read again.

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
                if not self._is_proven_there():
                    raise self._lost()
                # The patience stays spent until an image is read or such a row is settled, so that this ends.
                self._own_fault |= self._codes()
                break
            self._sleep(min(left, random.uniform(longest / 2, longest)))
            longest = min(2 * longest, LONGEST_PAUSE)
            if self._is_back():
                break
        self._row.clear()
        self._to_ask = False

    def _settle(self) -> None:
        """Begin anew: nothing that was seen so far is the archive's fault."""
        self._row.clear()
        self._to_ask, self._waiting_since = False, None
        self.doubtful.clear()

    def _codes(self) -> set[str]:
        return {failed.code for failed in self._row}

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
        samples = dict.fromkeys((self._row[-1].uri, self._row[0].uri, self._row[len(self._row) // 2].uri))
        return any(self._is_readable(uri) for uri in samples)

    def _is_proven_there(self) -> bool:
        """Whether the archive is there, so that the images of a row fail for reasons of their own."""
        if self._is_gone():
            return False
        folders = dict.fromkeys(paths.parent(failed.uri) for failed in self._row if failed.missed)
        return all(_is_no_empty_mount(paths.unescape_name(folder)) for folder in folders) and self._reads_another()

    def _reads_another(self) -> bool:
        failed = {failed.uri for failed in self._row}
        until = self._clock() + PROOF_SECONDS
        for uri in chain(() if self._read_last is None else (self._read_last,), self._others()):
            if self._clock() > until:
                break
            if uri not in failed and self._is_readable(uri):
                self._read_last = uri
                return True
        return False

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
            "See whether a share is missing, or whether nothing may be read any more: no other image could be read "
            f"either, or their folder is empty. {kept}",
        )


def _is_no_empty_mount(folder: str) -> bool:
    """Whether the folder of missing images, or the nearest above it that exists, still holds something.

    A share that fell away leaves an empty folder, and one that hangs a folder that gives errors. A folder that was
    deleted leaves the one above it.

    Args:
        folder: A place, not escaped.
    """
    if not paths.is_local(folder):
        # A bucket has no empty folders. Of a deleted one the prefix above is left; else more is missing.
        return any(lists_something(prefix) is not False for prefix in (folder, paths.parent(folder)))
    while not lists_something(folder):
        try:
            os.stat(folder)
        except (FileNotFoundError, NotADirectoryError):
            folder = paths.parent(folder)
        except OSError:
            return False
        else:
            return False
    return True
