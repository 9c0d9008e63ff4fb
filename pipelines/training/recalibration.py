"""A new version of a model for new labelled images: its temperature, thresholds and refer bands; the weights stay."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.errors import TryLater, UsageError
from pipelines.evaluation.cases import Cases
from pipelines.models.bundle import SPLIT_FILE, Bundle
from pipelines.models.registry import resolve
from pipelines.scoring.report import ScoreProgress
from pipelines.storage import paths
from pipelines.training.config import CalibrateConfig
from pipelines.training.duplicates import HASH_BYTES
from pipelines.training.inherit import inherit, read_split
from pipelines.training.labelled_cases import LabelledCases, answer_again, answer_labelled
from pipelines.training.owned_folder import owned_folder
from pipelines.training.recalibration_fit import NewImages, Recalibrated, class_counts, recalibrate
from pipelines.training.recalibration_writing import write_calibrated

Connect = Callable[[], AbstractContextManager[Any]]
Tell = Callable[[ScoreProgress], None]


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """The answer of `models calibrate`.

    Attributes:
        bundle: The new version.
        calibrated_from: The one that it was made from.
        champion: Version that the name means now.
        new: The images.
        fitted: What was fitted to them.
        seconds: The whole command.
    """

    bundle: Bundle
    calibrated_from: Bundle
    champion: str
    new: NewImages
    fitted: Recalibrated
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The one JSON value that `--json` prints."""
        cases, fitted = self.new.labelled.cases, self.fitted
        return {
            "model": self.bundle.name,
            "version": self.bundle.version,
            "path": self.bundle.uri,
            "model_id": self.bundle.model_id,
            "champion": self.champion,
            "calibrated_from": self.calibrated_from.version,
            "images": class_counts(cases),
            "left_out": dict(self.new.left_out),
            "unreadable": [
                {"image_uri": image.image_uri, "error_code": image.code, "error_message": image.message}
                for image in self.new.labelled.unreadable
            ],
            "temperature": {"before": self.calibrated_from.temperature, "after": self.bundle.temperature},
            "before": fitted.before.record(),
            "after": fitted.after.record(),
            "thresholds": {unit: dict(values) for unit, values in self.bundle.thresholds.items()},
            "int8": None if fitted.int8 is None else fitted.int8.record(),
            "warnings": list(fitted.judged.warnings),
            "seconds": self.seconds,
        }


def calibrate(config: CalibrateConfig, connect: Connect, tell: Tell) -> CalibrationReport:
    """Fit a model's temperature, thresholds and refer bands to new labelled images, and write a new version.

    Args:
        config: Which model, which images.
        connect: Starts or joins Ray; not called where all answers are there.
        tell: Called with progress; phases `listing`, `identifying`, `scoring` and `calibrating`.

    Raises:
        UsageError: If the images are unusable for this model, or one kind is missing in what it has not seen.
        ModelRefused: If the model is damaged or answers otherwise than when it was made.
        TryLater: If storage or the cluster fails; the same command goes on from there.
    """
    began = time.monotonic()
    bundle = resolve(config.ref)
    models = _models_of(bundle, config.ref)
    with owned_folder(_work(models, bundle, config)) as folder:
        precision = "float32" if "float32" in bundle.spec.scorers else next(iter(bundle.spec.scorers))
        new = choose_new(bundle, answer_labelled(bundle, precision, config.data, (), folder, connect, tell))
        small = _small_answers(bundle, precision, new.labelled, folder, connect, tell)
        tell(ScoreProgress("calibrating"))
        fitted = recalibrate(bundle, precision, new, small, (config.target_sensitivity, config.target_specificity))
        written, champion = write_calibrated(models, bundle, config, new, fitted)
    return CalibrationReport(written, bundle, champion, new, fitted, time.monotonic() - began)


def _models_of(bundle: Bundle, ref: str) -> str:
    """The MODELS folder that a new version goes to."""
    if (paths.name(paths.parent(bundle.uri)), paths.name(bundle.uri)) != (bundle.name, bundle.version):
        raise UsageError(
            f"{ref} does not lie where MODELS/NAME/VERSION is, but is {bundle.name} {bundle.version}.",
            "Calibrate it where it was made: a new version is written beside it.",
        )
    return paths.parent(paths.parent(bundle.uri))


def _work(models: str, bundle: Bundle, config: CalibrateConfig) -> str:
    digest = hashlib.sha256(f"{bundle.model_id} {config.data}".encode("utf-8", "surrogateescape")).hexdigest()
    return paths.join(models, bundle.name, "work", f"calibration-{digest[:16]}")


def choose_new(bundle: Bundle, labelled: LabelledCases) -> NewImages:
    """Leave out what the model was made from, and what tests it: its images, patients and pictures that look alike.

    Args:
        bundle: The model.
        labelled: Its answers; images of its own train and val parts are left out of them already, and counted.

    Raises:
        UsageError: If one kind is missing in the rest.
    """
    cases = labelled.cases
    left_out = {"trained or validated the model": labelled.seen.left_out, "are copies of others": labelled.copies}
    name = f"{bundle.name}@{bundle.version}"
    split = read_split(bundle) if SPLIT_FILE in bundle.files else None
    own = [split.part_of.get(content) if split else None for content in cases.contents]
    tested = np.array([part == "test" for part in own], bool)
    left_out[f"stand in the test part of {name}"] = int(tested.sum())
    told = np.array([part == "test" for part in labelled.parts], bool) & ~tested
    left_out["stand in the test part of the data"] = int(told.sum())
    linked, groups = np.zeros(len(cases), bool), list(cases.groups)
    if split is not None and len(cases):
        flat = b"".join(labelled.facts["perceptual_hash"].to_pylist())
        hashes = np.frombuffer(flat, np.uint8).reshape(-1, HASH_BYTES)
        known = inherit(split, cases.contents, hashes, cases.patients or [None] * len(cases))
        kept_or_torn = [part is not None or torn for part, torn in zip(known.kept, known.torn, strict=True)]
        linked, groups = np.array(kept_or_torn, bool) & ~tested & ~told, known.groups
        left_out["share a patient or the picture with an image of the model's own split"] = int(linked.sum())
    rows = np.flatnonzero(~(tested | told | linked))
    _refuse_one_kind(cases.take(rows), name, left_out)
    kept = replace(
        labelled,
        cases=cases.take(rows),
        versions=tuple(labelled.versions[row] for row in rows.tolist()),
        facts=labelled.facts.take(pa.array(rows)),
    )
    counted = {reason: count for reason, count in left_out.items() if count}
    return NewImages(kept, tuple(groups[row] for row in rows.tolist()), counted)


def _refuse_one_kind(cases: Cases, name: str, left_out: Mapping[str, int]) -> None:
    truth = cases.truth
    if truth.any() and not truth.all():
        return
    reasons = "".join(f"; {count} left out because they {reason}" for reason, count in left_out.items() if count)
    raise UsageError(
        f"To calibrate {name} takes positive and negative images that it has not seen, and there are "
        f"{int(truth.sum())} and {int((~truth).sum())}{reasons}.",
        "Name a folder or a manifest with new images of both kinds.",
    )


def _small_answers(
    bundle: Bundle, precision: str, labelled: LabelledCases, folder: str, connect: Connect, tell: Tell
) -> NDArray[np.float32] | None:
    """What the 8-bit scorer answers to the same images; None where there is none beside the first."""
    if precision != "float32" or "int8" not in bundle.spec.scorers:
        return None
    rows, answered = answer_again(bundle, "int8", labelled, folder, connect, tell)
    if len(rows) != len(labelled.cases):
        raise TryLater("Some of the images cannot be read any more.", "Run the same command again.")
    return answered.probabilities
