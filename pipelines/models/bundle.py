"""A model bundle: an immutable folder whose every file is verified before it is used.

bundle.json is written last, so that a folder without it is not a bundle. It holds the hash of every file but the
report and the card; its own hash is the `model_id`.
"""

from __future__ import annotations

import hashlib
import io
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pipelines.errors import ModelRefused, UsageError
from pipelines.models import record
from pipelines.models.champion import make_first_champion
from pipelines.models.decision import decide, sum_positive
from pipelines.models.record import BundleSpec
from pipelines.models.runtime import ScorerIO
from pipelines.storage import files as storage
from pipelines.storage.paths import canonical, is_bucket, join

BUNDLE_FILE = "bundle.json"
WEIGHTS_FILE = "weights.weights.h5"
SCORER_FILE = "scorer.tflite"
SCORER_INT8_FILE = "scorer_int8.tflite"
HISTORY_FILE = "history.csv"
# Columns: content_sha256 (hex), perceptual_hash (32 bytes), group, part (train|val|test), person (hashed, or null).
SPLIT_FILE = "split.parquet"
VALIDATION_FILE = "validation.parquet"
CARD_FILE = "MODEL_CARD.md"
REPORT_FOLDER = "report"

# What is decided on: an image, or a patient by the highest or the mean `p_positive` of the images.
THRESHOLD_UNITS = ("image", "patient_max", "patient_mean")

PRECISIONS = ("float32", "int8")

MAX_RECORD_BYTES = 8 * 1024**2
# A flatbuffer cannot be larger; no array file of a classifier should be.
MAX_FILE_BYTES = 2 * 1024**3

_AGAIN = "Copy the bundle again from where it was made, or train or import it again."


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. Attributes are those of bundle.json (see `BundleSpec`).

    Attributes:
        uri: Its folder.
        name: The model's name.
        version: v1, v2 …
        model_id: SHA-256 (hex) of bundle.json.
        spec: What bundle.json says beyond that.
        files: Hash (SHA-256, hex) of every file.
        local: Folder in which verified copies of the files lie, or None to read them from `uri`.
    """

    uri: str
    name: str
    version: str
    model_id: str
    spec: BundleSpec
    files: Mapping[str, str]
    local: str | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities."""
        return self.spec.classes

    @property
    def positive_classes(self) -> tuple[str, ...]:
        """The classes whose probabilities make `p_positive`."""
        return self.spec.positive_classes

    @property
    def input_size(self) -> int:
        """Side of the square picture, in pixels."""
        return self.spec.input_size

    @property
    def preprocessing_id(self) -> str:
        """Identity of the preprocessing that the model was made for."""
        return self.spec.preprocessing_id

    @property
    def backbone(self) -> Mapping[str, Any]:
        """Name, alpha, weights …; {} for an imported model."""
        return self.spec.backbone

    @property
    def head(self) -> Mapping[str, Any]:
        """Pooling, units …; {} for an imported model."""
        return self.spec.head

    @property
    def temperature(self) -> float:
        """What the logits are divided by."""
        return self.spec.temperature

    @property
    def thresholds(self) -> Mapping[str, Mapping[str, Any]]:
        """Fitted thresholds per unit; {} where none was fitted."""
        return self.spec.thresholds

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Data, seeds, versions, who and when."""
        return self.spec.provenance

    def read(self, name: str) -> bytes:
        """One file, verified again.

        Raises:
            ModelRefused: If the bundle has no such file, or it is missing, too large or altered.
        """
        if name not in self.files:
            raise ModelRefused(f"The bundle {self.uri} has no {name}.", f"It holds: {', '.join(sorted(self.files))}.")
        return _read_verified(join(self.local or self.uri, name), self.files[name])

    def scorer(self, precision: str) -> tuple[bytes, ScorerIO]:
        """The compiled model for `Scorer`, verified.

        Raises:
            UsageError: If the bundle has none of this precision; with the reason where it knows it.
        """
        entry = self.spec.scorers.get(precision)
        if entry is None:
            reason = self.spec.scorers_absent.get(precision, "")
            raise UsageError(
                f"The model {self.name}@{self.version} has no {precision} scorer. {reason}".rstrip(),
                f"Say --precision {'|'.join(sorted(self.spec.scorers))}.",
            )
        return self.read(entry.file), entry.io

    def p_positive(self, probabilities: Sequence[float] | npt.NDArray[Any]) -> float:
        """The sum over the positive classes, 0-1.

        Args:
            probabilities: [K], in the order of `classes`.
        """
        return sum_positive(probabilities, self.classes, self.positive_classes)

    def fitted(self, precision: str, unit: str = "image") -> Mapping[str, Any] | None:
        """Threshold and refer band of a unit; None where none was fitted to this precision's own answers.

        Args:
            precision: `float32` or `int8`.
            unit: One of `THRESHOLD_UNITS`.
        """
        return self.thresholds.get(threshold_unit(precision, unit))

    def decision(self, p_positive: float | None, precision: str = "float32") -> str | None:
        """What is said of an image: `negative`, `refer` or `positive`, by the threshold and band of this precision.

        None without a probability or a threshold: one that was fitted to another precision's answers is not taken.
        """
        fitted = self.fitted(precision)
        return None if fitted is None or p_positive is None else str(decide(p_positive, fitted))

    @property
    def knows_training(self) -> bool:
        """Whether its split names all images that it was made from; of an imported model at most what calibrated it."""
        return SPLIT_FILE in self.files and self.provenance.get("kind") != "import"

    def training_hashes(self) -> frozenset[str] | None:
        """`content_sha256` of every image of the parts train and val; None where the bundle knows of no split."""
        if SPLIT_FILE not in self.files:
            return None
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        try:
            split = pq.read_table(io.BytesIO(self.read(SPLIT_FILE)), columns=["content_sha256", "part"])
        except (pa.ArrowException, KeyError) as error:
            raise ModelRefused(f"{SPLIT_FILE} of {self.uri} cannot be read.", _AGAIN) from error
        used = split.filter(pc.is_in(split["part"], value_set=pa.array(["train", "val"])))
        return frozenset(used["content_sha256"].to_pylist())


def threshold_unit(precision: str, unit: str = "image") -> str:
    """The name in `thresholds` of what decides on a unit: such as `image`, or `image_int8` for the 8-bit scorer.

    Args:
        precision: `float32` or `int8`.
        unit: One of `THRESHOLD_UNITS`.
    """
    return unit if precision == "float32" else f"{unit}_{precision}"


def check_precision(precision: str) -> None:
    """Refuse a precision that no scorer has.

    Raises:
        UsageError: Naming those that there are.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision!r} is unknown.", f"Use one of {', '.join(PRECISIONS)}.")


def load_bundle(uri: str, cache_dir: str | None = None) -> Bundle:
    """Read a bundle and verify every file.

    Args:
        uri: The bundle's folder, local or in a bucket.
        cache_dir: Local folder for copies of a bucket's files, kept under the model's id; without it they are read
            from the bucket each time.

    Raises:
        ModelRefused: If bundle.json is missing or invalid, or a file is missing, too large or altered.
        UsageError: If a newer release wrote it.
    """
    bundle = peek(uri)
    if cache_dir is not None and is_bucket(bundle.uri):
        return replace(bundle, local=_fetch(bundle, cache_dir))
    for name in bundle.files:
        bundle.read(name)
    return bundle


def peek(uri: str) -> Bundle:
    """Read bundle.json alone, for listings; nothing else is verified until `read`.

    Raises:
        ModelRefused: If bundle.json is missing or invalid.
        UsageError: If a newer release wrote it.
    """
    place = canonical(uri)
    found, data = _read_record(place)
    return Bundle(place, found.name, found.version, hashlib.sha256(data).hexdigest(), found.spec, found.files)


def write_bundle(models: str, name: str, spec: BundleSpec, files: Mapping[str, bytes]) -> Bundle:
    """Write a new version of a model; the first one of a name becomes its champion.

    Args:
        models: The MODELS folder, local or in a bucket.
        name: The model's name.
        spec: What it says.
        files: Content of each file by name; one of `REPORT_FOLDER` as `report/NAME`. Card and reports are written but
            not hashed.

    Returns:
        The bundle, under the next free version number. Several writers at once get different numbers.

    Raises:
        UsageError: If the name, a file's name or the spec is not valid.
    """
    models = canonical(models)
    record.check_name(name)
    unhashed = {file for file in files if file == CARD_FILE or file.startswith(f"{REPORT_FOLDER}/")}
    for file in files:
        if not record.is_file_name(file.removeprefix(f"{REPORT_FOLDER}/")):
            raise UsageError(f"{file!r} cannot be a file of a bundle.")
    for precision, entry in spec.scorers.items():
        if entry.file not in files:
            raise UsageError(f"The {precision} scorer {entry.file!r} is not among the files.")
    stamped = replace(
        spec, provenance={"created_at": datetime.now(UTC).isoformat(timespec="seconds"), **spec.provenance}
    )
    hashes = {file: hashlib.sha256(content).hexdigest() for file, content in files.items() if file not in unhashed}
    version = _claim(models, name)
    folder = join(models, name, version)
    data = record.to_bytes(stamped, name, version, hashes)
    for file, content in files.items():
        storage.write_atomic(join(folder, file), content)
    # Last: from here on the folder is a bundle.
    if not storage.create_exclusive(join(folder, BUNDLE_FILE), data):
        raise UsageError(f"{folder} was written by somebody else at the same time.", "Run the command again.")
    make_first_champion(models, name, version)
    return Bundle(folder, name, version, hashlib.sha256(data).hexdigest(), stamped, hashes)


def _claim(models: str, name: str) -> str:
    """The next version number, which nobody else gets: whoever creates the claim owns it.

    A writer that died leaves its claim behind; the number is then never used.
    """
    used = [int(entry[1:]) for entry in storage.list_names(join(models, name)) if record.is_version(entry)]
    number = max(used, default=0) + 1
    claim = f"{secrets.token_hex(16)}\n".encode()
    while not storage.create_exclusive(join(models, name, f"v{number}", "claim"), claim):
        number += 1
    return f"v{number}"


def _read_record(uri: str) -> tuple[record.Record, bytes]:
    where = join(uri, BUNDLE_FILE)
    try:
        if storage.size(where) > MAX_RECORD_BYTES:
            raise ModelRefused(f"{where} is larger than {MAX_RECORD_BYTES} bytes.", _AGAIN)
        data = storage.read_bytes(where)
    except FileNotFoundError as error:
        raise ModelRefused(f"There is no model bundle in {uri}: it has no {BUNDLE_FILE}.", _AGAIN) from error
    return record.from_bytes(data, uri), data


def _read_verified(uri: str, digest: str) -> bytes:
    try:
        if storage.size(uri) > MAX_FILE_BYTES:
            raise ModelRefused(f"{uri} is larger than {MAX_FILE_BYTES} bytes.", _AGAIN)
        data = storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise ModelRefused(f"The model's file {uri} is missing.", _AGAIN) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise ModelRefused(f"The model's file {uri} was altered: its hash is not the one in {BUNDLE_FILE}.", _AGAIN)
    return data


def _fetch(bundle: Bundle, cache_dir: str) -> str:
    """Copy what the cache lacks, verified; return the folder."""
    folder = Path(cache_dir) / bundle.model_id
    folder.mkdir(parents=True, exist_ok=True, mode=0o750)
    for name, digest in bundle.files.items():
        copy = folder / name
        if not copy.is_file() or hashlib.sha256(copy.read_bytes()).hexdigest() != digest:
            storage.write_atomic(str(copy), _read_verified(join(bundle.uri, name), digest))
    return str(folder)
