"""A manifest instead of a listing: which images to score, and what else is known about each.

Rows are staged in a local Parquet file with their numbers; the versions of their images, repeats and contradictions
are then found by DuckDB on disk, so that memory does not grow with the manifest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.archive.found import Listing
from pipelines.archive.listing import LISTING_SCHEMA, listing_writer
from pipelines.archive.manifest_rows import BATCH_ROWS, ManifestRows, open_manifest
from pipelines.archive.manifest_uris import UriResolver
from pipelines.archive.manifest_versions import ROW_NUMBER, VERSION_THERE, locate
from pipelines.archive.prefix_map import PrefixMap
from pipelines.errors import UsageError
from pipelines.storage import files, paths
from pipelines.storage.scratch import Scratch
from pipelines.storage.throttle import Throttle

if TYPE_CHECKING:
    import duckdb

OnCount = Callable[[int], None]

_MEMORY_LIMIT: Final = "1GB"
_KNOWN: Final = ("uri", "image_version")
_TAKEN: Final = frozenset({*_KNOWN, "image_uri", "file_row_number", ROW_NUMBER, VERSION_THERE})
_NAMED: Final = 10


def read_manifest(
    uri: str,
    columns: Mapping[str, str],
    root: str | None,
    out_path: str | os.PathLike[str],
    on_count: OnCount | None = None,
    *,
    prefix_map: PrefixMap | None = None,
    throttle: Throttle | None = None,
) -> Listing:
    """Read a manifest into the same local Parquet file that a listing makes.

    CSV may have a byte order mark, `,` `;` or tab, and CRLF; its columns are all text. Columns without a name are
    left out, exact repeats of a row dropped and counted. An image that is not there gets the version ''; one that is
    there under another Unicode form of its name is taken, under its own spelling, unless there are two such.

    Args:
        uri: The manifest, `.csv` or `.parquet`, local or in a bucket.
        columns: Our names to theirs, such as {"uri": "path"}.
        root: Where relative URIs start and what none may leave; by default the manifest's folder.
        out_path: Local Parquet file: `image_uri, image_version` and the further columns; replaced if it is there.
        on_count: Called now and then with the rows read so far.
        prefix_map: What names of other machines stand for here; None where the command cannot be told.
        throttle: Announces each request to a bucket.

    Returns:
        What was found, in the manifest's order.

    Raises:
        UsageError: If the manifest is unusable; names the line and the rule, never a patient.
        TryLater: If storage does not answer.
    """
    place, asked = paths.canonical(uri), throttle or Throttle()
    with Scratch() as folder:
        rows = open_manifest(_local(place, folder), place, columns)
        resolver = UriResolver(root, paths.parent(place), rows.unit, prefix_map)
        staged = _Staged(folder, rows)
        staged.write(resolver, on_count)
        resolver.check()
        with staged.opened() as question:
            remote = resolver.prefix is not None and not paths.is_local(resolver.prefix)
            located = locate(question, staged.path, resolver, staged.has_versions, asked)
            repeats = _repeats(question, located, staged)
            found = _write_listing(located, staged.carried, repeats, out_path)
        carried = staged.carried
    return Listing(
        Path(out_path),
        found,
        versions_from_manifest=remote and staged.has_versions,
        carried=carried if len(carried) else None,
        repeated=len(repeats),
        repeated_rows=tuple(repeats[:_NAMED]),
        requests=asked.requests,
    )


class _Staged:
    """The manifest's rows with canonical URIs, in a local file, not yet without repeats."""

    def __init__(self, folder: Path, rows: ManifestRows) -> None:
        self.folder = folder
        self.path = folder / "staged.parquet"
        self.unit = rows.unit
        self._rows = rows
        names = rows.schema.names
        for name in names:
            # DuckDB knows columns by their names without case, and gives each row a number of its own.
            if name.lower() in _TAKEN and name not in _KNOWN:
                raise UsageError(
                    f"The manifest has columns 'uri' and {name!r}; the table uses the second name itself.",
                    f"Carry it under another name: --columns OTHER_NAME={name}.",
                )
        self.has_versions = "image_version" in names
        self.carried = pa.schema([field for field in rows.schema if field.name not in _KNOWN])

    def write(self, resolver: UriResolver, on_count: OnCount | None) -> None:
        """Resolve every row."""
        schema = pa.schema([(ROW_NUMBER, pa.int64()), *LISTING_SCHEMA, *self.carried])
        count = 0
        with listing_writer(self.path, schema) as write:
            for numbers, batch in self._rows.batches():
                pairs = zip(batch.column("uri").to_pylist(), numbers.to_pylist(), strict=True)
                uris = [resolver.resolve(uri, number) for uri, number in pairs]
                if self.has_versions:
                    versions = batch.column("image_version").cast(pa.string()).fill_null("")
                else:
                    versions = pa.array([""] * len(uris), pa.string())
                cells = [numbers, pa.array(uris, pa.string()), versions, *(batch.column(n) for n in self.carried.names)]
                write(pa.RecordBatch.from_arrays(cells, schema=schema))
                count += len(uris)
                if on_count:
                    on_count(count)

    def opened(self) -> duckdb.DuckDBPyConnection:
        """A connection that keeps what is large beside the rows."""
        import duckdb

        return duckdb.connect(
            config={"memory_limit": _MEMORY_LIMIT, "temp_directory": str(self.folder / "spill"), "threads": 2}
        )


def _repeats(question: duckdb.DuckDBPyConnection, located: Path, staged: _Staged) -> list[int]:
    """Numbers of the rows that say again what an earlier one said.

    Raises:
        UsageError: If two rows say different things about the same image.
    """
    others = ["image_version", *staged.carried.names]
    same = ", ".join(_quoted(name) for name in others)
    number = _quoted(ROW_NUMBER)
    question.read_parquet(str(located)).create_view("staged")
    # Hashes first: a table of all names would take as much memory as the names.
    question.execute(
        """CREATE TABLE suspects AS SELECT hash(image_uri) AS h FROM staged GROUP BY h HAVING count(*) > 1;
        CREATE TABLE twice AS SELECT image_uri FROM staged WHERE hash(image_uri) IN (SELECT h FROM suspects)
        GROUP BY image_uri HAVING count(*) > 1"""
    )
    contradictions = question.sql(
        f"""SELECT list({number} ORDER BY {number}) FROM staged SEMI JOIN twice USING (image_uri)
        GROUP BY image_uri HAVING count(DISTINCT row({same})) > 1 ORDER BY min({number}) LIMIT 1"""
    ).fetchall()
    if contradictions:
        numbers = ", ".join(str(number) for number in contradictions[0][0][:_NAMED])
        raise UsageError(
            f"The manifest names the same image in {staged.unit}s {numbers} with different columns.",
            "Keep one row for each image.",
        )
    repeated = question.sql(
        f"""SELECT {number} FROM staged SEMI JOIN twice USING (image_uri)
        QUALIFY row_number() OVER (PARTITION BY image_uri ORDER BY {number}) > 1 ORDER BY {number}"""
    ).fetchall()
    return [row[0] for row in repeated]


def _write_listing(located: Path, carried: pa.Schema, repeats: list[int], out_path: str | os.PathLike[str]) -> int:
    """Write each image once, in the manifest's order, with its version; the count of rows."""
    names = ["image_uri", VERSION_THERE, *carried.names]
    schema = pa.schema([*LISTING_SCHEMA, *carried])
    dropped = pa.array(repeats, pa.int64())
    found = 0
    with listing_writer(out_path, schema) as write:
        for batch in pq.ParquetFile(located).iter_batches(BATCH_ROWS):
            kept = batch.filter(pc.invert(pc.is_in(batch.column(ROW_NUMBER), value_set=dropped))).select(names)
            write(kept.rename_columns(schema.names).cast(schema))
            found += kept.num_rows
    return found


def _local(place: str, folder: Path) -> str:
    path = place
    try:
        if not paths.is_local(place):
            path = str(folder / "manifest")
            files.fetch(place, path)
        elif os.path.isdir(path):
            raise UsageError(f"The manifest {place!r} is a folder.", "Give the file.")
        with files.explaining(place), open(path, "rb"):
            pass
    except FileNotFoundError:
        raise UsageError(f"There is no manifest {place!r}.", "Check its name.") from None
    return path


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
