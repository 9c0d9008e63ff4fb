"""What is to be scored: the listing against the table's rows, and the plan files that runs work through.

Each answer of the table is bits over the listing (`plan_questions`); here they become counts and an order, and the
rows themselves are streamed from file to file (`plan_writing`). So memory does not grow with the length of the URIs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipelines.archive.listing import ListingFilter
from pipelines.archive.plan_questions import Bits, Questions, explained, open_questions
from pipelines.archive.plan_questions import PlanKey as PlanKey
from pipelines.archive.plan_writing import PlanShape, write_plans
from pipelines.errors import UsageError

MOST_RUNS = 1000


@dataclass(frozen=True)
class ArchiveScope:
    """What a listing could have found, for the question which images the archive has lost.

    Attributes:
        root: The archive's root, canonical and escaped.
        wanted: The filter that the listing was made with.
        unlistable: Escaped URIs of folders whose content is unknown.
        young: Local Parquet file with the `image_uri`s that the listing left to the next night, or None.
    """

    root: str
    wanted: ListingFilter
    unlistable: tuple[str, ...] = ()
    young: Path | None = None


@dataclass(frozen=True)
class Moved:
    """A sign that an archive was moved: its images are known, but under another root.

    Attributes:
        old_root: Escaped root under which they are known.
        new_root: Escaped root under which they lie now.
        matched: Of those that were looked at, images with the same path below the root and the same version.
        looked_at: New images that were looked at.
    """

    old_root: str
    new_root: str
    matched: int
    looked_at: int


@dataclass(frozen=True)
class Plan:
    """What a listing holds against the table: `found = new + changed + unchanged + rescored_for_model`.

    Attributes:
        found: Images listed; one that was listed twice counts once.
        new: Images that no version of this model has settled, and whose URI the table has in no other state only.
        changed: Images that some model has scored, or failed at for a reason that lay in them, but that the table has
            never seen in this version.
        unchanged: Images that the table settles: scored by this model, or failed for a reason that lies in them.
        rescored_for_model: Images that are settled by another version of this model (or in another precision) only.
        backfilled: Of these, planned now.
        gone: Images of `known` that the archive has no more; images that were left for being young, and those below
            folders that could not be listed, are not gone.
        known: Images below the root that the table has, scored or failed for a reason that lies in them, of whatever
            model, and that the filter lets pass. 0 where no scope was given.
        planned: Rows in the plan files; with `rescore` unchanged ones too, with `limit` fewer.
        shards: How many shards they make, over all files.
        paths: The plan files, one for each run; none where nothing is planned.
        moved: Where no image is known below the root, but most are below another one; None otherwise.
    """

    found: int
    new: int
    changed: int
    unchanged: int
    rescored_for_model: int
    backfilled: int
    gone: int
    known: int
    planned: int
    shards: int
    paths: tuple[Path, ...]
    moved: Moved | None = None


def make_plan(
    listing_path: str | Path,
    committed: Sequence[str],
    filesystem: Any,
    key: PlanKey,
    *,
    shard_size: int,
    rows_per_group: int,
    limit: int | None,
    rescore: bool,
    retry_failed: bool,
    backfill: int | None = None,
    same_bytes: bool = False,
    scope: ArchiveScope | None = None,
    root: str | None = None,
    rows_a_run: int | None = None,
    out_folder: str | Path,
) -> Plan:
    """Find what is to be scored and write it down.

    New and changed images come first, in the listing's order; then, in the same order, those that only this version
    of the model has not scored, and with `rescore` those that it has.

    Args:
        listing_path: Local Parquet file with `image_uri`, `image_version` and carried columns.
        committed: The Parquet files of the table.
        filesystem: An fsspec file system through which they are read, or None for local ones.
        key: The model that is to score.
        shard_size: Images a shard.
        rows_per_group: Rows of a row group of the plan; a multiple of `shard_size`.
        limit: At most so many images, or None.
        rescore: Plan what the table settles, too.
        retry_failed: A failure that lies in the image does not settle it.
        backfill: At most so many images that another version of the model has settled; None: all.
        same_bytes: Give each changed image its newest row of this model, in the column `PREVIOUS`.
        scope: What the listing could have found; None: `known` and `gone` are not asked for.
        root: The root of the images, canonical and escaped, to be compared with others; None: `moved` is not asked for.
        rows_a_run: At most so many images in one file; None: all in one.
        out_folder: Local folder of the plan files, `plan-000.parquet` and so on: `shard` (int32, from 0, in order),
            the listing's columns and, with `same_bytes` where an image has one, `PREVIOUS` (a struct, see
            `Questions.write_previous`). None is written where nothing is planned.

    Returns:
        The counts.

    Raises:
        ValueError: If `rows_per_group` is no multiple of `shard_size`.
        UsageError: If the join needs more memory than it may take, or there would be more than a thousand runs.
        TryLater: If a file of the table cannot be read, or the disk of the temporary folder is full.
    """
    if rows_per_group % shard_size:
        raise ValueError(f"{rows_per_group} rows a group are no multiple of {shard_size} a shard")
    shape = PlanShape(shard_size, rows_per_group, rows_a_run)
    with explained(), open_questions(str(listing_path), committed, filesystem) as questions:
        kinds = _sorted_out(questions, key, retry_failed)
        known, gone = (0, 0) if scope is None else _known_and_gone(questions, kinds, scope)
        moved = None if root is None else _moved(questions, kinds, root)
        first, later = _chosen(kinds, backfill, rescore, limit)
        previous = questions.write_previous(kinds.changed & first, key) if same_bytes else None
        _refuse_too_many_runs(_count(first | later), rows_a_run)
        paths = write_plans(str(listing_path), (first, later), previous, Path(out_folder), shape)
    planned = _count(first | later)
    return Plan(
        found=_count(~kinds.repeated),
        new=_count(kinds.new),
        changed=_count(kinds.changed),
        unchanged=_count(kinds.settled),
        rescored_for_model=_count(kinds.rescored),
        backfilled=_count(kinds.rescored & later),
        gone=gone,
        known=known,
        planned=planned,
        shards=shape.shards_of(planned),
        paths=tuple(paths),
        moved=moved,
    )


@dataclass(frozen=True)
class _Kinds:
    """Rows of the listing by what the table says of them; each row is of one kind."""

    repeated: Bits
    settled: Bits
    changed: Bits
    rescored: Bits
    new: Bits


def _sorted_out(questions: Questions, key: PlanKey, retry_failed: bool) -> _Kinds:
    repeated = questions.repeated()
    settled = questions.settled(~repeated, key, retry_failed)
    pending = ~(repeated | settled)
    in_this_state = questions.there(pending, "image_uri, image_version")
    # Of what was only ever missed, or could not be read, no state is known that could have changed.
    changed = questions.answered(pending & ~in_this_state)
    # What this very key has settled is not pending any more, so that an answer by this name is another version's.
    rescored = questions.settled_by_name(in_this_state, key.model_name, retry_failed)
    return _Kinds(repeated, settled, changed, rescored, pending & ~(changed | rescored))


def _chosen(kinds: _Kinds, backfill: int | None, rescore: bool, limit: int | None) -> tuple[Bits, Bits]:
    """The rows that are planned first and those that come after them."""
    first, later = kinds.new | kinds.changed, _at_most(kinds.rescored, backfill)
    if rescore:
        later = later | kinds.settled
    first = _at_most(first, limit)
    return first, _at_most(later, None if limit is None else limit - _count(first))


def _known_and_gone(questions: Questions, kinds: _Kinds, scope: ArchiveScope) -> tuple[int, int]:
    """Count the table's images below the root; those that were listed passed the filter when they were."""
    answered = kinds.settled | kinds.rescored
    others = ~(kinds.repeated | answered)
    known = _count(answered) + _count(questions.answered(others))
    gone = 0
    inside = scope.root if scope.root.endswith("/") else scope.root + "/"
    for uris, young in questions.not_listed(inside, scope.young):
        passing = scope.wanted.keeps(pc.utf8_slice_codeunits(uris, len(inside)))
        known += passing.true_count
        lost = pc.and_not(passing, young)
        for folder in scope.unlistable:
            lost = pc.and_not(lost, pc.starts_with(uris, folder.rstrip("/") + "/"))
        gone += lost.true_count
    return known, gone


def _moved(questions: Questions, kinds: _Kinds, root: str) -> Moved | None:
    if not kinds.new.any() or (kinds.settled | kinds.changed | kinds.rescored).any():
        return None
    inside = root if root.endswith("/") else root + "/"
    old_root, matched, looked_at = questions.known_elsewhere(kinds.new, inside)
    return Moved(old_root, root, matched, looked_at) if 2 * matched > looked_at else None


def _refuse_too_many_runs(planned: int, rows_a_run: int | None) -> None:
    if rows_a_run is not None and planned > MOST_RUNS * rows_a_run:
        raise UsageError(
            f"--commit-every {rows_a_run:,} would make {-(-planned // rows_a_run):,} runs of {planned:,} images.",
            f"Commit at least {-(-planned // MOST_RUNS):,} at once.",
        )


def _at_most(bits: Bits, count: int | None) -> Bits:
    """The first `count` of the rows that are marked."""
    return bits if count is None else bits & (np.cumsum(bits) <= count)


def _count(bits: Bits) -> int:
    return int(np.count_nonzero(bits))
