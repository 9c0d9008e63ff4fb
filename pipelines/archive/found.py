"""What listing an archive, or reading its manifest, found: one answer for both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa


@dataclass(frozen=True)
class Listing:
    """An archive's images, in a local Parquet file.

    Attributes:
        path: The file: `image_uri`, `image_version` (strings) and carried columns; each URI once.
        found: Its rows.
        left_out: Files that are no images to us, by reason.
        suffixes_left_out: Of those left out for their suffix, how many of each.
        unlistable: Sub-folders that could not be listed.
        versions_from_manifest: The versions were read in the manifest, not asked of the store.
        carried: The manifest's own columns; None where there are none.
        repeated: Rows of the manifest that said the same again and were dropped.
        repeated_rows: The first of them, as numbers of the manifest's rows.
        unmatched: Images whose path the expression of `--path-columns` does not match; 0 without one.
        requests: How many requests to a bucket the listing took; 0 elsewhere.
        young: Parquet file (`image_uri`) of the images that were left out as too young; None where there are none.
    """

    path: Path
    found: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    suffixes_left_out: Mapping[str, int] = field(default_factory=dict)
    unlistable: tuple[str, ...] = ()
    versions_from_manifest: bool = False
    carried: pa.Schema | None = None
    repeated: int = 0
    repeated_rows: tuple[int, ...] = ()
    unmatched: int = 0
    requests: int = 0
    young: Path | None = None
