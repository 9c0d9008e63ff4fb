"""The row: names, types and meanings of the table's columns, in one place.

Everything else that lists columns (the Delta schema, the views, docs/results.md) is made from here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from pipelines.errors import IMAGE_ERRORS, UsageError

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")

_CLASS_PREFIX: Final = "p_"
_KIND: Final = b"nightread"
_DESCRIPTION: Final = b"description"


@dataclass(frozen=True)
class Column:
    """One column of ours.

    Attributes:
        name: As it stands in the table.
        type: Plain Arrow type.
        meaning: One sentence for the Parquet field's metadata and for docs/results.md.
    """

    name: str
    type: pa.DataType
    meaning: str


_BEFORE_CLASSES: Final = (
    Column("run_id", pa.string(), "The run that wrote the row; sorts by time."),
    Column(
        "image_uri",
        pa.string(),
        "The image: an absolute local path, or s3://bucket/key unescaped; in a name a backslash is written twice and a "
        "byte that is not UTF-8 as \\xNN.",
    ),
    Column("frame", pa.int32(), "Which picture of the file, from 0; 0 for a file with a single picture."),
    Column("frames", pa.int32(), "How many pictures the file holds; only the first is scored so far."),
    Column(
        "image_version",
        pa.string(),
        "What tells one state of the file from another: the ETag in a bucket, size and modification time (ns) locally; "
        "empty where the file was not there.",
    ),
    Column("content_sha256", pa.string(), "SHA-256 of the file's bytes, in hexadecimal."),
    Column("width", pa.int32(), "Width of the picture in pixels, after turning it as its EXIF orientation says."),
    Column("height", pa.int32(), "Height of the picture in pixels, after turning it as its EXIF orientation says."),
    Column("mean_intensity", pa.float32(), "Mean of the prepared pixels, from 0 (black) to 1 (white)."),
    Column("status", pa.string(), "`scored`, or `failed`: a failed image is a row, never a gap."),
    Column("error_code", pa.string(), "Why the image failed, one of the codes below; null for a scored image."),
    Column("error_message", pa.string(), "One sentence about the failure; null for a scored image."),
    Column(
        "predicted_class",
        pa.string(),
        "The class with the highest calibrated probability (of equal ones the first in the model's order); never the "
        "threshold's choice, so it may differ from decision.",
    ),
    Column("score", pa.float32(), "The calibrated probability of predicted_class, from 0 to 1."),
)

_AFTER_CLASSES: Final = (
    Column("p_positive", pa.float32(), "The sum of the calibrated probabilities of the model's positive classes."),
    Column(
        "decision",
        pa.string(),
        "p_positive against the model's frozen limits: `negative` below the refer band, `positive` from its upper end "
        "on, `refer` within, where a person decides (without a band: `positive` from the threshold on); null for a "
        "model without fitted thresholds. An image may be benign at 0.72 and its decision positive, because the limits "
        "are set for few positive images to be missed and mostly lie far below 0.5, while the class is the likelier "
        "one.",
    ),
    Column(
        "in_training_set",
        pa.bool_(),
        "Whether the model was trained or validated on a file of the same bytes; null for a model that does not know "
        "its training images (an imported one).",
    ),
    Column("model_name", pa.string(), "The model's name in its registry."),
    Column("model_id", pa.string(), "The hash of the model's bundle.json: the exact model."),
    Column("preprocessing_id", pa.string(), "The hash of the way from bytes to pixels."),
    Column("precision", pa.string(), "The arithmetic of the model: `float32` or `int8`."),
    Column("decoder", pa.string(), "The library that decoded the image."),
    Column("scored_at", TIMESTAMP, "When the row was made (UTC)."),
    Column("scored_date", pa.date32(), "The UTC day on which the run began; the table is partitioned by it."),
)

_CLASS_MEANING: Final = (
    "The calibrated probability of the class {name}, from 0 to 1; null where the model does not know it."
)
_CARRIED_MEANING: Final = "Carried over from the manifest."

OUR_COLUMNS: Final[tuple[str, ...]] = tuple(column.name for column in (*_BEFORE_CLASSES, *_AFTER_CLASSES))
PARTITION_COLUMN: Final = "scored_date"

# What a question calls the file of a row, before it becomes the row's day.
FILE_COLUMN: Final = "nightread file"
# `uri` is the manifest's name for image_uri, `shard` and the next are the plan's own columns: a carried one would
# collide with them, as the others would with names that planning and questions give to rows.
_RESERVED: Final = frozenset(OUR_COLUMNS) | {
    "uri", "shard", "nightread previous", "nightread row", "file_row_number", FILE_COLUMN
}  # fmt: skip


def class_column(name: str) -> str:
    """The column of a class: lower case, `_` for each run of what is neither letter nor digit.

    Args:
        name: A class name such as `Malignant` or `Grade II`.

    Returns:
        A column name such as `p_malignant` or `p_grade_ii`.
    """
    return _CLASS_PREFIX + re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def check_class_columns(classes: Sequence[str]) -> None:
    """Refuse class names that cannot each have a column of their own.

    Args:
        classes: The model's classes in order.

    Raises:
        UsageError: If two collide, one is left without a letter or digit, one takes a column of ours, or one holds a
            line break or another control character.
    """
    seen: dict[str, str] = {}
    for name in classes:
        column = class_column(name)
        if any(unicodedata.category(sign) == "Cc" for sign in name):
            raise UsageError(f"The class name {name!r} holds a control character.", "Rename the class.")
        if column == _CLASS_PREFIX:
            raise UsageError(
                f"The class name {name!r} has no letter and no digit, so it cannot name a column.", "Rename the class."
            )
        if column in OUR_COLUMNS:
            raise UsageError(
                f"The class {name!r} would need the column {column}, which has another meaning.", "Rename the class."
            )
        if column in seen:
            raise UsageError(
                f"The classes {seen[column]!r} and {name!r} would share the column {column}.", "Rename one of them."
            )
        seen[column] = name


def prediction_schema(classes: Sequence[str], carried: pa.Schema | None) -> pa.Schema:
    """The schema of a run's rows.

    Args:
        classes: The model's classes in order; one float32 column `p_<class>` each.
        carried: The manifest's own columns, of plain types, or None.

    Returns:
        Our columns, those of the classes, then the carried ones; each field with the metadata `description`.

    Raises:
        UsageError: If class names collide or a carried name is ours.
    """
    check_class_columns(classes)
    fields = [_field(column, "own") for column in _BEFORE_CLASSES]
    for name in classes:
        column = Column(class_column(name), pa.float32(), _CLASS_MEANING.format(name=name))
        fields.append(_field(column, "class"))
    fields += [_field(column, "own") for column in _AFTER_CLASSES]
    if carried is not None:
        check_carried_names(carried)
        fields += [_field(Column(field.name, field.type, _CARRIED_MEANING), "carried") for field in carried]
    return pa.schema(fields)


def check_carried_names(carried: pa.Schema | None, from_path: Collection[str] = ()) -> None:
    """Refuse further columns whose names the table needs for itself; case does not tell two columns apart.

    Args:
        carried: The further columns of a manifest; None where there are none.
        from_path: Those of them that are groups of `--path-columns`.

    Raises:
        UsageError: For a name of ours, one that begins with `p_`, or two that differ in case only.
    """
    seen: dict[str, str] = {}
    for name in carried.names if carried is not None else ():
        low = name.lower()
        said = f"The manifest's column {name!r}"
        cure = f"Carry it under another name: --columns OTHER_NAME={name}."
        if name in from_path:
            said, cure = f"The group {name!r} of --path-columns", "Give the group another name in the expression."
        if not name or any(ord(letter) < 32 for letter in name):
            raise UsageError(
                f"The manifest has a column with the name {name!r}, which no table can hold.", "Rename it."
            )
        if low in _RESERVED:
            raise UsageError(f"{said} has a name that the table uses itself.", cure)
        if low.startswith(_CLASS_PREFIX):
            raise UsageError(f"{said} begins with p_, which the table keeps for probabilities of classes.", cure)
        if low in seen:
            raise UsageError(
                f"The manifest's columns {seen[low]!r} and {name!r} differ in upper and lower case only.", cure
            )
        seen[low] = name


def column_order(schema: pa.Schema) -> list[str]:
    """The columns of a table in the order in which people read them.

    A table grows at its end when a later model brings new classes; this puts them back beside the others.

    Args:
        schema: Schema of the table, its fields with the metadata that `prediction_schema` gave them.

    Returns:
        Ours up to `score`, those of classes, the rest of ours, carried ones.
    """
    names = schema.names
    classes = [field.name for field in schema if _kind(field) == "class"]
    first = [column.name for column in _BEFORE_CLASSES if column.name in names]
    last = [column.name for column in _AFTER_CLASSES if column.name in names]
    taken = {*classes, *first, *last}
    return [*first, *classes, *last, *(name for name in names if name not in taken)]


def column_dictionary() -> list[tuple[str, str, str]]:
    """Name, type and meaning of every column, as docs/results.md shows them.

    Returns:
        One triple a column, in the table's order; `p_<class>` and the carried columns stand for as many as there are.
    """

    def row(column: Column) -> tuple[str, str, str]:
        return column.name, _type_name(column.type), column.meaning

    return [
        *(row(column) for column in _BEFORE_CLASSES),
        ("p_<class>", "float32", _CLASS_MEANING.format(name="`<class>`")),
        *(row(column) for column in _AFTER_CLASSES),
        ("(others)", "as in the manifest", _CARRIED_MEANING),
    ]


def dictionary_markdown() -> str:
    """The section of docs/results.md that is made from this file: columns, then the codes of failures."""
    lines = ["| Column | Type | Meaning |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in column_dictionary()]
    lines += ["", "| `error_code` | Meaning | Scored again next time |", "| --- | --- | --- |"]
    for code, kind in IMAGE_ERRORS.items():
        again = "only if the file changes, or with `--retry-failed`" if kind.lies_in_image else "yes"
        lines.append(f"| `{code}` | {kind.meaning} | {again} |")
    return "\n".join(lines) + "\n"


def _type_name(kind: pa.DataType) -> str:
    if kind == TIMESTAMP:
        return "timestamp (µs, UTC)"
    names = {pa.date32(): "date", pa.float32(): "float32", pa.bool_(): "boolean"}
    return names.get(kind, f"{kind!s}")


def _field(column: Column, kind: str) -> pa.Field:
    return pa.field(column.name, column.type, metadata={_DESCRIPTION: column.meaning.encode(), _KIND: kind.encode()})


def _kind(field: pa.Field) -> str:
    metadata: dict[bytes, bytes] = field.metadata or {}
    return metadata.get(_KIND, b"").decode()
