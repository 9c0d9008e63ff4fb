"""Which files of an archive are images that are wanted, column by column, and why the others are left out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.archive.globs import glob_expression
from pipelines.storage import listing as storage
from pipelines.storage import paths
from pipelines.storage.batches import FileBatch

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
SIFTED_SCHEMA = LISTING_SCHEMA.append(pa.field("young", pa.bool_()))
MOST_SUFFIXES = 256
_IMAGE_NAME = rf"(?i)[^/]\.(?:{'|'.join(IMAGE_SUFFIXES)})$"


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
        return Sieve("/", self).passes(inner)


def is_image_name(name: str) -> bool:
    """Say whether a file's name has a suffix that is read; its case does not matter."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return bool(stem and dot) and suffix.lower() in IMAGE_SUFFIXES


class Sieve:
    """Decides which files of a listing stay, and counts the others by the first reason that holds.

    Args:
        root: The archive: a folder or a URI.
        wanted: Which files.
        min_age_seconds: Images that were written less than this long ago are too young. One that is dated further
            than this in the future is not: it could be waited for in vain for ever.

    Attributes:
        left_out: How many files, by reason.
        suffixes: Of those left out for their suffix, how many of each.
        unlistable: Folders that could not be listed.
    """

    def __init__(self, root: str, wanted: ListingFilter, min_age_seconds: float = 0) -> None:
        self._min_age_seconds = min_age_seconds
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

    def kept(self, batch: FileBatch) -> pa.RecordBatch:
        """Return the images that are wanted, as `SIFTED_SCHEMA` has them; those too young are counted and marked."""
        inner = pc.utf8_slice_codeunits(batch.uris, self._cut)
        rows = pa.RecordBatch.from_arrays(
            [batch.uris, batch.versions, inner, batch.sizes, batch.modified],
            names=["image_uri", "image_version", "inner", "size", "modified"],
        )
        rows = self._reject(rows, "share_litter", self._is_litter)
        rows = self._reject(rows, "hidden", self._is_hidden)
        rows = self._reject_suffixes(rows)
        if self._include:
            rows = self._reject(rows, "not_included", lambda inner: pc.invert(_matches_any(inner, self._include)))
        if self._exclude:
            rows = self._reject(rows, "excluded", lambda inner: _matches_any(inner, self._exclude))
        young = self._is_young(rows.column("modified"))
        self._count("too_young", young.true_count)
        return pa.RecordBatch.from_arrays([*rows.columns[:2], young], schema=SIFTED_SCHEMA)

    def _is_young(self, modified: pa.TimestampArray) -> pa.BooleanArray:
        if not self._min_age_seconds:
            return pa.repeat(False, len(modified))
        now, age = time.time_ns() // 1000, int(self._min_age_seconds * 1e6)
        moment = modified.cast(pa.int64())
        young = pc.and_(pc.greater(moment, now - age), pc.less(moment, now + age))
        return pc.fill_null(young, False)

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
        add_suffixes(self.suffixes, {item["values"]: item["counts"] for item in pc.value_counts(suffixes).to_pylist()})
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


def add_suffixes(total: Counter[str], more: Mapping[str, int]) -> None:
    """Add counts of suffixes to others: 256 of them by name, for names such as 1.2.840.113619 have no end of them."""
    for suffix, count in more.items():
        total[suffix if suffix in total or len(total) < MOST_SUFFIXES else "other"] += count


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
