"""All keys of a bucket below a prefix, with their versions, by obstore: 30 times as fast as the usual clients.

obstore's paths cannot express some keys that S3 allows: with control characters, empty segments (`a//b`), `.` or `..`.
It fails at the page that holds one. That page, and as many as it takes to get to a key that it can go on from, is
then listed by a plain client.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.storage import faults, paths
from pipelines.storage.faults import Fault
from pipelines.storage.reading import object_version
from pipelines.storage.settings import S3Settings, open_store

PAGE = 1000
_NOT_EXPRESSIBLE = re.compile(r"[\x00-\x1f\x7f]|//|(?:^|/)\.{1,2}(?:/|$)|^/|/$")

Columns = tuple[pa.StringArray, pa.StringArray, pa.Int64Array]


@dataclass
class _Position:
    """How far the listing has come.

    Attributes:
        last: The last key with bytes that was handed out; the next request starts after it. Keys without bytes will
            not do: they may be markers of folders, which come without their slash, so that their place is unknown.
        empty_since: The keys without bytes handed out after it, which the next request meets again.
    """

    last: str | None = None
    empty_since: set[str] = field(default_factory=set)

    def move_past(self, rows: pa.RecordBatch) -> None:
        """Take note that these rows of obstore's were handed out."""
        keys, sizes = rows.column("path"), rows.column("size")
        end = int(rows.num_rows)
        while end and not sizes[end - 1].as_py():
            end -= 1
        if end:
            self.last = keys[end - 1].as_py()
            self.empty_since = set()
        self.empty_since.update(keys.slice(end).to_pylist())

    def without_known(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Drop what was handed out before."""
        if not self.empty_since:
            return rows
        empty = pc.equal(rows.column("size"), 0)
        known = pc.is_in(rows.column("path"), pa.array(sorted(self.empty_since), pa.string()))
        return rows.filter(pc.invert(pc.and_(empty, known)))


def list_bucket(bucket: str, prefix: str, settings: S3Settings, batch_files: int) -> Iterator[Columns]:
    """List the keys below a prefix in the bucket's order.

    Args:
        bucket: The bucket.
        prefix: A folder: `a/b` lists `a/b/c` and not `a/bc`; empty for the whole bucket.
        settings: How to reach it.
        batch_files: Keys in a batch at most.

    Yields:
        (URIs, versions, sizes); markers of folders (`a/b/`, no bytes) are among them, their slash may be missing.

    Raises:
        UsageError: The bucket does not exist or may not be listed.
        TryLater: The store fails again and again, after retries.
    """
    position = _Position()
    moved, stalls = time.monotonic(), 0
    chunk = batch_files
    while True:
        before = position.last
        try:
            yield from _quick(bucket, prefix, settings, chunk, position)
            return
        except Exception as error:
            fault = faults.fault_of(error)
            if fault is Fault.BAD_KEY:
                if (yield from _plain(bucket, prefix, settings, position)):
                    return
                continue
            if position.last != before:
                moved, stalls = time.monotonic(), 0
            stalls += 1
            if fault is not Fault.PASSING or stalls == faults.TRIES or time.monotonic() - moved > faults.TRY_SECONDS:
                raise faults.translated(error, f"s3://{bucket}/{prefix}".rstrip("/")) from None
            # From now on page by page, so that each good one is a step forward.
            chunk = min(chunk, PAGE)


def _quick(bucket: str, prefix: str, settings: S3Settings, batch_files: int, position: _Position) -> Iterator[Columns]:
    store = open_store(bucket, settings)
    stream = store.list(prefix or None, offset=position.last, chunk_size=batch_files, return_arrow=True)
    for chunk in stream:
        rows = position.without_known(pa.record_batch(chunk))
        yield _columns(bucket, prefix, rows)
        position.move_past(rows)


def _columns(bucket: str, prefix: str, rows: pa.RecordBatch) -> Columns:
    if prefix:
        # The folder's own marker.
        rows = rows.filter(pc.starts_with(rows.column("path"), prefix + "/"))
    keys, sizes = rows.column("path"), rows.column("size").cast(pa.int64())
    if pc.any(pc.match_substring(keys, "\\")).as_py():
        keys = pc.replace_substring(keys, "\\", "\\\\")
    tags = rows.column("e_tag")
    versions = pc.utf8_trim(tags, '"')
    if tags.null_count:
        times = pc.multiply(rows.column("last_modified").cast(pa.timestamp("us", "UTC")).cast(pa.int64()), 1000)
        made = pc.binary_join_element_wise(sizes.cast(pa.string()), times.cast(pa.string()), "-")
        versions = pc.coalesce(versions, made)
    return pc.binary_join_element_wise(f"s3://{bucket}", keys, "/"), versions, sizes


def _plain(bucket: str, prefix: str, settings: S3Settings, position: _Position) -> Generator[Columns, None, bool]:
    """List page by page until obstore can go on; the generator's value is True when nothing is left."""
    client = settings.botocore_client()
    while True:
        query: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
        if position.last:
            query["StartAfter"] = position.last
        try:
            page = faults.with_retries(partial(client.list_objects_v2, **query))
        except Exception as error:
            raise faults.translated(error, f"s3://{bucket}/{prefix}".rstrip("/")) from None
        found = page.get("Contents", [])
        if found:
            known = position.empty_since
            fresh = [item for item in found if item["Size"] or item["Key"].rstrip("/") not in known]
            yield _plain_columns(bucket, prefix, fresh)
            position.last, position.empty_since = found[-1]["Key"], set()
        if not page.get("IsTruncated"):
            return True
        if position.last and not _NOT_EXPRESSIBLE.search(position.last):
            return False


def _plain_columns(bucket: str, prefix: str, found: list[dict[str, Any]]) -> Columns:
    inside = [item for item in found if item["Key"] != f"{prefix}/"]
    return (
        pa.array([f"s3://{bucket}/{paths.escape_name(item['Key'])}" for item in inside], pa.string()),
        pa.array(
            [object_version(item.get("ETag"), item["Size"], item["LastModified"]) for item in inside], pa.string()
        ),
        pa.array([item["Size"] for item in inside], pa.int64()),
    )
