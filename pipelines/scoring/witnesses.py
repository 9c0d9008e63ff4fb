"""Images that ought to be readable, asked when many others are not: is it the archive, or is it those images?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import NightreadError
from pipelines.predictions.commit import committed_files
from pipelines.predictions.runs import RunFolder
from pipelines.scoring.parts import open_plan
from pipelines.storage import files, paths

FROM_TABLE = 8
FROM_PLAN = 16
# A table's newest files may be those of nights in which hardly anything could be read.
MOST_FILES = 20
OF_ONE_FILE = 4
BATCH_ROWS = 65_536


def witnesses(folder: RunFolder, root: str | None) -> Iterator[str]:
    """Images to try: some that were scored before, the newest first, then some from all over the run's plan.

    The plan alone would not do. Images that nobody can read are never settled, so every night plans them again, and
    one without new images plans nothing else.

    Args:
        folder: The run.
        root: The archive as a person typed it; None where its images have no place in common, and no table.

    Yields:
        URIs of images; fewer, or none, where table or plan cannot be read.
    """
    with contextlib.suppress(NightreadError, OSError, pa.ArrowException):
        if root is not None:
            yield from list(islice(_scored_below(root, folder.results), FROM_TABLE))
    with contextlib.suppress(NightreadError, OSError, pa.ArrowException):
        yield from list(_planned(folder))


def _scored_below(root: str, results: str) -> Iterator[str]:
    inside = paths.join(paths.escape_name(paths.canonical(root)), "x")[:-1]
    newest_first = sorted(committed_files(results), reverse=True)  # the day of scoring is their folder's name
    for place in newest_first[:MOST_FILES]:
        with files.open_input(place) as handle, pq.ParquetFile(handle, pre_buffer=False) as file:
            for rows in file.iter_batches(BATCH_ROWS, columns=["image_uri", "error_code"]):
                uris = rows.column("image_uri").cast(pa.string())
                scored = pc.and_(pc.is_null(rows.column("error_code")), pc.starts_with(uris, inside))
                found = uris.filter(scored).to_pylist()
                if found:
                    yield from (found[i] for i in _spread(len(found), OF_ONE_FILE))
                    break


def _planned(folder: RunFolder) -> Iterator[str]:
    with open_plan(folder) as plan:
        shards = [plan.kept[i] for i in _spread(len(plan.kept), FROM_PLAN)]
        for shard in shards:
            uris = plan.read_group(plan.group_of(shard))[shard].column("image_uri")
            yield from (uris[i].as_py() for i in _spread(len(uris), -(-FROM_PLAN // len(shards))))


def _spread(total: int, count: int) -> list[int]:
    """At most `count` of the numbers below `total`, from the first to the last."""
    return sorted({step * (total - 1) // max(1, count - 1) for step in range(count)}) if total else []
