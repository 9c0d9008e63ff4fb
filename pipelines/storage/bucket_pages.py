"""A bucket's keys page by page, one request a page, by obstore: 30 times as fast as the usual clients.

obstore's paths cannot express some keys that S3 allows: with control characters, empty segments (`a//b`), `.` or `..`.
It fails at the page that holds one. And it tells markers of folders (`a/b/`, no bytes) without their slash, so that
their place among the keys is unknown. Where either matters, the page is asked of a plain client, which tells all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UsageError
from pipelines.storage import faults, paths
from pipelines.storage.batches import MODIFIED, FileBatch
from pipelines.storage.faults import Fault
from pipelines.storage.key_ranges import NOT_EXPRESSIBLE
from pipelines.storage.settings import S3Settings, open_store, settings_of
from pipelines.storage.throttle import Throttle

PAGE = 1000
_COLUMNS = pa.schema(
    [
        pa.field("path", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("e_tag", pa.string()),
        pa.field("last_modified", MODIFIED),
    ]
)


class NotInOrder(Exception):
    """The store does not list its keys in order, or not those after a given one."""


@dataclass(frozen=True)
class Page:
    """What came after the last key that was taken.

    Attributes:
        rows: path, size, e_tag, last_modified.
        exact: Every path is the key itself; else those without bytes may lack a slash at their end.
        ended: Nothing comes after these.
    """

    rows: pa.RecordBatch
    exact: bool
    ended: bool


@dataclass(frozen=True)
class Taken:
    """What of a page belongs to a range.

    Attributes:
        rows: Those.
        last: All keys up to here were taken, and the next request can begin after it.
        done: The range is at its end.
    """

    rows: pa.RecordBatch
    last: str | None
    done: bool


def take(page: Page, until: str | None) -> Taken | None:
    """Decide which rows of a page belong to a range, and how far it has come with them.

    Args:
        page: The next rows.
        until: The range's end.

    Returns:
        None where that depends on which rows are markers of folders: a plain client has to be asked.
    """
    keys, sizes = page.rows.column("path"), page.rows.column("size")
    count = len(keys)
    if until is not None:
        beyond = pc.index(pc.greater(keys, until), True).as_py()
        count = count if beyond < 0 else beyond
        if not page.exact:
            empty = keys.slice(0, count).filter(pc.equal(sizes.slice(0, count), 0))
            if pc.any(pc.greater(pc.binary_join_element_wise(empty, "/", ""), until)).as_py():
                return None
    if page.ended or count < len(keys):
        return Taken(page.rows.slice(0, count), until, True)
    if not page.exact:
        while count and not sizes[count - 1].as_py():
            count -= 1
    return Taken(page.rows.slice(0, count), keys[count - 1].as_py(), False) if count else None


class Pages:
    """Asks for pages one after the other.

    Args:
        place: `s3://bucket/prefix`, canonical: `a/b` lists `a/b/c` and not `a/bc`.
        after: Where to begin: after this key; "" for the start.
        throttle: Announces each request, the repeated ones too.
        go_on: Called before each request; raises to break off.
    """

    def __init__(self, place: str, after: str, throttle: Throttle, go_on: Callable[[], None]) -> None:
        self._place = place
        self._bucket, self._prefix = paths.split_bucket(place)
        self._throttle = throttle
        self._go_on = go_on
        self._last = after
        self._held: pa.RecordBatch | None = None
        self._stream: Iterator[Any] | None = None
        self._client: tuple[S3Settings, Any] | None = None
        self._is_plain = bool(NOT_EXPRESSIBLE.search(after)) if after else False

    def ask(self) -> Page:
        """Return what comes after the last row that was taken.

        Raises:
            NotInOrder: If that is not what the store answers with.
            UsageError: The bucket does not exist or may not be listed.
            TryLater: The store fails again and again, after retries.
        """
        if not self._is_plain:
            try:
                page = faults.with_retries(self._quick, before=self._announce)
                self._check_order(page)
                return page
            except Exception as error:
                fault = faults.fault_of(error)
                if fault is not Fault.BAD_KEY:
                    raise self._explained(error, fault) from None
        return self.ask_plainly()

    def ask_plainly(self) -> Page:
        """Return the same, with every key as it is."""
        self._stream, self._held = None, None
        query = {"StartAfter": self._last}
        try:
            while True:
                answer = faults.with_retries(partial(self._ask_client, **query), before=self._announce)
                if answer.get("Contents") or not answer.get("IsTruncated"):
                    break
                # Some stores have pages with nothing on them.
                query = {"ContinuationToken": answer["NextContinuationToken"]}
        except Exception as error:
            raise self._explained(error, faults.fault_of(error)) from None
        page = Page(_rows(answer), True, not answer.get("IsTruncated"))
        self._check_order(page)
        return page

    def took(self, page: Page, taken: Taken) -> None:
        """Go on after what was taken of the page that was asked for last."""
        if taken.done:
            self._stream = None
            return
        assert taken.last is not None
        self._last = taken.last
        rest = page.rows.slice(taken.rows.num_rows)
        self._held = rest if rest.num_rows else None
        # Many keys without bytes in a row: obstore would leave it open again where it can go on from.
        self._is_plain = page.exact and (
            bool(NOT_EXPRESSIBLE.search(self._last)) or not taken.rows.column("size")[-1].as_py()
        )

    def all_plainly(self) -> Iterator[FileBatch]:
        """List everything in whatever order the store has, each page by the token that came with the one before.

        Raises:
            UsageError: The bucket may not be listed, or the store answers with the same page again.
            TryLater: The store fails again and again, after retries.
        """
        query: dict[str, str] = {}
        while True:
            try:
                answer = faults.with_retries(partial(self._ask_client, **query), before=self._announce)
            except Exception as error:
                raise faults.translated(error, self._place) from None
            yield self.batch(_rows(answer))
            if not answer.get("IsTruncated"):
                return
            token = answer.get("NextContinuationToken")
            if not token or token == query.get("ContinuationToken"):
                raise UsageError(
                    f"{self._place!r} cannot be listed to its end: the store answers with the same page again.",
                    "Name the images in a manifest.",
                )
            query = {"ContinuationToken": token}

    def batch(self, rows: pa.RecordBatch) -> FileBatch:
        """Return rows as files, without the marker of the folder that is listed."""
        if self._prefix:
            inside = pc.starts_with(rows.column("path"), self._prefix + "/")
            rows = rows.filter(pc.and_(inside, pc.not_equal(rows.column("path"), self._prefix + "/")))
        keys, sizes = rows.column("path"), rows.column("size")
        if pc.any(pc.match_substring(keys, "\\")).as_py():
            keys = pc.replace_substring(keys, "\\", "\\\\")
        tags, times = rows.column("e_tag"), rows.column("last_modified")
        versions = pc.utf8_trim(tags, '"')
        if tags.null_count:
            nanoseconds = pc.multiply(times.cast(pa.int64()), 1000).cast(pa.string())
            versions = pc.coalesce(versions, pc.binary_join_element_wise(sizes.cast(pa.string()), nanoseconds, "-"))
        return FileBatch(pc.binary_join_element_wise(f"s3://{self._bucket}", keys, "/"), versions, sizes, times)

    def _announce(self) -> None:
        self._go_on()
        self._throttle.wait()

    def _quick(self) -> Page:
        if self._stream is None:
            self._held = None
            store = open_store(self._bucket, settings_of(self._place), own_retries=True)
            self._stream = iter(
                store.list(self._prefix or None, offset=self._last or None, chunk_size=PAGE, return_arrow=True)
            )
        try:
            chunk = next(self._stream, None)
        except Exception:
            # A stream that failed is at its end.
            self._stream = None
            raise
        rows = [] if chunk is None else [pa.record_batch(chunk).select(_COLUMNS.names).cast(_COLUMNS)]
        ended = not rows or rows[0].num_rows < PAGE
        if self._held is not None:
            rows.insert(0, self._held)
        return Page(pa.concat_batches(rows) if rows else _rows({}), False, ended)

    def _ask_client(self, **query: str) -> dict[str, Any]:
        settings = settings_of(self._place)
        if self._client is None or self._client[0] != settings:
            self._client = settings, settings.botocore_client(tries=1)
        given = {name: value for name, value in query.items() if value}
        answer: dict[str, Any] = self._client[1].list_objects_v2(
            Bucket=self._bucket, Prefix=f"{self._prefix}/" if self._prefix else "", **given
        )
        return answer

    def _check_order(self, page: Page) -> None:
        """Make sure that keys come in order, after the one that was named.

        Raises:
            NotInOrder: If they do not.
        """
        keys = page.rows.column("path")
        if not page.exact:
            keys = keys.filter(pc.greater(page.rows.column("size"), 0))
        if not len(keys):
            return
        falling = pc.greater_equal(keys.slice(0, len(keys) - 1), keys.slice(1))
        if keys[0].as_py() <= self._last or pc.any(falling).as_py():
            raise NotInOrder

    def _explained(self, error: Exception, fault: Fault | None) -> BaseException:
        if fault is Fault.WRONG_PLACE and self._last:
            # Stores that cannot begin after a key refuse the request for what it asks.
            return NotInOrder()
        return faults.translated(error, self._place)


def _rows(answer: dict[str, Any]) -> pa.RecordBatch:
    found = answer.get("Contents", [])
    return pa.RecordBatch.from_arrays(
        [
            pa.array([item["Key"] for item in found], pa.string()),
            pa.array([item["Size"] for item in found], pa.int64()),
            pa.array([item.get("ETag") or None for item in found], pa.string()),
            pa.array([item["LastModified"] for item in found], MODIFIED),
        ],
        schema=_COLUMNS,
    )
