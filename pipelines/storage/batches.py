"""What listings are made of: columns of files."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

MODIFIED = pa.timestamp("us", "UTC")
FILES_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string()),
        pa.field("version", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("modified", MODIFIED),
    ]
)


@dataclass(frozen=True)
class FileBatch:
    """Some files.

    Attributes:
        uris: string; canonical and escaped image URIs.
        versions: string; see `reading`.
        sizes: int64; bytes.
        modified: timestamp[us, UTC]; when each was last written, null where that is not known.
    """

    uris: pa.StringArray
    versions: pa.StringArray
    sizes: pa.Int64Array
    modified: pa.TimestampArray

    def rows(self) -> pa.RecordBatch:
        """Return the columns together, as `FILES_SCHEMA` has them."""
        return pa.RecordBatch.from_arrays([self.uris, self.versions, self.sizes, self.modified], schema=FILES_SCHEMA)
