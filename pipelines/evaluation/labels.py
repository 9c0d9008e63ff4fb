"""A table of labels that came later, by whatever names the images there."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.archive.manifest_rows import ManifestRows, cell_text, open_manifest
from pipelines.archive.manifest_uris import UriResolver
from pipelines.errors import UsageError
from pipelines.storage import files, paths
from pipelines.storage.scratch import Scratch

SUFFIXES = (".csv", ".parquet")
URI = "uri"
CONTENT = "content_sha256"
_DELIMITERS = ",;\t"
_OTHER_URI = "nightread other uri"


@dataclass(frozen=True)
class LabelsConfig:
    """Where labels are and how they name images.

    Attributes:
        labels: A `.csv` or `.parquet` file, local or in a bucket.
        on: What both sides name an image by: `uri`, `content_sha256`, or a column that was carried into the results.
        columns: Our names to those of the file: `label`, `patient_id`, `uri`, or the column of `on`.
        class_names: Label in the file to class name; a label without one is a class name.
        root: Where relative URIs start; None: the file's folder.
    """

    labels: str
    on: str = URI
    columns: Mapping[str, str] = field(default_factory=dict)
    class_names: Mapping[str, str] = field(default_factory=dict)
    root: str | None = None

    def __post_init__(self) -> None:
        """Refuse what can only fail later.

        Raises:
            UsageError: Naming the option and the value.
        """
        if not self.labels.lower().endswith(SUFFIXES):
            raise UsageError(f"--labels {self.labels} is no table.", "Name a .csv or a .parquet file.")
        if not self.on.strip():
            raise UsageError("--on is empty.", "Say --on uri, --on content_sha256 or --on COLUMN.")
        unknown = sorted(set(self.columns) - {URI, "label", "patient_id", self.on})
        if unknown:
            raise UsageError(
                f"--columns does not know {unknown[0]!r}.", f"It knows label, patient_id and {self.on} of the labels."
            )
        if self.root is not None and self.on != URI:
            raise UsageError(f"--root belongs to --on uri, and it is --on {self.on}.", "Leave it out.")


@dataclass(frozen=True)
class Labels:
    """What is known of images by their key; every key once.

    Attributes:
        keys: Canonical URIs, hashes in lower case, or what the column holds, as text.
        labels: Class name of each.
        patients: Patient of each, None where unknown; None where the file has no such column.
        columns: Further columns by name.
        unlabelled: Rows of the file whose label is still empty.
    """

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    patients: tuple[str | None, ...] | None
    columns: Mapping[str, tuple[str | None, ...]]
    unlabelled: int


def read_labels(config: LabelsConfig, by: Sequence[str] = ()) -> Labels:
    """Read labels; a row that says the same again is passed over.

    Args:
        config: Which.
        by: Further columns to keep, those of them that the file has.

    Raises:
        UsageError: If the file is unusable, a column is missing, or one key has two labels, patients or values
            of a column to keep.
        TryLater: If storage does not answer.
    """
    place = paths.canonical(config.labels)
    with Scratch() as folder:
        rows = _opened(place, folder, config)
        names = rows.schema.names
        if "label" not in names:
            raise UsageError(
                f"The labels {config.labels} have no column 'label'; their columns are {', '.join(names)}.",
                "Say which one it is: --columns label=NAME.",
            )
        kept = [name for name in by if name in names]
        said = [name for name in dict.fromkeys(["label", "patient_id", *kept]) if name in names]
        found: dict[str, dict[str, str | None]] = {}
        first: dict[str, int] = {}
        unlabelled = 0
        for number, key, row in _rows(rows, place, config):
            label = row["label"]
            if label is None:
                unlabelled += 1
            elif key not in found:
                found[key], first[key] = row, number
            else:
                _refuse_two_values(config, rows.unit, said, (first[key], found[key]), (number, row))
        patients = tuple(row["patient_id"] for row in found.values()) if "patient_id" in names else None
    return Labels(
        keys=tuple(found),
        labels=tuple(_named(row["label"], config.class_names) for row in found.values()),
        patients=patients,
        columns={name: tuple(row[name] for row in found.values()) for name in kept},
        unlabelled=unlabelled,
    )


def _refuse_two_values(
    config: LabelsConfig,
    unit: str,
    columns: Sequence[str],
    one: tuple[int, Mapping[str, str | None]],
    other: tuple[int, Mapping[str, str | None]],
) -> None:
    """Refuse two rows of one key that differ; values of other columns than the label may name a patient."""
    differing = next((name for name in columns if one[1][name] != other[1][name]), None)
    if differing is None:
        return
    labels = f"labels, {one[1]['label']!r} and {other[1]['label']!r}"
    raise UsageError(
        f"The labels {config.labels} name one image in {unit}s {one[0]} and {other[0]} with two "
        f"{labels if differing == 'label' else f'values of {differing!r}'}.",
        "Keep the right one.",
    )


def _opened(place: str, folder: Path, config: LabelsConfig) -> ManifestRows:
    """The file's rows, the key under the name `uri`."""
    path = place
    if not paths.is_local(place):
        path = str(folder / f"labels{os.path.splitext(place)[1].lower()}")
    try:
        if path != place:
            files.fetch(place, path)
        key = config.columns.get(config.on, config.on)
        names = _names_in(path)
    except FileNotFoundError:
        raise UsageError(f"There is no file {config.labels}.", "Check the path of --labels.") from None
    except OSError as error:
        raise UsageError(
            f"The labels {config.labels} cannot be read: {error.strerror or error}.", "Name a file that can be read."
        ) from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UsageError(f"The labels {config.labels} are no Parquet file.", "Check how it was written.") from None
    if key not in names:
        raise UsageError(
            f"The labels {config.labels} have no column {key!r} to name the images by; their columns are "
            f"{', '.join(filter(None, names)) or 'none'}.",
            f"Say --on COLUMN, or --columns {config.on}=NAME.",
        )
    if path.lower().endswith(".parquet"):
        path = _with_text_key(path, config.labels, key, folder)
    own = {ours: theirs for ours, theirs in config.columns.items() if ours not in (config.on, URI)}
    # The key takes the name `uri`; a column that has it already, beside an accession number, is called otherwise.
    other = next((name for name in names if name.lower() == URI and name != key), None)
    own |= {_OTHER_URI: other} if other is not None else {}
    return open_manifest(path, config.labels, {**own, URI: key})


def _names_in(path: str) -> list[str]:
    """Names of the columns; of a CSV file under the separator that gives most of them."""
    if path.lower().endswith(".parquet"):
        return list(pq.read_schema(path).names)
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        header = file.readline()
    split = [next(csv.reader([header], delimiter=delimiter), []) for delimiter in _DELIMITERS]
    return [name.strip("\r\n") for name in max(split, key=len)]


def _with_text_key(path: str, shown: str, key: str, folder: Path) -> str:
    """The same file, or a copy in which the key is text: numbers name images too."""
    field = pq.read_schema(path).field(key)
    if pa.types.is_string(field.type):
        return path
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"The labels {shown} are damaged: {str(error).strip()}", "Write them again.") from None
    column = pa.array([cell_text(value) for value in table[key].to_pylist()], pa.string())
    copy = str(folder / "with-text.parquet")
    pq.write_table(table.set_column(table.column_names.index(key), key, column), copy)
    return copy


def _rows(rows: ManifestRows, place: str, config: LabelsConfig) -> Iterator[tuple[int, str, dict[str, str | None]]]:
    """Number, key and texts of each row whose key is not empty."""
    resolver = UriResolver(config.root, paths.parent(place), rows.unit)
    for numbers, batch in rows.batches():
        for number, row in zip(numbers.to_pylist(), batch.to_pylist(), strict=True):
            texts = {name: cell_text(value) for name, value in row.items()}
            key = texts[URI]
            if config.on == URI:
                key = resolver.resolve(row[URI], number)
            elif config.on == CONTENT and key is not None:
                key = key.lower()
            if key is not None:
                yield number, key, texts
    resolver.check()


def _named(label: str | None, names: Mapping[str, str]) -> str:
    assert label is not None
    return names.get(label, label)
