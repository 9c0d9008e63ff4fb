"""Labelled images: a folder per class, `train|val|test` folders of them, or a manifest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.archive.globs import glob_expression
from pipelines.archive.listing import Listing, ListingFilter, list_archive
from pipelines.archive.manifest import read_manifest
from pipelines.archive.manifest_rows import cell_text
from pipelines.errors import UsageError
from pipelines.predictions.schema import check_class_columns
from pipelines.storage import paths
from pipelines.storage.listing import root_uri
from pipelines.storage.scratch import Scratch
from pipelines.training.grouping import find_groups
from pipelines.training.split import part_of_name

LEAST_IMAGES = 10
MANIFEST_SUFFIXES = (".csv", ".parquet")

_KEPT = "kept "

SCHEMA = pa.schema(
    [
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("image_version", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("person", pa.string()),
        pa.field("part", pa.string()),
    ]
)


@dataclass(frozen=True)
class DataConfig:
    """Which labelled images; the data options of `train`.

    Attributes:
        data: A folder or bucket prefix with a folder per class, or a manifest.
        columns: A manifest's columns: ours (`uri`, `label`, `patient_id`, `split`) to theirs.
        class_names: Label in the data to class name; empty: labels are names.
        root: Where a manifest's relative URIs start.
        exclude: Globs of images that are left out.
        group_by: Pattern searched in an image's path; what it finds (its first group, where it has one) must stay in
            one part of the split, each patient's images in one group. None: `patient_id`, where there is one.
    """

    data: str
    columns: Mapping[str, str] = field(default_factory=dict)
    class_names: Mapping[str, str] = field(default_factory=dict)
    root: str | None = None
    exclude: tuple[str, ...] = ()
    group_by: str | None = None

    def __post_init__(self) -> None:
        """Refuse options that do not belong to this kind of data.

        Raises:
            UsageError: Naming the option.
        """
        if not self.is_manifest:
            for option, value in (("--columns", self.columns), ("--root", self.root)):
                if value:
                    raise UsageError(f"{option} belongs to a manifest, and {self.data} is a folder.", "Leave it out.")
        unknown = sorted(set(self.columns) - {"uri", "label", "patient_id", "split", "image_version"})
        if unknown:
            raise UsageError(
                f"--columns does not know {unknown[0]!r}.", "It knows uri, label, patient_id, split and image_version."
            )
        if self.group_by is not None:
            try:
                re.compile(self.group_by)
            except re.error as error:
                raise UsageError(f"--group-by {self.group_by!r} is no pattern: {error}.", "Correct it.") from error

    @property
    def is_manifest(self) -> bool:
        """Whether the data are a manifest rather than folders."""
        return self.data.lower().endswith(MANIFEST_SUFFIXES)


@dataclass(frozen=True)
class LabelledImages:
    """What was found.

    Attributes:
        table: Columns of `SCHEMA`: `person` is null where nothing groups an image, `part` where no split is given.
        classes: Class names, sorted.
        left_out: Files that are no training images, by reason.
        unlistable: Sub-folders that could not be listed.
        repeated: Rows of the manifest that said the same again and were dropped.
        repeated_rows: The first of them, as numbers of the manifest's rows.
        columns: Further columns of the manifest that were asked for, a text or None for each image.
    """

    table: pa.Table
    classes: tuple[str, ...]
    left_out: Mapping[str, int]
    unlistable: tuple[str, ...] = ()
    repeated: int = 0
    repeated_rows: tuple[int, ...] = ()
    columns: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)

    def label_numbers(self) -> list[int]:
        """Number of each image's class in `classes`."""
        number = {name: index for index, name in enumerate(self.classes)}
        return [number[label] for label in self.table["label"].to_pylist()]

    @property
    def has_split(self) -> bool:
        """Whether the data say the part of every image."""
        return bool(self.table.num_rows > 0 and self.table["part"].null_count == 0)


def read_labelled(config: DataConfig) -> LabelledImages:
    """Find the labelled images and check their labels.

    Raises:
        UsageError: If labels are missing or empty, there is one class only, a class has fewer than `LEAST_IMAGES`
            images, an image has two classes, a path does not say its group, or class names collide as columns; each
            with its counts.
        TryLater: If storage does not answer.
    """
    images = _read(config, every_label_named=True)
    check_counts(images.table["label"].to_pylist(), images.classes)
    try:
        check_class_columns(images.classes)
    except UsageError as error:
        raise UsageError(error.message, "Give the classes other names: --class-names LABEL=NAME,…") from error
    return images


def read_for_model(config: DataConfig, classes: Sequence[str], by: Sequence[str] = ()) -> LabelledImages:
    """Find the images that a finished model is evaluated on; any number of each class, of one perhaps none.

    Args:
        config: Which; `class_names` may name labels that are not there, and a label without a name keeps its own.
        classes: The model's, in its order.
        by: Further columns of a manifest to keep.

    Returns:
        As `read_labelled`, but `classes` are the model's.

    Raises:
        UsageError: As `read_labelled`, but for the number of images; and for a label that is no class of the model,
            one class only, or columns that are not there.
        TryLater: If storage does not answer.
    """
    if by and not config.is_manifest:
        raise UsageError(f"{config.data} is a folder, which has no column {by[0]!r}.", "Give a manifest, or no --by.")
    images = _read(config, by=by, every_label_named=False)
    counts = Counter(images.table["label"].to_pylist())
    unknown = sorted(set(counts) - set(classes))
    if unknown:
        raise UsageError(
            f"The model knows no class {unknown[0]!r}, which {counts[unknown[0]]} images are labelled with; its "
            f"classes are {', '.join(classes)}.",
            "Name the labels as the model does: --class-names LABEL=CLASS,…, or leave images out with --exclude.",
        )
    if len(counts) < 2:
        raise UsageError(
            f"There is only one class ({images.classes[0]}: {images.table.num_rows}) in {config.data}.",
            "Figures need images of at least two: name the folder above the classes' folders, or the right manifest.",
        )
    return replace(images, classes=tuple(classes))


def _read(config: DataConfig, every_label_named: bool, by: Sequence[str] = ()) -> LabelledImages:
    with Scratch() as folder:
        found, listing = _from_manifest(config, folder, by) if config.is_manifest else _from_folders(config, folder)
    if not found.num_rows:
        raise _nothing_found(config, listing)
    _refuse_parts_missing(found)
    # By name: nothing that follows may depend on the order in which storage lists.
    table = _named(found, config.class_names, every_label_named).sort_by("image_uri")
    if config.group_by is not None:
        table = _grouped(table, config)
    return LabelledImages(
        table.select(SCHEMA.names).cast(SCHEMA),
        tuple(sorted(set(table["label"].to_pylist()))),
        dict(listing.left_out),
        tuple(listing.unlistable),
        listing.repeated,
        tuple(listing.repeated_rows),
        {name: tuple(table[_KEPT + name].to_pylist()) for name in by},
    )


def _nothing_found(config: DataConfig, listing: Listing) -> UsageError:
    """The error for data without one image: whether there are none, or they were all left out."""
    if config.exclude and (listing.left_out.get("excluded") or (config.is_manifest and listing.found)):
        globs = ", ".join(repr(glob) for glob in config.exclude)
        return UsageError(
            f"All images of {config.data} are left out by {globs}.",
            "Narrow --exclude, or the recipe's: --set exclude=",
        )
    return UsageError(f"There are no images in {config.data}.", "Name a folder per class, or a manifest.")


def check_counts(labels: Sequence[str], classes: Sequence[str], after: str = "") -> None:
    """Refuse what no classifier can be trained on.

    Args:
        labels: Class of each image.
        classes: All classes.
        after: When it is said, as in ` after 3 unreadable images were left out`.

    Raises:
        UsageError: With the count of every class.
    """
    counts = Counter(labels)
    listing = ", ".join(f"{name}: {counts[name]}" for name in classes)
    if len(classes) < 2:
        raise UsageError(
            f"There is only one class ({listing}).",
            "A classifier needs at least two: name the folder above the classes' folders, or the manifest's label with "
            "--columns label=NAME.",
        )
    few = [name for name in classes if counts[name] < LEAST_IMAGES]
    if few:
        raise UsageError(
            f"The class {few[0]!r} has fewer than {LEAST_IMAGES} images{after} ({listing}).",
            "Add images, or leave the class out with --exclude.",
        )


def _from_folders(config: DataConfig, folder: Path) -> tuple[pa.Table, Listing]:
    """List a folder per class; a first level of train|val|test is taken as the split."""
    listing = list_archive(config.data, ListingFilter((), config.exclude), str(folder / "listing.parquet"))
    rows = pq.read_table(listing.path, columns=["image_uri", "image_version"])
    root = root_uri(config.data)
    steps = [paths.relative(uri, root).split("/") for uri in rows["image_uri"].to_pylist()]
    tops = {step[0] for step in steps if len(step) > 1}
    split = bool(tops) and all(part_of_name(top) for top in tops)
    if not split:
        _refuse_folders_beside_train(tops)
    depth = 1 if split else 0
    stray = ["/".join(step) for step in steps if len(step) < depth + 2]
    if stray:
        raise UsageError(
            f"{len(stray)} images lie outside of any class's folder, {stray[0]} among them.",
            "Put each into the folder of its class, or leave them out with --exclude.",
        )
    labels = [_label_of(step[depth]) for step in steps]
    parts = [part_of_name(step[0]) if split else None for step in steps]
    return _with_columns(rows, labels, [None] * len(steps), parts), listing


def _refuse_folders_beside_train(tops: Collection[str]) -> None:
    """Refuse folders of a split beside others: `train` and `test` would silently become classes."""
    others = sorted(top for top in tops if part_of_name(top) is None)
    if any(part_of_name(top) == "train" for top in tops):
        raise UsageError(
            f"Beside folders of a split there is {others[0]!r}, which is none of train, val and test.",
            f"Leave it out, with --exclude '{others[0]}/', or name the folder above the classes' folders.",
        )


def _label_of(step: str) -> str:
    """The label that a folder's escaped name means: the name itself, or as it is where that is no valid text."""
    name = paths.unescape_name(step)
    try:
        name.encode()
    except UnicodeEncodeError:
        return step
    return name


def _from_manifest(config: DataConfig, folder: Path, by: Sequence[str]) -> tuple[pa.Table, Listing]:
    """Read a manifest; `label`, `patient_id`, `split` and what is asked for are carried through by its reader."""
    out = str(folder / "manifest.parquet")
    listing = read_manifest(config.data, config.columns, config.root, out)
    rows = pq.read_table(listing.path)

    def carried(ours: str, needed: bool = False) -> list[str | None]:
        theirs = next((name for name in (ours, config.columns.get(ours, ours)) if name in rows.column_names), None)
        if theirs is None:
            if ours in config.columns or needed:
                columns = [name for name in rows.column_names if name not in ("image_uri", "image_version")]
                raise UsageError(
                    f"The manifest {config.data} has no column {config.columns.get(ours, ours)!r} for {ours}.",
                    f"Its further columns are {', '.join(columns) or 'none'}; say --columns {ours}=NAME.",
                )
            return [None] * rows.num_rows
        return [cell_text(value) for value in rows[theirs].to_pylist()]

    table = _with_columns(rows, carried("label", True), carried("patient_id"), _parts(carried("split")))
    for name in by:
        table = table.append_column(_KEPT + name, pa.array(carried(name, True), pa.string()))
    if config.exclude:
        table = _without(table, config)
    _refuse_empty_labels(table)
    return table, listing


def _refuse_empty_labels(table: pa.Table) -> None:
    empty = table.filter(pc.is_null(table["label"]))["image_uri"]
    if len(empty):
        raise UsageError(
            f"{len(empty)} of {table.num_rows} images have an empty label, {empty[0].as_py()} among them.",
            "Label them, or leave them out with --exclude.",
        )


def _with_columns(
    rows: pa.Table, labels: Sequence[str | None], people: Sequence[str | None], parts: Sequence[str | None]
) -> pa.Table:
    return pa.table(
        {
            "image_uri": rows["image_uri"],
            "image_version": rows["image_version"],
            "label": pa.array(labels, pa.string()),
            "person": pa.array(people, pa.string()),
            "part": pa.array(parts, pa.string()),
        }
    )


def _parts(values: Sequence[str | None]) -> list[str | None]:
    parts = [None if value is None else part_of_name(value) for value in values]
    unknown = sorted({value for value, part in zip(values, parts, strict=True) if value is not None and part is None})
    if unknown:
        raise UsageError(f"The split {unknown[0]!r} is unknown.", "Use train, val and test.")
    return parts


def _refuse_parts_missing(table: pa.Table) -> None:
    missing = table["part"].null_count
    if 0 < missing < table.num_rows:
        raise UsageError(
            f"{missing} of {table.num_rows} images have no split.", "Say the split of every image, or of none."
        )


def _without(table: pa.Table, config: DataConfig) -> pa.Table:
    """Leave out a manifest's images by the patterns that leave out files of a folder."""
    below = pa.array(_below(table, config), pa.string())
    for glob in config.exclude:
        keep = pc.invert(pc.match_substring_regex(below, glob_expression(glob)))
        table, below = table.filter(keep), below.filter(keep)
    return table


def _below(table: pa.Table, config: DataConfig) -> list[str]:
    """Path of each image below the data's root."""
    root = root_uri(config.root or config.data)
    if config.is_manifest and not config.root:
        root = paths.parent(root)
    uris = table["image_uri"].to_pylist()
    return [paths.relative(uri, root) if paths.is_inside(uri, root) else uri for uri in uris]


def _named(table: pa.Table, names: Mapping[str, str], every_label: bool) -> pa.Table:
    """Put class names in place of labels; `every_label` must have one, and no name may stand for a label in vain."""
    labels = table["label"].to_pylist()
    if not names:
        return table
    there = set(labels)
    if every_label and there != set(names):
        wrong = sorted(there ^ set(names))[0]
        where = "the data have no such label" if wrong in names else "it has no name"
        raise UsageError(
            f"--class-names and the labels do not fit: {wrong!r}, {where}.",
            f"The labels are {', '.join(sorted(there)[:20])}.",
        )
    column = table.column_names.index("label")
    return table.set_column(column, "label", pa.array([names.get(label, label) for label in labels], pa.string()))


def _grouped(table: pa.Table, config: DataConfig) -> pa.Table:
    """Group by what the pattern finds in each path below the data's folder."""
    groups = find_groups(config.group_by or "", _below(table, config), table["person"].to_pylist(), config.data)
    column = table.column_names.index("person")
    return table.set_column(column, "person", pa.array(groups, pa.string()))
