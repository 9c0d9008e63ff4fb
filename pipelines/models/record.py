"""bundle.json: what it holds, how it is written and how it is read without trusting it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.errors import ModelRefused, UsageError
from pipelines.models.decision import check_fitted
from pipelines.models.runtime import ScorerIO

FORMAT = 1
MAX_CLASSES = 1000
MAX_SIDE = 4096

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"v[1-9][0-9]{0,5}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "Copy the bundle again from where it was made."


@dataclass(frozen=True)
class ScorerEntry:
    """One compiled model of a bundle: its file and how it is called."""

    file: str
    io: ScorerIO


@dataclass(frozen=True)
class BundleSpec:
    """Everything that a bundle says about itself, but its name, version and hashes.

    Attributes:
        classes: Names in the order of the probabilities; at least two, all different.
        positive_classes: Some, but not all, of them.
        input_size: Side of the square picture, in pixels.
        preprocessing_id: Identity of the preprocessing function that the model was made for.
        scorers: Per precision (`float32`, `int8`).
        preprocessing_contract: That function's contract in words and numbers.
        scorers_absent: Per precision that is not there, the reason in one sentence.
        backbone: Name, alpha, weights and so on; {} for an imported model.
        head: Pooling, units and so on; {} for an imported model.
        temperature: What the logits are divided by in all: inside of the graph for the models that we compile, times
            what a scorer's `io` has outside of it.
        thresholds: {} where none was fitted, else per unit (`bundle.threshold_unit`): threshold, refer_low, refer_high,
            targets and what they reach on validation. A bundle of an earlier release has no refer band.
        provenance: Where it comes from: data, seeds, versions of libraries, who and when.
    """

    classes: tuple[str, ...]
    positive_classes: tuple[str, ...]
    input_size: int
    preprocessing_id: str
    scorers: Mapping[str, ScorerEntry]
    preprocessing_contract: Mapping[str, Any] = field(default_factory=dict)
    scorers_absent: Mapping[str, str] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    thresholds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_classes(self.classes, self.positive_classes)
        if not 1 <= self.input_size <= MAX_SIDE:
            raise UsageError(f"The input size {self.input_size} is not between 1 and {MAX_SIDE} pixels.")
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"The temperature {self.temperature} is not a positive number.")
        for unit, fitted in self.thresholds.items():
            check_fitted(unit, fitted)
        for precision, entry in self.scorers.items():
            if (entry.io.input_size, entry.io.size) != (self.input_size, len(self.classes)):
                raise UsageError(
                    f"The {precision} scorer is not of {self.input_size} px and {len(self.classes)} classes."
                )


def check_classes(classes: Sequence[str], positive: Sequence[str]) -> None:
    """Refuse classes that no table and no decision could be made of.

    Raises:
        UsageError: Fewer than two, more than `MAX_CLASSES`, a repeated or empty name, or positive classes that are
            unknown, none or all.
    """
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise UsageError(f"A classifier has 2 to {MAX_CLASSES} classes, not {len(classes)}.")
    if len(set(classes)) != len(classes) or not all(name.strip() for name in classes):
        raise UsageError(f"The class names are not all different and filled in: {', '.join(classes)}.")
    if not positive or not set(positive) < set(classes):
        raise UsageError(f"The positive classes must be some, but not all, of: {', '.join(classes)}.")


def check_name(name: str) -> str:
    """A model's name that is safe as a folder and as `NAME@VERSION`.

    Raises:
        UsageError: If it is not letters, digits, dot, dash and underscore.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"The model name {name!r} cannot be a folder's name.",
            "Use letters, digits, '.', '-' and '_', a letter or digit first.",
        )
    return name


def is_version(name: str) -> bool:
    """Whether a folder's name is that of a version: v1, v2 and so on."""
    return _VERSION.fullmatch(name) is not None


def is_file_name(name: str) -> bool:
    """Whether this can be a file of a bundle: flat, no way out of the folder."""
    return _FILE.fullmatch(name) is not None and name != "bundle.json"


def to_bytes(spec: BundleSpec, name: str, version: str, files: Mapping[str, str]) -> bytes:
    """The canonical bytes of bundle.json, which `model_id` is the hash of.

    Args:
        spec: What the bundle says.
        name: The model's name.
        version: v1, v2 …
        files: Hash (SHA-256, hex) of each file.
    """
    value = {
        "format": FORMAT,
        "name": name,
        "version": version,
        "classes": list(spec.classes),
        "positive_classes": list(spec.positive_classes),
        "input": {"size": spec.input_size, "channels": 3, "dtype": "uint8"},
        "backbone": dict(spec.backbone),
        "head": dict(spec.head),
        "preprocessing": {"id": spec.preprocessing_id, "contract": dict(spec.preprocessing_contract)},
        "temperature": spec.temperature,
        "thresholds": {unit: dict(fitted) for unit, fitted in spec.thresholds.items()},
        "scorers": {
            precision: {"file": entry.file, "io": entry.io.to_json()} for precision, entry in spec.scorers.items()
        },
        "scorers_absent": dict(spec.scorers_absent),
        "provenance": dict(spec.provenance),
        "files": dict(files),
    }
    return _canonical({**value, "seal": _seal(value)})


def _canonical(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    # A place may have a name that is no UTF-8: as an escape it is read back as it was.
    return (text + "\n").encode(errors="backslashreplace")


def _seal(value: Mapping[str, Any]) -> str:
    """A hash of everything else in bundle.json, so that a changed byte in it is found like one in any other file."""
    return hashlib.sha256(_canonical({key: item for key, item in value.items() if key != "seal"})).hexdigest()


@dataclass(frozen=True)
class Record:
    """bundle.json, read and checked."""

    name: str
    version: str
    spec: BundleSpec
    files: Mapping[str, str]


def from_bytes(data: bytes, where: str) -> Record:
    """Read bundle.json.

    Args:
        data: Its bytes.
        where: The bundle's URI, for messages.

    Raises:
        UsageError: If a newer release wrote it.
        ModelRefused: If it is not a valid bundle.json.
    """
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
        number = value["format"]
        if type(number) is not int or number < FORMAT:
            raise ValueError(f"format {number!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _invalid(where, error) from error
    if number > FORMAT:
        raise UsageError(
            f"The bundle {where} has format {number}; this nightread reads up to {FORMAT}.",
            "A newer release wrote it: upgrade.",
        )
    try:
        if value["seal"] != _seal(value) or data != _canonical(value):
            raise ModelRefused(f"bundle.json of {where} was altered: it does not match its seal.", _AGAIN)
        return _record(value)
    except (UsageError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _invalid(where, error) from error


def _invalid(where: str, error: Exception) -> ModelRefused:
    reason = error.message if isinstance(error, UsageError) else f"{type(error).__name__} {error}."
    return ModelRefused(f"bundle.json of {where} is not valid: {reason}", _AGAIN)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _record(value: Mapping[str, Any]) -> Record:
    files = {str(name): str(digest) for name, digest in value["files"].items()}
    for name, digest in files.items():
        if not is_file_name(name) or not _SHA256.fullmatch(digest):
            raise ValueError(f"the file {name!r} is not a plain name with a hash")
    scorers = {
        str(precision): ScorerEntry(str(entry["file"]), ScorerIO.from_json(entry["io"]))
        for precision, entry in value["scorers"].items()
    }
    for entry in scorers.values():
        if entry.file not in files:
            raise ValueError(f"the scorer {entry.file!r} has no hash")
    if not is_version(str(value["version"])) or not _NAME.fullmatch(str(value["name"])):
        raise ValueError(f"name {value['name']!r}, version {value['version']!r}")
    spec = BundleSpec(
        classes=_texts(value["classes"]),
        positive_classes=_texts(value["positive_classes"]),
        input_size=int(value["input"]["size"]),
        preprocessing_id=str(value["preprocessing"]["id"]),
        scorers=scorers,
        preprocessing_contract=dict(value["preprocessing"]["contract"]),
        scorers_absent={str(key): str(reason) for key, reason in value["scorers_absent"].items()},
        backbone=dict(value["backbone"]),
        head=dict(value["head"]),
        temperature=float(value["temperature"]),
        thresholds={str(unit): dict(fitted) for unit, fitted in value["thresholds"].items()},
        provenance=dict(value["provenance"]),
    )
    return Record(str(value["name"]), str(value["version"]), spec, files)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("not a list of names")
    return tuple(value)


def plain(value: Any) -> Any:
    """What JSON can hold: numbers of NumPy become plain ones, what is not finite becomes null."""
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
