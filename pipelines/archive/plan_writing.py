"""The plan files: chosen rows of a listing, streamed into shards, row groups and one file for each run."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

# No manifest has a column of this name.
PREVIOUS: Final = "nightread previous"

_READ_ROWS: Final = 1 << 16
_WRITE_ROWS: Final = 1 << 17

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PlanShape:
    """How planned images are divided.

    Attributes:
        shard_size: Images a shard.
        rows_per_group: Rows of a row group; a multiple of `shard_size`. The last of each file may have fewer.
        rows_a_run: At most so many images a file; None: all in one.
    """

    shard_size: int
    rows_per_group: int
    rows_a_run: int | None

    def shards_of(self, images: int) -> int:
        """How many shards so many images make, over all files."""
        whole, rest = divmod(images, self.rows_a_run or max(images, 1))
        return whole * self._shards(self.rows_a_run or images) + self._shards(rest)

    def _shards(self, images: int) -> int:
        return -(-images // self.shard_size)


def write_plans(
    listing_path: str,
    in_turn: tuple[npt.NDArray[np.bool_], ...],
    previous: Path | None,
    out_folder: Path,
    shape: PlanShape,
) -> list[Path]:
    """Stream chosen rows of a listing into the plan files.

    Args:
        listing_path: Local Parquet file.
        in_turn: Rows of the listing, bit by bit; those of the first come first, each in the listing's order.
        previous: Local Parquet file with `number`, ascending, and columns for rows of the first; None: no such column.
        out_folder: Where `plan-000.parquet` and so on are written.
        shape: How the images are divided.

    Returns:
        The files, in order.
    """
    source = pq.ParquetFile(listing_path)
    fields = [pa.field("shard", pa.int32()), *source.schema_arrow]
    old = None if previous is None else _Previous(previous)
    if old is not None:
        fields.append(pa.field(PREVIOUS, old.type))
    schema = pa.schema(fields)
    paths: list[Path] = []
    with contextlib.ExitStack() as stack:
        for run, before, rows in _in_pieces(_chosen_rows(source, in_turn, old), shape):
            if run == len(paths):
                stack.close()
                paths.append(out_folder / f"plan-{run:03d}.parquet")
                out = stack.enter_context(
                    pq.ParquetWriter(
                        paths[-1], schema, compression="zstd", use_dictionary=False, write_statistics=["shard"]
                    )
                )
            shards = (np.arange(before, before + rows.num_rows) // shape.shard_size).astype(np.int32)
            out.write_table(rows.add_column(0, schema.field(0), pa.array(shards)), row_group_size=shape.rows_per_group)
    return paths


def wanted_rows(
    source: pq.ParquetFile, wanted: npt.NDArray[np.bool_], columns: list[str] | None = None
) -> Iterator[tuple[Numbers, pa.Table]]:
    """Stream the rows of a file that are marked, with their numbers.

    Args:
        source: The file.
        wanted: A bit for each of its rows.
        columns: Only these columns.

    Yields:
        Numbers of rows, ascending, and the rows.
    """
    start = 0
    for batch in source.iter_batches(_READ_ROWS, columns=columns):
        numbers = start + np.flatnonzero(wanted[start : start + batch.num_rows])
        if numbers.size:
            whole = numbers.size == batch.num_rows
            rows = batch if whole else batch.take(pa.array(numbers - start))
            yield numbers, pa.Table.from_batches([rows])
        start += batch.num_rows


class _Previous:
    """What the table said before of some rows, read once from front to back.

    Attributes:
        type: A struct of its columns.
    """

    def __init__(self, path: Path) -> None:
        file = pq.ParquetFile(path)
        self.type = pa.struct([field for field in file.schema_arrow if field.name != "number"])
        self._batches = file.iter_batches(_READ_ROWS)
        self._numbers: Numbers = np.empty(0, np.int64)
        self._rows: Any = pa.array([], self.type)

    def of(self, numbers: Numbers) -> pa.StructArray:
        """The structs of these rows, null where there is none; each call asks for higher numbers than the last."""
        self._read_to(int(numbers[-1]))
        places = np.searchsorted(self._numbers, numbers)
        inside = np.minimum(places, max(self._numbers.size - 1, 0))
        there = self._numbers[inside] == numbers if self._numbers.size else np.zeros(numbers.size, np.bool_)
        found = self._rows.take(pa.array(inside, mask=~there))
        rest = int(np.searchsorted(self._numbers, numbers[-1], side="right"))
        self._numbers, self._rows = self._numbers[rest:], self._rows.slice(rest)
        return found

    def _read_to(self, last: int) -> None:
        while not self._numbers.size or self._numbers[-1] < last:
            batch = next(self._batches, None)
            if batch is None:
                return
            rows = pa.StructArray.from_arrays([batch.column(field.name) for field in self.type], fields=list(self.type))
            self._numbers = np.concatenate([self._numbers, batch.column("number").to_numpy()])
            self._rows = pa.concat_arrays([self._rows, rows])


def _chosen_rows(
    source: pq.ParquetFile, in_turn: tuple[npt.NDArray[np.bool_], ...], old: _Previous | None
) -> Iterator[pa.Table]:
    for turn, wanted in enumerate(in_turn):
        if not wanted.any():
            continue
        for numbers, rows in wanted_rows(source, wanted):
            if old is not None:
                found = old.of(numbers) if turn == 0 else pa.nulls(numbers.size, old.type)
                rows = rows.append_column(pa.field(PREVIOUS, old.type), found)
            yield rows


def _in_pieces(tables: Iterator[pa.Table], shape: PlanShape) -> Iterator[tuple[int, int, pa.Table]]:
    """Regroup rows into pieces of whole row groups, none across two runs; the last of a run may be shorter.

    Yields:
        The run's number, how many of its rows came before, and the rows.
    """
    places = _places(shape)
    run, before, size = next(places)
    pending: list[pa.Table] = []
    count = 0
    for table in tables:
        pending.append(table)
        count += table.num_rows
        while count >= size:
            joined = pa.concat_tables(pending)
            yield run, before, joined.slice(0, size)
            pending, count = [joined.slice(size)], count - size
            run, before, size = next(places)
    if count:
        yield run, before, pa.concat_tables(pending)


def _places(shape: PlanShape) -> Iterator[tuple[int, int, int]]:
    """Run, rows before and size of each piece, without end."""
    most = max(1, _WRITE_ROWS // shape.rows_per_group) * shape.rows_per_group
    for run in itertools.count():
        before = 0
        while shape.rows_a_run is None or before < shape.rows_a_run:
            size = most if shape.rows_a_run is None else min(most, shape.rows_a_run - before)
            yield run, before, size
            before += size
