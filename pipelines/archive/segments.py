"""Pieces of a listing that is not finished: each holds the images of some range of a bucket's keys.

A piece is a Parquet file whose metadata tell the range and what was left out in it. Together with the gaps between
them the pieces are the whole bucket, so that a listing that was killed goes on with the gaps.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.archive.sieve import SIFTED_SCHEMA, Sieve, add_suffixes
from pipelines.storage import files, paths
from pipelines.storage.batches import FileBatch
from pipelines.storage.bucket_listing import Stretch
from pipelines.storage.key_ranges import KeyRange, apart, gaps

# The longest that a listing may have been interrupted: what it had found by then is taken as it was.
USABLE_SECONDS: Final = 12 * 3600
SEGMENT_FILES: Final = 32_768
# A kill loses what was listed in the last second, or in the last twentieth of the time.
_FLUSH_SECONDS: Final = 1.0
_FLUSH_SHARE: Final = 0.05
_THREADS: Final = 8
_FORMAT: Final = 1
_METADATA: Final = b"nightread segment"
_NAME: Final = re.compile(r"[0-9a-f]{32}\.parquet")


@dataclass(frozen=True)
class _Segment:
    """One piece.

    Attributes:
        path: Local Parquet file as `SIFTED_SCHEMA` has it.
        keys: The range of keys that it covers.
        images: Its images, without those too young.
        left_out: What was left out in this range, by reason.
        suffixes: Of those left out for their suffix, how many of each.
        listed_at: When, in seconds since 1970.
        kept_as: Its name where it is kept; None where it is not.
    """

    path: Path
    keys: KeyRange
    images: int
    left_out: Mapping[str, int]
    suffixes: Mapping[str, int]
    listed_at: float
    kept_as: str | None = None


class Segments:
    """The pieces of one listing, in a local folder and, to be found again, in a place that outlives this process.

    Args:
        folder: A local folder for this listing alone.
        purpose: What is listed and how: pieces that were made for another purpose are not used.
        kept_in: A folder or URI for pieces; None to keep none.
        clock: Seconds since 1970, instead of the real ones.

    Attributes:
        found: How many images the pieces hold, without those too young.
    """

    def __init__(
        self, folder: Path, purpose: str, kept_in: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._purpose = purpose
        self._kept_in = kept_in
        self._clock = clock
        self._segments: list[_Segment] = []
        self.found = 0
        # Copies to a bucket take longer than listing what they hold.
        self._copying = ThreadPoolExecutor(_THREADS, thread_name_prefix="segments")
        self._copies: deque[Future[None]] = deque()

    def __enter__(self) -> Segments:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until all that was written is kept."""
        self._copying.shutdown()

    def load(self) -> None:
        """Take over what an interrupted listing has kept, and delete there what is of no use.

        Raises:
            UsageError, TryLater: If the place cannot be used.
        """
        if self._kept_in is None:
            return
        names = self._kept_names()
        found = list(self._copying.map(self._fetched, names))
        by_range = {segment.keys: segment for segment in found if segment is not None}
        self._segments = [by_range[keys] for keys in apart(by_range)]
        self.found = sum(segment.images for segment in self._segments)
        used = {segment.kept_as for segment in self._segments}
        self._delete([name for name in names if name not in used])

    def forget(self) -> None:
        """Delete all pieces, the kept ones too."""
        self._segments, self.found = [], 0
        self._await_copies(0)
        self._delete(self._kept_names())

    def add(self, keys: KeyRange, rows: pa.RecordBatch, sieve: Sieve) -> None:
        """Write a piece.

        Args:
            keys: The range that it covers.
            rows: Its images as `SIFTED_SCHEMA` has them.
            sieve: Has sifted these rows and no others.

        Raises:
            UsageError, TryLater: If a piece could not be kept, this one or one before.
        """
        name = f"{uuid.uuid4().hex}.parquet"
        told = {
            "format": _FORMAT,
            "purpose": self._purpose,
            "after": keys.after,
            "until": keys.until,
            "left_out": dict(sieve.left_out),
            "suffixes": dict(sieve.suffixes),
            "listed_at": (now := self._clock()),
        }
        table = pa.Table.from_batches([rows]).replace_schema_metadata({_METADATA: json.dumps(told)})
        path = self._folder / name
        pq.write_table(table, path, compression="zstd", compression_level=1, use_dictionary=False)
        if self._kept_in is not None:
            self._await_copies(_THREADS)
            self._copies.append(self._copying.submit(files.put, str(path), paths.join(self._kept_in, name)))
        images = rows.num_rows - rows.column("young").true_count
        self.found += images
        self._segments.append(_Segment(path, keys, images, sieve.left_out, sieve.suffixes, now))

    @property
    def are_kept(self) -> bool:
        """Whether another process can take them over."""
        return self._kept_in is not None

    def gaps(self) -> list[KeyRange]:
        """Return what is not listed yet."""
        return gaps(sorted((segment.keys for segment in self._segments), key=lambda keys: keys.after))

    def left_out(self) -> Counter[str]:
        """Return how many files were left out, by reason."""
        return sum((Counter(segment.left_out) for segment in self._segments), Counter())

    def suffixes(self) -> Counter[str]:
        """Return of those left out for their suffix how many there are of each."""
        total: Counter[str] = Counter()
        for segment in self._segments:
            add_suffixes(total, segment.suffixes)
        return total

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Give all rows in the order of their keys."""
        for segment in sorted(self._segments, key=lambda segment: segment.keys.after):
            yield from pq.ParquetFile(segment.path).iter_batches(SEGMENT_FILES)

    def _kept_names(self) -> list[str]:
        names = [] if self._kept_in is None else files.list_names(self._kept_in)
        return [name for name in names if _NAME.fullmatch(name)]

    def _delete(self, names: list[str]) -> None:
        place = self._kept_in or ""
        list(self._copying.map(lambda name: files.delete(paths.join(place, name)), names))

    def _await_copies(self, most: int) -> None:
        """Wait until no more than these are on their way."""
        while len(self._copies) > most:
            self._copies.popleft().result()

    def _fetched(self, name: str) -> _Segment | None:
        """Return a kept piece; None for one that is of no use."""
        assert self._kept_in is not None
        path = self._folder / name
        try:
            files.fetch(paths.join(self._kept_in, name), str(path))
            file = pq.ParquetFile(path)
            told = json.loads((file.metadata.metadata or {})[_METADATA])
            segment = _Segment(
                path,
                KeyRange(told["after"], told["until"]),
                file.metadata.num_rows - told["left_out"].get("too_young", 0),
                told["left_out"],
                told["suffixes"],
                told["listed_at"],
                name,
            )
            known = (told["format"], told["purpose"], file.schema_arrow.names) == (
                _FORMAT,
                self._purpose,
                SIFTED_SCHEMA.names,
            )
        except (OSError, ValueError, KeyError, pa.ArrowException):
            # Cut short, of something else, or deleted meanwhile.
            return None
        return segment if known and abs(self._clock() - segment.listed_at) <= USABLE_SECONDS else None


@dataclass
class _Gathering:
    """Stretches that follow each other and are not written yet.

    Attributes:
        after: Where the first begins.
        since: When it came, in monotonic seconds.
        files: Their files.
        count: How many.
    """

    after: str
    since: float
    files: list[FileBatch] = field(default_factory=list)
    count: int = 0


class Gatherer:
    """Makes pieces of the stretches that several streams list.

    Args:
        segments: Where pieces go.
        new_sieve: Makes a sieve for one piece.
        clock: Monotonic seconds, instead of the real ones.
    """

    def __init__(
        self, segments: Segments, new_sieve: Callable[[], Sieve], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._segments = segments
        self._new_sieve = new_sieve
        self._clock = clock
        self._began = clock()
        # By where they end, which is where the next stretch of the same stream begins.
        self._open: dict[str | None, _Gathering] = {}

    def add(self, stretch: Stretch) -> None:
        """Take a stretch, and write what has become large or old."""
        now = self._clock()
        gathering = self._open.pop(stretch.keys.after, None) or _Gathering(stretch.keys.after, now)
        gathering.files.append(stretch.files)
        gathering.count += len(stretch.files.uris)
        self._open[stretch.keys.until] = gathering
        if gathering.count >= SEGMENT_FILES:
            self._write(stretch.keys.until)
        oldest = now - max(_FLUSH_SECONDS, (now - self._began) * _FLUSH_SHARE)
        for until in [until for until, gathering in self._open.items() if gathering.since < oldest]:
            self._write(until)

    def finish(self) -> None:
        """Write all that is left."""
        for until in list(self._open):
            self._write(until)

    def _write(self, until: str | None) -> None:
        gathering = self._open.pop(until)
        rows = pa.concat_batches([batch.rows() for batch in gathering.files])
        sieve = self._new_sieve()
        kept = sieve.kept(FileBatch(*rows.columns))
        self._segments.add(KeyRange(gathering.after, until), kept, sieve)
