"""Which images an archive holds: a stream of files, sifted column by column, into a local Parquet file."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.archive.found import Listing as Listing
from pipelines.archive.segments import Gatherer, Segments
from pipelines.archive.sieve import LISTING_SCHEMA as LISTING_SCHEMA
from pipelines.archive.sieve import ListingFilter as ListingFilter
from pipelines.archive.sieve import Sieve
from pipelines.archive.sieve import is_image_name as is_image_name
from pipelines.storage import listing as storage
from pipelines.storage import paths
from pipelines.storage.batches import FileBatch
from pipelines.storage.bucket_listing import NotInOrder, list_in_turn, list_ranges
from pipelines.storage.throttle import Throttle

_YOUNG_SCHEMA = pa.schema([LISTING_SCHEMA.field("image_uri")])
_ROWS_PER_GROUP = 65_536

OnCount = Callable[[int], None]


def list_archive(
    root: str,
    wanted: ListingFilter,
    out_path: str | os.PathLike[str],
    on_count: OnCount | None = None,
    *,
    min_age_seconds: float = 0,
    throttle: Throttle | None = None,
    kept_in: str | None = None,
) -> Listing:
    """List all images of a folder or bucket into a local Parquet file, in flat memory.

    What is left out is counted by reason, whole local folders once each: suffix, hidden, share_litter, excluded,
    not_included, too_young, folder_marker, special, link_outside, link_broken, link_inside. Suffixes are in lower
    case without dot, "" for none. A bucket is listed by several streams at once; its images come in the order of
    their keys.

    Args:
        root: The archive: a folder or a URI.
        wanted: Which files.
        out_path: Where the file is written; one that is there is replaced.
        on_count: Called now and then with the number of images found so far.
        min_age_seconds: Images that were written less than this long ago may still be copied and are left out; those
            dated further in the future are not.
        throttle: Announces each request to a bucket.
        kept_in: A folder or URI of this listing's own, where what was listed of a bucket outlives a kill for 12 hours:
            the same call goes on from there. The caller deletes it, once the listing is no longer needed.

    Raises:
        UsageError: The root does not exist or may not be listed.
        TryLater: Storage does not answer.
    """
    throttle = throttle or Throttle()
    asked_before = throttle.requests
    out = _Out(Path(out_path))
    tell = on_count or (lambda _found: None)

    def new_sieve() -> Sieve:
        return Sieve(root, wanted, min_age_seconds)

    with out.writing():
        if paths.is_bucket(paths.canonical(root)):
            purpose = json.dumps([storage.root_uri(root), wanted.include, wanted.exclude, min_age_seconds])
            with (
                tempfile.TemporaryDirectory(prefix="segments-", dir=out.path.parent) as folder,
                Segments(Path(folder), purpose, kept_in) as segments,
            ):
                found = _list_bucket(root, segments, new_sieve, out, tell, throttle)
        else:
            sieve = new_sieve()
            found = _list_in_turn(storage.list_files(root, sieve.on_error, sieve.enter), sieve, out, tell)
    return dataclasses.replace(found, young=out.young, requests=throttle.requests - asked_before)


def _list_in_turn(batches: Iterator[FileBatch], sieve: Sieve, out: _Out, tell: OnCount) -> Listing:
    for batch in batches:
        out.write(sieve.kept(batch))
        tell(out.found)
    return Listing(out.path, out.found, dict(sieve.left_out), dict(sieve.suffixes), tuple(sieve.unlistable))


def _list_bucket(
    root: str, segments: Segments, new_sieve: Callable[[], Sieve], out: _Out, tell: OnCount, throttle: Throttle
) -> Listing:
    place = paths.canonical(root)
    segments.load()
    gatherer = Gatherer(segments, new_sieve)
    try:
        with closing(list_ranges(place, segments.gaps(), throttle)) as stretches:
            for stretch in stretches:
                gatherer.add(stretch)
                tell(segments.found)
    except NotInOrder:
        segments.forget()
        return _list_in_turn(list_in_turn(place, throttle), new_sieve(), out, tell)
    except BaseException:
        if segments.are_kept:
            gatherer.finish()
        raise
    gatherer.finish()
    assert not segments.gaps(), "a part of the bucket was not listed"
    for rows in segments.rows():
        out.write(rows)
    tell(out.found)
    return Listing(out.path, out.found, dict(segments.left_out()), dict(segments.suffixes()))


class _Out:
    """The file of a listing, and beside it one of what is too young, if anything is.

    Attributes:
        path: The listing's file.
        young: The other one: `image_uri`; None while there is none.
        found: Rows of the listing so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.young: Path | None = None
        self.found = 0
        self._stack = ExitStack()
        self._write: Callable[[pa.RecordBatch], None] | None = None
        self._write_young: Callable[[pa.RecordBatch], None] | None = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep the files open."""
        with self._stack:
            self._write = self._stack.enter_context(listing_writer(self.path, LISTING_SCHEMA))
            yield

    def write(self, rows: pa.RecordBatch) -> None:
        """Take rows as `SIFTED_SCHEMA` has them."""
        assert self._write is not None
        young = rows.column("young")
        if young.true_count:
            if self._write_young is None:
                self.young = self.path.with_name(f"{self.path.stem}.young.parquet")
                self._write_young = self._stack.enter_context(listing_writer(self.young, _YOUNG_SCHEMA))
            self._write_young(rows.filter(young).select(_YOUNG_SCHEMA.names))
            rows = rows.filter(pc.invert(young))
        if rows.num_rows:
            self._write(rows.select(LISTING_SCHEMA.names))
            self.found += rows.num_rows


@contextmanager
def listing_writer(
    out_path: str | os.PathLike[str], schema: pa.Schema
) -> Iterator[Callable[[pa.RecordBatch | pa.Table], None]]:
    """Write a listing as a stream: the `with` block gets a function that takes batches of any size.

    Args:
        out_path: Local Parquet file.
        schema: Columns of each batch.
    """
    waiting: list[pa.Table] = []

    # URIs hardly repeat, so that a dictionary of them would only cost time.
    with pq.ParquetWriter(out_path, schema, compression="zstd", compression_level=1, use_dictionary=False) as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()

        def write(rows: pa.RecordBatch | pa.Table) -> None:
            waiting.append(rows if isinstance(rows, pa.Table) else pa.Table.from_batches([rows], schema))
            if sum(table.num_rows for table in waiting) >= _ROWS_PER_GROUP:
                flush()

        yield write
        flush()
