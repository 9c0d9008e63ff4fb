"""Before a run: the model is opened, the archive listed and what is new planned. Nothing here starts Ray."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines.archive.found import Listing
from pipelines.archive.listing import ListingFilter, list_archive
from pipelines.archive.path_columns import PathColumns
from pipelines.archive.plan import ArchiveScope, Plan, PlanKey, make_plan
from pipelines.errors import LeaseLost, ModelRefused, NightreadError, TryLater, UsageError
from pipelines.images.preprocess import Preprocessing
from pipelines.models.bundle import Bundle
from pipelines.models.registry import resolve
from pipelines.predictions.commit import committed_files, table_version
from pipelines.predictions.schema import check_carried_names, prediction_schema
from pipelines.scoring.config import SHARDS_PER_GROUP, ScoreConfig
from pipelines.scoring.engines import check_rebuildable
from pipelines.scoring.report import ScoreProgress
from pipelines.storage import files, paths
from pipelines.storage.listing import check_root, root_uri
from pipelines.storage.scratch import Scratch
from pipelines.storage.settings import fsspec_filesystem
from pipelines.storage.throttle import Throttle

Tell = Callable[[ScoreProgress], None]


@dataclass(frozen=True)
class Night:
    """One command with its model opened.

    Attributes:
        config: What was asked.
        bundle: The model, every hash verified.
        results: Canonical URI of the results.
        root: Canonical place below which the archive's images lie.
        fingerprint: What two commands share that may continue each other's run.
        tell: Where progress goes.
    """

    config: ScoreConfig
    bundle: Bundle
    results: str
    root: str
    fingerprint: str
    tell: Tell


@dataclass(frozen=True)
class Planned:
    """What is to be scored.

    Attributes:
        listing: The archive's listing; its file is gone when the block of `planned_work` ends.
        plan: Counts of the plan, and its files, which are gone then too.
        table_version: The table's version before it was asked; None where there was no table.
        timings: `listing_seconds` and `planning_seconds`.
    """

    listing: Listing
    plan: Plan
    table_version: int | None
    timings: Mapping[str, float] = field(default_factory=dict)


def open_night(config: ScoreConfig, tell: Tell) -> Night:
    """Open the model and check that this installation prepares pixels as the model was trained on them.

    Raises:
        ModelRefused: If the model is missing or altered, or was made for other pixels.
        UsageError: If the precision is not in the bundle.
    """
    bundle = resolve(config.model)
    bundle.scorer(config.precision)
    if config.engine == "split":
        check_rebuildable(bundle, config.precision)
    if config.path_columns is not None:
        columns = PathColumns.parse(config.path_columns)
        check_carried_names(columns.schema, columns.names)
    prediction_schema(bundle.classes, None)  # class names that no table can hold are found before any listing
    here = Preprocessing(bundle.input_size).id
    if here != bundle.preprocessing_id:
        raise ModelRefused(
            f"The model expects images prepared as {bundle.preprocessing_id[:12]}, and this version of nightread "
            f"prepares them as {here[:12]}.",
            "Use the version that the model was trained with, or train it again.",
        )
    fingerprint = config.fingerprint(bundle.model_id, bundle.preprocessing_id)
    return Night(config, bundle, paths.canonical(config.results), _root_of(config), fingerprint, tell)


def _root_of(config: ScoreConfig) -> str:
    place = paths.canonical(config.archive)
    if not config.is_manifest:
        return place
    return paths.parent(place) if config.root is None else paths.canonical(config.root)


def check_archive(config: ScoreConfig) -> None:
    """Fail early where the archive does not exist, before a lease is taken or an interrupted run is continued.

    Raises:
        UsageError: If it does not exist.
        TryLater: If its storage does not answer.
    """
    if not config.is_manifest:
        check_root(config.archive)


def list_images(night: Night, folder: Path, kept_in: str | None) -> Listing:
    """List the archive into a Parquet file in `folder`.

    Args:
        night: The command.
        folder: A local folder.
        kept_in: Where a bucket's listing is kept while it runs, so that the next command goes on with it; None:
            nowhere.

    Raises:
        UsageError: If the archive does not exist, or its manifest is unusable.
        TryLater: If storage does not answer.
    """
    config, path = night.config, folder / "listing.parquet"

    def count(found: int) -> None:
        night.tell(ScoreProgress("listing", found))

    throttle = Throttle(config.requests_per_second)
    if config.is_manifest:
        from pipelines.archive.manifest import read_manifest
        from pipelines.archive.prefix_map import parse_prefix_map

        prefix_map = parse_prefix_map(config.map_prefix)
        listing = read_manifest(
            config.archive, config.columns, config.root, path, count, prefix_map=prefix_map, throttle=throttle
        )
    else:
        listing = list_archive(
            config.archive,
            ListingFilter(config.include, config.exclude),
            path,
            count,
            min_age_seconds=config.min_age_seconds,
            throttle=throttle,
            kept_in=kept_in,
        )
    return listing


def refuse_nothing(listing: Listing, config: ScoreConfig) -> None:
    """An archive without one image is a share that is not mounted, or kinds that are not read; or it is still copied.

    Raises:
        UsageError: If there are files, all of kinds that are not read; names the kinds.
        TryLater: If there is not one file and `--allow-empty` was not said.
    """
    if listing.found or config.allow_empty or listing.left_out.get("too_young"):
        return
    if listing.left_out.get("not_included"):
        raise UsageError(
            f"Not one image matches --include ({listing.left_out['not_included']:,} do not).",
            "Check its patterns: they are compared with paths below the archive.",
        )
    if listing.suffixes_left_out:
        kinds = sorted(listing.suffixes_left_out.items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{suffix or 'no suffix'} ({count})" for suffix, count in kinds[:8])
        raise UsageError(
            f"The archive holds no image of a kind that is read; it holds {named}.",
            "Kinds that are read: jpg, jpeg, png, bmp, gif, tif, tiff, webp.",
        )
    if any(listing.left_out.values()):
        named = ", ".join(f"{reason} ({count})" for reason, count in sorted(listing.left_out.items()) if count)
        raise UsageError(
            f"Every file of the archive was left out: {named}.", "Check --include and --exclude, or the folder's name."
        )
    raise TryLater(
        "Not one file was found in the archive.",
        "If it is a share, check that it is mounted; if it may be empty, say --allow-empty.",
    )


@contextlib.contextmanager
def planned_work(night: Night, backfill: int | None, kept_in: str | None) -> Iterator[Planned]:
    """List and plan in a temporary folder that lasts as long as the `with` block.

    Args:
        night: The command.
        backfill: Images at most that another version of this model has scored; None: all.
        kept_in: As `list_images`.

    Raises:
        UsageError, TryLater: As `list_images`, `refuse_nothing` and `make_plan` do.
    """
    with Scratch() as folder:
        began = time.monotonic()
        with files.explaining(str(folder)):
            listing = list_images(night, folder, kept_in)
        try:
            refuse_nothing(listing, night.config)
            listing = _with_columns(night, listing, folder)
            version = table_version(night.results)
            listed = time.monotonic()
            plan = _plan(night, listing, backfill, folder)
            timings = {"listing_seconds": listed - began, "planning_seconds": time.monotonic() - listed}
            yield Planned(listing, plan, version, {name: round(spent, 3) for name, spent in timings.items()})
        except LeaseLost:
            raise
        except NightreadError:
            # It was whole: who has mended the archive meanwhile must not get the old answer.
            if kept_in is not None:
                files.delete_tree(kept_in)
            raise


def _with_columns(night: Night, listing: Listing, folder: Path) -> Listing:
    if night.config.path_columns is not None and listing.found:
        columns = PathColumns.parse(night.config.path_columns)
        listing = columns.fill(listing, night.root, folder / "with_columns.parquet")
    check_carried_names(listing.carried)
    return listing


def _plan(night: Night, listing: Listing, backfill: int | None, folder: Path) -> Plan:
    config, bundle = night.config, night.bundle
    night.tell(ScoreProgress("planning", 0, listing.found))
    wanted = ListingFilter(config.include, config.exclude)
    scope = ArchiveScope(root_uri(night.root), wanted, tuple(listing.unlistable), listing.young)
    plan = make_plan(
        listing.path,
        committed_files(night.results),
        fsspec_filesystem(night.results) if paths.is_bucket(night.results) else None,
        PlanKey(bundle.model_id, bundle.preprocessing_id, config.precision, bundle.name),
        shard_size=config.images_a_shard,
        rows_per_group=config.images_a_shard * SHARDS_PER_GROUP,
        limit=config.limit,
        rescore=config.rescore,
        retry_failed=config.retry_failed,
        backfill=backfill,
        same_bytes=config.same_bytes,
        scope=scope,
        root=root_uri(night.root),
        rows_a_run=config.commit_every,
        out_folder=folder,
    )
    # What a manifest does not name may be there all the same.
    return replace(plan, gone=0) if config.is_manifest else plan
