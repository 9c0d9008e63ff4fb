"""Images read before they are asked for, so that a slow store is waited for while others are scored."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Generic, TypeVar

from pipelines.storage.reading import Blob

# Of a store that answers in 30 ms these give 500 images a second, more than any core scores.
READ_THREADS = 16
READ_AHEAD = 16
READ_AHEAD_BYTES = 256 * 1024 * 1024

Wanted = TypeVar("Wanted")


class ReadAhead(Generic[Wanted]):
    """Reads images in threads of a pool, in order, a few ahead of what was asked for.

    At most `READ_AHEAD` images are, and of large files only as many as fit into `READ_AHEAD_BYTES` if the next ones are
    as large as the largest of this sequence and the one before; at least one.

    Args:
        read: Reads one image; called in the pool's threads.
        pool: `READ_THREADS` threads, or fewer.
    """

    def __init__(self, read: Callable[[Wanted], Blob], pool: ThreadPoolExecutor) -> None:
        self._read = read
        self._pool = pool
        self._begun: deque[tuple[Wanted, Future[Blob]]] = deque()
        self._largest: int | None = None

    def blobs(self, wanted: Sequence[Wanted], following: Sequence[Wanted] = ()) -> Iterator[Future[Blob]]:
        """Futures of the bytes of some images, in order.

        Args:
            wanted: The images.
            following: What will probably be wanted next; its first images are begun where there is room. They are
                asked for again, by the next call, or dropped.
        """
        waiting = self._take_begun(wanted)
        pending = chain(wanted[len(waiting) :], following)
        # Nothing is known before the very first image: it may be a large one.
        room, largest, before = 2 if self._largest is None else self._room(self._largest), 1, self._largest or 1
        for _ in wanted:
            more = islice(pending, max(0, room - len(waiting)))
            waiting.extend((one, self._pool.submit(self._read, one)) for one in more)
            _, blob = waiting.popleft()
            if blob.exception() is None:
                largest = max(largest, len(blob.result().data))
            room = self._room(max(largest, before))
            yield blob
        self._largest, self._begun = largest, waiting

    def forget(self) -> None:
        """Drop what was begun: it is to be read again."""
        self._begun.clear()

    def _take_begun(self, wanted: Sequence[Wanted]) -> deque[tuple[Wanted, Future[Blob]]]:
        begun, self._begun = self._begun, deque()
        same = len(begun) <= len(wanted) and all(one == other for (one, _), other in zip(begun, wanted, strict=False))
        return begun if same else deque()

    @staticmethod
    def _room(largest: int) -> int:
        return max(1, min(READ_AHEAD, READ_AHEAD_BYTES // largest))
