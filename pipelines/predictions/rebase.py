"""A moved archive: the table's image names are given a new prefix, so that no image is scored again for its new place.

One new version of the table, made under the lease. Its entry in the table's log says who did it, when, from where to
where; the same command with the prefixes exchanged takes it back.
"""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import TryLater, UsageError
from pipelines.predictions import commit
from pipelines.predictions.query import connect, run_query
from pipelines.predictions.rewriting import rewrite_days
from pipelines.predictions.runs import RunFolder, list_runs
from pipelines.predictions.schema import PARTITION_COLUMN
from pipelines.predictions.statements import literal
from pipelines.predictions.table import open_table
from pipelines.storage import paths
from pipelines.storage.leases import Lease
from pipelines.storage.listing import root_uri

_KEY: Final = "nightread_rebase"
# What makes two rows answers of the same model to the same file.
_SAME: Final = ("frame", "image_version", "model_id", "preprocessing_id", "precision")


@dataclass(frozen=True)
class Rebased:
    """What a rebase did, or would do.

    Attributes:
        old_prefix: Canonical URI of the folder whose images were named anew, escaped as image URIs are.
        new_prefix: The one they are in now.
        rows: Rows whose `image_uri` changed.
        images: Their images.
        there_before: Images that were in the new folder already. Where there are any, the way back would take these
            along, so that there is no exact one.
        abandoned: Interrupted runs that were given up, since their plans name the old places; their images are new
            again.
        table_version: The version that holds the new names; None for a dry run.
    """

    old_prefix: str
    new_prefix: str
    rows: int
    images: int
    there_before: int
    abandoned: tuple[str, ...] = ()
    table_version: int | None = None


def rebase(results: str, old_prefix: str, new_prefix: str, who: Mapping[str, Any], *, dry_run: bool = False) -> Rebased:
    """Give all images of a folder the same names in another folder.

    Whole parts of a path are compared: `/mnt/a` has nothing to do with `/mnt/ab`. Files are neither looked at nor
    moved.

    Args:
        results: The results folder.
        old_prefix: Where the images lay when they were scored: a folder or URI as a person types it.
        new_prefix: Where they lie now.
        who: `user` and `host`, for the table's log.
        dry_run: Count, and change nothing.

    Raises:
        UsageError: If no image lies in the old folder, both are the same, or an image would be there twice with the
            same version and model.
        TryLater: If another process writes to the results, or storage does not answer.
    """
    old, new = root_uri(old_prefix), root_uri(new_prefix)
    if old == new:
        raise UsageError(f"Both prefixes are {old!r}.", "Name the folder that the images have moved to.")
    open_table(results)  # a place without results is told before a lease is taken there
    if dry_run:
        return replace(_counted(results, old, new), abandoned=_interrupted(results))
    with Lease.acquire(results) as lease:
        lease.start_renewing()
        counted = _counted(results, old, new)
        abandoned = tuple(run for run in _interrupted(results) if _abandon(results, run, lease))
        lease.check()
        version = _rename(results, counted, who, lease)
    return replace(counted, abandoned=abandoned, table_version=version)


def _counted(results: str, old: str, new: str) -> Rebased:
    """Count what would change, and refuse what must not be."""
    here, there = _inside(old), _inside(new)
    with connect(results, with_runs=False) as connection:

        def count(sql: str) -> int:
            found = connection.execute(f"SELECT count(*) FROM ({sql})").fetchone()
            return int(found[0]) if found else 0

        rows = count(f"SELECT 1 FROM rows WHERE {here}")
        if not rows:
            raise UsageError(
                f"No image of the table lies in {old!r}.",
                'Name the folder as the table does: nightread query RESULTS "SELECT image_uri FROM rows LIMIT 5".',
            )
        images = count(f"SELECT image_uri FROM rows WHERE {here} GROUP BY image_uri")
        there_before = count(f"SELECT image_uri FROM rows WHERE {there} AND NOT {here} GROUP BY image_uri")
        # Only a row that stays where it is can be met, and only in the new folder. What was not there has no version.
        twice = there_before and count(
            f"""SELECT DISTINCT stays.image_uri FROM
                (FROM rows WHERE {there} AND NOT {here} AND image_version <> '') AS stays
                JOIN (FROM rows WHERE {here}) AS moves ON stays.image_uri = {_renamed("moves.image_uri", old, new)}
                AND {" AND ".join(f"stays.{name} IS NOT DISTINCT FROM moves.{name}" for name in _SAME)}"""
        )
    if twice:
        raise UsageError(
            f"{twice:,} images are in the table under {new!r} already, with the same version and model; they would "
            "be there twice.",
            "Roll back the run that scored them there, or name narrower folders.",
        )
    return Rebased(old, new, rows, images, there_before)


def _rename(results: str, counted: Rebased, who: Mapping[str, Any], lease: Lease) -> int:
    """Write the days on which images of the folder were scored anew, in one commit; the version that holds them."""
    from deltalake.exceptions import CommitFailedError

    table, token = open_table(results, lease), secrets.token_hex(8)
    renaming = _Renaming(counted)

    def last_check() -> None:
        if renaming.renamed != counted.rows:
            raise RuntimeError(f"{renaming.renamed} rows were named anew, and {counted.rows} were to be")
        lease.check()

    first, last = _days_inside(results, counted.old_prefix)
    try:
        rewrite_days(table, results, first, last, renaming, last_check, {_KEY: _told(counted, who, token)})
    except CommitFailedError:
        raise TryLater(
            "The table changed while its names were being changed; nothing was written.", "Start it again."
        ) from None
    except Exception:
        # An error after the commit was sent says nothing about whether it landed.
        table = open_table(results)
        if not any(token in str(entry.get(_KEY, "")) for entry in table.history(1)):
            raise
    return int(table.version())


def _told(counted: Rebased, who: Mapping[str, Any], token: str) -> str:
    """What the table's log is to say."""
    return json.dumps(
        {
            "from": counted.old_prefix,
            "to": counted.new_prefix,
            "user": who.get("user"),
            "host": who.get("host"),
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "token": token,
        }
    )


class _Renaming:
    """Gives the rows of the folder their new names.

    Attributes:
        renamed: Rows that got a new name so far.
    """

    def __init__(self, names: Rebased) -> None:
        self.renamed = 0
        self._old, self._new = _with_slash(names.old_prefix), _with_slash(names.new_prefix)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        uris = batch.column("image_uri").cast(pa.string())
        moves = pc.starts_with(uris, self._old)
        self.renamed += pc.sum(moves).as_py() or 0
        moved = pc.binary_join_element_wise(self._new, pc.utf8_slice_codeunits(uris, len(self._old)), "")
        number = batch.schema.get_field_index("image_uri")
        field = batch.schema.field(number)
        return batch.set_column(number, field, pc.if_else(moves, moved, uris).cast(field.type))


def _days_inside(results: str, prefix: str) -> tuple[datetime.date, datetime.date]:
    """The first and the last day on which images of a folder were scored."""
    sql = f"SELECT min({PARTITION_COLUMN}) AS first, max({PARTITION_COLUMN}) AS last FROM rows WHERE {_inside(prefix)}"
    (found,) = run_query(results, sql).to_pylist()
    return found["first"], found["last"]


def _inside(prefix: str) -> str:
    """The condition that an image lies below a folder."""
    return f"starts_with(image_uri, {literal(_with_slash(prefix))})"


def _renamed(column: str, old: str, new: str) -> str:
    """The new name of an image below the old folder."""
    return f"concat({literal(_with_slash(new))}, substr({column}, {len(_with_slash(old)) + 1}))"


def _with_slash(prefix: str) -> str:
    return prefix if prefix.endswith("/") else f"{prefix}/"


def _interrupted(results: str) -> tuple[str, ...]:
    return tuple(record.run_id for record in list_runs(results) if record.status == "running")


def _abandon(results: str, run_id: str, lease: Lease) -> bool:
    """Give a run up; False if its rows are in the table already, and only its record does not know yet."""
    if not commit.abandon_run(results, run_id, lease):
        return False
    folder = RunFolder(paths.canonical(results), run_id)
    folder.write_record(replace(folder.read_record(), status="abandoned"))
    folder.remove_parts()
    return True
