"""Columns out of paths: patient, study or site where an archive has them in the names of its folders."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.archive.found import Listing
from pipelines.archive.listing import listing_writer
from pipelines.errors import UsageError
from pipelines.storage.listing import root_uri

_BATCH_ROWS: Final = 65_536
_LOOK_AROUND: Final = re.compile(r"\(\?<?[=!]")
_EARLIER_GROUP: Final = re.compile(r"\\[1-9]|\(\?P=|\(\?\(")
_CURE: Final = "Write named groups in RE2's syntax, such as '^(?P<site>[^/]+)/(?P<patient>[^/]+)/'."


@dataclass(frozen=True)
class PathColumns:
    """A regular expression whose named groups become columns.

    It is searched in each image's path below the root, written as `image_uri` writes it, in RE2's syntax; `.` stands
    for any character, a line break in a name included.

    Attributes:
        expression: As it was given.
        names: Its groups, in the order of the expression.
    """

    expression: str
    names: tuple[str, ...]

    @classmethod
    def parse(cls, expression: str) -> PathColumns:
        """Read what `--path-columns` was given.

        Raises:
            UsageError: If RE2 does not know the expression, or its groups cannot name columns.
        """
        try:
            names = pc.extract_regex(pa.array([], pa.string()), _whole(expression)).type
        except UnicodeEncodeError:
            raise UsageError("The expression of --path-columns is not UTF-8.", _CURE) from None
        except pa.ArrowInvalid as error:
            raise _refused(expression, str(error)) from None
        found = tuple(field.name for field in names)
        if not found:
            raise UsageError(f"The expression of --path-columns has no named group: {expression!r}.", _CURE)
        for name, count in Counter(name.lower() for name in found).items():
            if count > 1:
                raise UsageError(
                    f"The expression of --path-columns has two groups {name!r}; upper and lower case are one.",
                    "Give each group a name of its own; for either of two forms write one group: (?P<name>one|other).",
                )
        return cls(expression, found)

    @property
    def schema(self) -> pa.Schema:
        """The columns: one of text for each group."""
        return pa.schema([pa.field(name, pa.string()) for name in self.names])

    def fill(self, listing: Listing, root: str, out_path: str | os.PathLike[str]) -> Listing:
        """Add the columns to what was found, as a stream into a new file.

        A group that takes no part in a match, or matches nothing, is null; so are all in an image whose path does
        not match.

        Args:
            listing: An archive's listing or a manifest.
            root: The place below which paths are looked at, as a person typed it.
            out_path: Local Parquet file, another than the listing's; replaced if it is there.

        Returns:
            The listing with the new file, the columns among `carried` and the count `unmatched`.

        Raises:
            UsageError: If the manifest has such a column, an image does not lie below the root, or not one path
                matches.
        """
        theirs = listing.carried if listing.carried is not None else pa.schema([])
        taken = {name.lower(): name for name in theirs.names}
        for name in self.names:
            if name.lower() in taken:
                raise UsageError(
                    f"--path-columns has a group {name!r}, and the manifest a column {taken[name.lower()]!r}.",
                    "Name the group otherwise, or leave the column out of the manifest.",
                )
        base = root_uri(root)
        schema = pa.schema([*pq.read_schema(listing.path), *self.schema])
        unmatched = 0
        with listing_writer(out_path, schema) as write:
            for batch in pq.ParquetFile(listing.path).iter_batches(_BATCH_ROWS):
                found = pc.extract_regex(_below(batch.column("image_uri"), base), _whole(self.expression))
                unmatched += found.null_count
                texts = [_text(pc.struct_field(found, [place])) for place in range(len(self.names))]
                write(pa.RecordBatch.from_arrays([*batch.columns, *texts], schema=schema))
        if listing.found and unmatched == listing.found:
            raise UsageError(
                f"The expression of --path-columns matches not one of {listing.found:,} images.",
                "It is searched in the path below the archive (or --root), without a slash at its beginning.",
            )
        return dataclasses.replace(
            listing,
            path=Path(out_path),
            carried=pa.schema([*theirs, *self.schema]),
            unmatched=unmatched,
        )


def _whole(expression: str) -> str:
    # As in patterns of files: a name may hold line breaks, and is one text.
    return f"(?s){expression}"


def _below(uris: pa.StringArray, base: str) -> pa.StringArray:
    prefix = base if base.endswith("/") else base + "/"
    if pc.all(pc.starts_with(uris, prefix)).as_py() is False:
        raise UsageError(
            "--path-columns looks at paths below one root, and the manifest names images outside its own folder.",
            "Name the folder or bucket that holds all with --root.",
        )
    return pc.utf8_slice_codeunits(uris, len(prefix))


def _text(found: pa.StringArray) -> pa.StringArray:
    return pc.if_else(pc.equal(found, ""), pa.scalar(None, pa.string()), found)


def _refused(expression: str, why: str) -> UsageError:
    if "unnamed groups" in why:
        return UsageError(
            f"The expression of --path-columns has a group without a name: {expression!r}.",
            "Write (?P<name>…) for what becomes a column, and (?:…) for what only belongs together.",
        )
    said = f"RE2 does not know the expression of --path-columns {expression!r}: {why.partition(': ')[2] or why}."
    if _LOOK_AROUND.search(expression):
        return UsageError(said, "RE2 has no look-ahead and no look-behind; match what stands there without a group.")
    if _EARLIER_GROUP.search(expression):
        return UsageError(said, "RE2 cannot refer to an earlier group; write out what may stand there.")
    return UsageError(said, _CURE)
