"""All keys of a bucket below a prefix, by several streams at once.

The keys are one line, which is cut into ranges, one for each stream. A stream that has nothing left to do takes the
upper half of what another has before it; how keys are named and whether there are folders does not matter. A cut is
made in the space of names, without knowing whether a key is there: if none is, one request was spent to find out.
"""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.storage import paths
from pipelines.storage.batches import FILES_SCHEMA, FileBatch
from pipelines.storage.bucket_pages import NotInOrder as NotInOrder
from pipelines.storage.bucket_pages import Page, Pages, Taken, take
from pipelines.storage.key_ranges import EVERYTHING, KeyRange, cut, expected_rest, in_common
from pipelines.storage.throttle import Throttle

# Measured at 30 ms a page on 2 cores: 4 streams list 100,000 keys/s, 8 list 170,000, 16 what the cores allow.
STREAMS = 8
# A request takes about this long: more streams than this gives would only wait for each other's turn.
_REQUEST_SECONDS = 0.1
# What is left of a range when another stream's help is worth a request.
_PAGES_WORTH_A_CUT = 4.0
_WAITING_PAGES = 32


@dataclass(frozen=True)
class Stretch:
    """All files of some range of keys.

    Attributes:
        keys: The range. All stretches of a listing together are what was asked for; none overlaps another.
        files: In the bucket's order; those of markers of folders (`a/b/`, no bytes) are among them, their slash may
            be missing.
    """

    keys: KeyRange
    files: FileBatch


def list_ranges(place: str, ranges: Sequence[KeyRange], throttle: Throttle) -> Generator[Stretch, None, None]:
    """List ranges of a bucket's keys.

    Args:
        place: `s3://bucket/prefix`, canonical: `a/b` lists `a/b/c` and not `a/bc`.
        ranges: Which; apart from each other.
        throttle: Announces each request; a low rate has fewer streams.

    Yields:
        Stretches as they come: those of one stream in order, streams mixed. Closing the generator ends the streams.

    Raises:
        NotInOrder: The store does not list in order or not from a given key on: what was yielded is worth nothing.
        UsageError: The bucket does not exist or may not be listed.
        TryLater: The store fails again and again, after retries.
    """
    streams = STREAMS
    if throttle.per_second is not None:
        streams = min(streams, 1 + int(throttle.per_second * _REQUEST_SECONDS))
    work = _Work(place, ranges)
    found: queue.Queue[Stretch | None] = queue.Queue(_WAITING_PAGES)
    threads = [threading.Thread(target=_stream, args=(place, work, throttle, found)) for _ in range(streams)]
    for thread in threads:
        thread.start()
    try:
        at_work = streams
        while at_work:
            stretch = found.get()
            if stretch is None:
                at_work -= 1
            else:
                yield stretch
        if work.error is not None:
            raise work.error
    finally:
        work.stop()
        _drain(found, threads)


def list_in_turn(place: str, throttle: Throttle) -> Iterator[FileBatch]:
    """List everything of a store that keeps no order, by one stream and a plain client: slow, but sure.

    Raises:
        UsageError, TryLater: As `list_ranges` does.
    """
    return Pages(place, "", throttle, lambda: None).all_plainly()


def list_all(place: str, throttle: Throttle) -> Iterator[FileBatch]:
    """List everything once, in no particular order; kept on disk until it is certain that the store keeps an order.

    Raises:
        UsageError, TryLater: As `list_ranges` does.
    """
    with tempfile.TemporaryFile() as spool:
        try:
            with pa.ipc.new_stream(spool, FILES_SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
                for stretch in list_ranges(place, [EVERYTHING], throttle):
                    out.write_batch(stretch.files.rows())
        except NotInOrder:
            yield from list_in_turn(place, throttle)
            return
        spool.seek(0)
        with pa.ipc.open_stream(spool) as rows:
            for batch in rows:
                yield FileBatch(*batch.columns)


def _drain(found: queue.Queue[Stretch | None], threads: list[threading.Thread]) -> None:
    """Make room until every thread has seen that it is to end."""
    for thread in threads:
        while thread.is_alive():
            try:
                found.get(timeout=0.05)
            except queue.Empty:
                thread.join(0.05)


class _Stopped(Exception):
    """Nobody wants the rest."""


@dataclass(eq=False)
class _Open:
    """A range that a stream is at.

    Attributes:
        last: Everything up to here is listed.
        until: The range's end; another stream may take away what is above.
        pages: How many were listed.
        first: The first key of the 1st, 2nd, 4th, 8th … of them, the latest: what is left is guessed from those on.
        before: How many pages came before that one.
        steady: How many characters the latest page's keys have in common.
        cap: The range began behind keys that have this many in common: cuts further out come first.
    """

    last: str
    until: str | None
    pages: int = 0
    first: str = ""
    before: int = 0
    steady: int = 0
    cap: int | None = None

    def expected_rest(self) -> float:
        if not self.pages:
            return 0.0
        return expected_rest(self.first, self.last, self.until, self.pages - self.before)


class _Work:
    """What there is to do, shared by the streams.

    Attributes:
        error: What ended the listing.
    """

    def __init__(self, place: str, ranges: Sequence[KeyRange]) -> None:
        _, prefix = paths.split_bucket(place)
        # No key below `a/b` begins with `a/b0`, the next name after `a/b/`.
        self._ceiling = prefix + chr(ord("/") + 1) if prefix else None
        self._waiting = list(reversed(ranges))
        self._open: list[_Open] = []
        self._changed = threading.Condition()
        self._idle = 0
        self._stopped = False
        self.error: BaseException | None = None

    def stop(self, error: BaseException | None = None) -> None:
        """Send everybody home; the first error is kept."""
        with self._changed:
            self._stopped = True
            self.error = self.error or error
            self._changed.notify_all()

    def go_on(self) -> None:
        """Raise if there is no need to."""
        if self._stopped:
            raise _Stopped

    def next_range(self) -> _Open | None:
        """Return a range of one's own as soon as there is one; None when all is done."""
        with self._changed:
            while not self._stopped:
                mine = self.free_range()
                if mine is not None:
                    return mine
                if not self._open:
                    self._changed.notify_all()
                    return None
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            return None

    def free_range(self) -> _Open | None:
        """Return a range of one's own, if there is one at once."""
        with self._changed:
            mine = self._one_that_waits() or self._half_of_another()
            if mine is not None:
                self._open.append(mine)
            return mine

    def moved(self, mine: _Open, page: Page) -> Taken | None:
        """Take of a page what belongs to a range, which may have become smaller meanwhile; see `take`."""
        with self._changed:
            taken = take(page, mine.until)
            if taken is None:
                return None
            if taken.done:
                self._open.remove(mine)
            else:
                keys = taken.rows.column("path")
                first, last = keys[0].as_py(), taken.last or ""
                mine.pages += 1
                if not mine.pages & mine.pages - 1:
                    mine.first, mine.before = first, mine.pages - 1
                mine.steady = in_common(first, last)
                mine.last = last
            if self._idle:
                self._changed.notify_all()
            return taken

    def _one_that_waits(self) -> _Open | None:
        if not self._waiting:
            return None
        keys = self._waiting.pop()
        return _Open(keys.after, keys.until)

    def _half_of_another(self) -> _Open | None:
        for largest in sorted(self._open, key=_Open.expected_rest, reverse=True):
            if largest.expected_rest() < _PAGES_WORTH_A_CUT:
                return None
            end = self._ceiling if largest.until is None else largest.until
            steady = largest.steady if largest.cap is None else min(largest.steady, largest.cap)
            where = cut(largest.last, end, steady)
            if where is not None:
                taken = _Open(where.key, largest.until, cap=where.depth)
                largest.until = where.key
                return taken
        return None


def _stream(place: str, work: _Work, throttle: Throttle, found: queue.Queue[Stretch | None]) -> None:
    """List one range after the other until none is left."""
    try:
        while (mine := work.next_range()) is not None:
            for stretch in _listed(place, mine, work, throttle):
                found.put(stretch)
    except _Stopped:
        pass
    except BaseException as error:
        work.stop(error)
    finally:
        found.put(None)


def _listed(place: str, mine: _Open, work: _Work, throttle: Throttle) -> Iterator[Stretch]:
    pages = Pages(place, mine.last, throttle, work.go_on)
    done = False
    while not done:
        after = mine.last
        page = pages.ask()
        taken = work.moved(mine, page)
        if taken is None:
            page = pages.ask_plainly()
            taken = work.moved(mine, page)
            assert taken is not None, "an exact page leaves no doubt"
        pages.took(page, taken)
        done = taken.done
        yield Stretch(KeyRange(after, taken.last), pages.batch(taken.rows))
