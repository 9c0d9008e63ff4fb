"""What a training tells when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.scoring.report import ScoreProgress


@dataclass(frozen=True)
class EpochProgress(ScoreProgress):
    """Where a training stands: an epoch of phase `training` is over, and how it went.

    Attributes:
        row: The epoch's row of the history.
    """

    row: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Unreadable:
    """A labelled image that could not be read and was left out."""

    image_uri: str
    error_code: str
    error_message: str


@dataclass(frozen=True)
class TrainReport:
    """The answer of `train`.

    Attributes:
        model: The model's name.
        version: v1, v2 …
        path: The bundle's folder.
        model_id: Hash of bundle.json.
        champion: Version that `MODELS/NAME` means now.
        classes: Names, in the bundle's order.
        positive_classes: Those that `p_positive` sums.
        parts: Part of the split to class to number of images.
        groups: How many groups the split dealt.
        without_patient: Images of which nothing says whose they are; only copies keep them together.
        epochs: Epochs that were run.
        best_epoch: The one whose weights were kept.
        validation: Figures on validation, calibrated, by name.
        intervals: 95 % interval of each of these figures; NaN where there is none.
        roc_auc: Of the positive classes against the rest on validation; `validation` has the mean over classes where
            there are more than two.
        roc_auc_interval: Its 95 % interval.
        confusion_matrix: Validation, a row for each true class.
        classification_report: Validation, text.
        temperature: Fitted on validation.
        threshold: Of `p_positive`, fitted on validation.
        target_sensitivity: What the threshold was asked to reach.
        sensitivity: What it reaches on validation.
        specificity: What it reaches on validation; NaN without negative images.
        thresholds: Threshold, refer band and what they reach on validation, of every unit of the bundle.
        int8: Whether the 8-bit scorer is offered, and how it compares (`int8_gate.Int8Verdict.record`).
        versus: The comparison with the champion (`versus.Versus.record`); None for the first version of a name.
        audit: What the leak audit counted, and where the split comes from.
        started_from: The version that training started from; None where it started from `--weights`.
        workers: How many trained.
        unreadable: Images that were left out because they could not be read.
        left_out: Files that are no training images, by reason.
        warnings: What a person should know before using the model.
        seconds: The whole command.
    """

    model: str
    version: str
    path: str
    model_id: str
    champion: str
    classes: tuple[str, ...]
    positive_classes: tuple[str, ...]
    parts: Mapping[str, Mapping[str, int]]
    groups: int
    without_patient: int
    epochs: int
    best_epoch: int
    validation: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    roc_auc: float
    roc_auc_interval: tuple[float, float]
    confusion_matrix: tuple[tuple[int, ...], ...]
    classification_report: str
    temperature: float
    threshold: float
    target_sensitivity: float
    sensitivity: float
    specificity: float
    thresholds: Mapping[str, Mapping[str, Any]]
    int8: Mapping[str, Any]
    versus: Mapping[str, Any] | None
    audit: Mapping[str, Any]
    started_from: str | None
    workers: int
    unreadable: tuple[Unreadable, ...]
    left_out: Mapping[str, int]
    warnings: tuple[str, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The one JSON value that `--json` prints."""
        return {
            "model": self.model,
            "version": self.version,
            "path": self.path,
            "model_id": self.model_id,
            "champion": self.champion,
            "classes": list(self.classes),
            "positive_classes": list(self.positive_classes),
            "parts": {part: dict(counts) for part, counts in self.parts.items()},
            "groups": self.groups,
            "without_patient": self.without_patient,
            "epochs": self.epochs,
            "best_epoch": self.best_epoch,
            "validation": dict(self.validation),
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "roc_auc": self.roc_auc,
            "roc_auc_interval": list(self.roc_auc_interval),
            "confusion_matrix": [list(row) for row in self.confusion_matrix],
            "temperature": self.temperature,
            "threshold": self.threshold,
            "target_sensitivity": self.target_sensitivity,
            "sensitivity": self.sensitivity,
            "specificity": self.specificity,
            "thresholds": {unit: dict(fitted) for unit, fitted in self.thresholds.items()},
            "int8": dict(self.int8),
            "versus": None if self.versus is None else dict(self.versus),
            "audit": dict(self.audit),
            "started_from": self.started_from,
            "workers": self.workers,
            "unreadable": [
                {"image_uri": image.image_uri, "error_code": image.error_code, "error_message": image.error_message}
                for image in self.unreadable
            ],
            "left_out": dict(self.left_out),
            "warnings": list(self.warnings),
            "seconds": self.seconds,
        }
