"""Which images an archive holds: a stream of files, sifted column by column, into a local Parquet file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.archive.found import Listing as Listing
from pipelines.archive.globs import glob_expression
from pipelines.storage import listing as storage
from pipelines.storage import paths

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "bmp", "gif", "tif", "tiff", "webp")
# What shares are full of: previews, recycle bins, snapshots, forks of other systems, unfinished copies.
LITTER = (
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "~snapshot",
    ".snapshot",
    "System Volume Information",
    "._*",
    "*.part",
    "*.tmp",
)
LISTING_SCHEMA = pa.schema([pa.field("image_uri", pa.string()), pa.field("image_version", pa.string())])
MOST_SUFFIXES = 256
_ROWS_PER_GROUP = 65_536
_IMAGE_NAME = rf"(?i)[^/]\.(?:{'|'.join(IMAGE_SUFFIXES)})$"

OnCount = Callable[[int], None]


@dataclass(frozen=True)
class ListingFilter:
    """Which files are wanted.

    A pattern is matched against the path below the root (`*` crosses folders) and, without a `/` in it, against the
    name alone; see `glob_expression`. What is included must match one of `include`, if there are any, and none of
    `exclude`. Litter of shares is left out, unless a part of an include pattern names it (`@eaDir/*`, `*.tmp`);
    names that begin with a dot always are.

    Attributes:
        include: Patterns of which one must match.
        exclude: Patterns of which none may match.

    Raises:
        UsageError: For a pattern that cannot be one.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for glob in (*self.include, *self.exclude):
            glob_expression(glob)

    def keeps(self, inner: pa.StringArray) -> pa.BooleanArray:
        """Say of paths whether a listing would keep a file of that name.

        Args:
            inner: Escaped paths below the root, without a slash in front.
        """
        return _Sieve("/", self).passes(inner)


def is_image_name(name: str) -> bool:
    """Say whether a file's name has a suffix that is read; its case does not matter."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return bool(stem and dot) and suffix.lower() in IMAGE_SUFFIXES


def list_archive(
    root: str, wanted: ListingFilter, out_path: str | os.PathLike[str], on_count: OnCount | None = None
) -> Listing:
    """List all images of a folder or bucket into a local Parquet file, in flat memory.

    What is left out is counted by reason, whole local folders once each: suffix, hidden, share_litter, excluded,
    not_included, folder_marker, special, link_outside, link_broken, link_inside. Suffixes are in lower case without
    dot, "" for none.

    Args:
        root: The archive: a folder or a URI.
        wanted: Which files.
        out_path: Where the file is written; one that is there is replaced.
        on_count: Called now and then with the number of images found so far.

    Raises:
        UsageError: The root does not exist or may not be listed.
        TryLater: Storage does not answer.
    """
    sieve = _Sieve(root, wanted)
    found = 0
    with listing_writer(out_path, LISTING_SCHEMA) as write:
        for batch in storage.list_files(root, sieve.on_error, sieve.enter):
            kept = sieve.kept(batch)
            if kept.num_rows:
                write(kept)
                found += kept.num_rows
            if on_count:
                on_count(found)
    return Listing(Path(out_path), found, dict(sieve.left_out), dict(sieve.suffixes), tuple(sieve.unlistable))


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


class _Sieve:
    """Decides which files of a listing stay, and counts the others by the first reason that holds."""

    def __init__(self, root: str, wanted: ListingFilter) -> None:
        base = storage.root_uri(root)
        self._cut = len(base if base.endswith("/") else base + "/")
        self._is_bucket = paths.is_bucket(base)
        self._include = [glob_expression(glob) for glob in wanted.include]
        self._exclude = [glob_expression(glob) for glob in wanted.exclude]
        named = {part for glob in wanted.include for part in glob.split("/")}
        lifted = [litter for litter in LITTER if any(_names(part, litter) for part in named)]
        self._litter = _any_part([litter for litter in LITTER if litter not in lifted])
        self._lifted = _any_part(lifted) if lifted else None
        self.left_out: Counter[str] = Counter()
        self.suffixes: Counter[str] = Counter()
        self.unlistable: list[str] = []

    def on_error(self, uri: str, reason: str) -> None:
        """Take note of something that is no file, or of a folder that cannot be listed."""
        if reason in storage.UNLISTABLE:
            self.unlistable.append(uri)
        else:
            self.left_out[reason] += 1

    def enter(self, _uri: str, name: str) -> bool:
        """Say whether a folder is walked; one that is not counts once."""
        path = pa.array([name])
        for reason, rejected in (("share_litter", self._is_litter(path)), ("hidden", self._is_hidden(path))):
            if rejected[0].as_py():
                self.left_out[reason] += 1
                return False
        return True

    def passes(self, inner: pa.StringArray) -> pa.BooleanArray:
        """Say which paths would stay in a listing; nothing is counted."""
        passing = pc.match_substring_regex(inner, _IMAGE_NAME)
        for rejected in (self._is_litter(inner), self._is_hidden(inner)):
            passing = pc.and_not(passing, rejected)
        if self._include:
            passing = pc.and_(passing, _matches_any(inner, self._include))
        if self._exclude:
            passing = pc.and_not(passing, _matches_any(inner, self._exclude))
        return passing

    def kept(self, batch: storage.FileBatch) -> pa.RecordBatch:
        """Return the rows that stay, as `LISTING_SCHEMA` has them."""
        inner = pc.utf8_slice_codeunits(batch.uris, self._cut)
        rows = pa.RecordBatch.from_arrays(
            [batch.uris, batch.versions, inner, batch.sizes], names=["image_uri", "image_version", "inner", "size"]
        )
        rows = self._reject(rows, "share_litter", self._is_litter)
        rows = self._reject(rows, "hidden", self._is_hidden)
        rows = self._reject_suffixes(rows)
        if self._include:
            rows = self._reject(rows, "not_included", lambda inner: pc.invert(_matches_any(inner, self._include)))
        if self._exclude:
            rows = self._reject(rows, "excluded", lambda inner: _matches_any(inner, self._exclude))
        return rows.select(["image_uri", "image_version"])

    def _reject(
        self, rows: pa.RecordBatch, reason: str, is_rejected: Callable[[pa.StringArray], pa.BooleanArray]
    ) -> pa.RecordBatch:
        rejected = is_rejected(rows.column("inner"))
        count = rejected.true_count
        if not count:
            return rows
        self.left_out[reason] += count
        return rows.filter(pc.invert(rejected))

    def _reject_suffixes(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        is_image = pc.match_substring_regex(rows.column("inner"), _IMAGE_NAME)
        if is_image.true_count == rows.num_rows:
            return rows
        others = rows.filter(pc.invert(is_image))
        found = pc.extract_regex(pc.utf8_lower(others.column("inner")), r"[^/]\.(?P<suffix>[a-z0-9_-]{1,12})$")
        suffixes = pc.fill_null(pc.struct_field(found, "suffix"), "")
        if self._is_bucket:
            # `a/b/` without bytes stands for an empty folder.
            marker = pc.and_(pc.equal(others.column("size"), 0), pc.equal(suffixes, ""))
            self._count("folder_marker", marker.true_count)
            suffixes = suffixes.filter(pc.invert(marker))
        self._count("suffix", len(suffixes))
        for item in pc.value_counts(suffixes).to_pylist():
            # Names such as 1.2.840.113619 have no end of suffixes.
            known = item["values"] in self.suffixes or len(self.suffixes) < MOST_SUFFIXES
            self.suffixes[item["values"] if known else "other"] += item["counts"]
        return rows.filter(is_image)

    def _count(self, reason: str, count: int) -> None:
        if count:
            self.left_out[reason] += count

    def _is_litter(self, inner: pa.StringArray) -> pa.BooleanArray:
        return pc.match_substring_regex(inner, self._litter)

    def _is_hidden(self, inner: pa.StringArray) -> pa.BooleanArray:
        if self._lifted:
            inner = pc.replace_substring_regex(inner, self._lifted, "/")
        return pc.or_(pc.starts_with(inner, "."), pc.match_substring(inner, "/."))


def _any_part(globs: list[str]) -> str:
    """Return an expression for a path of which one part, folder or name, matches one of these patterns."""
    parts = "|".join(glob.replace(".", r"\.").replace("$", r"\$").replace("*", "[^/]*") for glob in globs)
    return f"(?:^|/)(?:{parts})(?:/|$)" if parts else "$^x"


def _names(part: str, litter: str) -> bool:
    """Say whether a part of an include pattern speaks of this litter, rather than of files in general."""
    if "*" not in litter:
        return part == litter
    before, after = litter.split("*")
    return len(part) > len(before + after) - 1 and part.startswith(before) and part.endswith(after)


def _matches_any(inner: pa.StringArray, expressions: list[str]) -> pa.BooleanArray:
    matched = pc.match_substring_regex(inner, expressions[0])
    for expression in expressions[1:]:
        matched = pc.or_(matched, pc.match_substring_regex(inner, expression))
    return matched
