"""Whether the 8-bit scorer earned its place: on validation it has to answer almost as the float32 one does.

It is refused where the ROC AUC of the positive classes against the rest falls by more than 0.005 (with more than two
classes also the mean over the classes), where more than 2 % of the predicted classes change, or where no threshold of
its own reaches the sensitivity that float32's reaches.

It has a threshold and a refer band of its own, fitted to its own answers: the threshold is the probability of one
positive image, so that the slightest change of its answer would drop it at float32's threshold, and the sensitivity
below what was asked for. Decisions are compared each at its own threshold and band.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.metrics import roc_auc
from pipelines.evaluation.thresholds import OperatingPoint, fit_alike, sum_positive
from pipelines.models.decision import decide

LARGEST_FALL = 0.005
MOST_CHANGED = 0.02

Answers = NDArray[np.float32]


@dataclass(frozen=True)
class Int8Verdict:
    """How the 8-bit scorer compares with the float32 one on validation.

    Attributes:
        images: How many images it stands on; 0 where none could be made or it did not answer.
        reasons: What speaks against it, each half a sentence; () where it earned its place.
        roc_auc: Of the positive classes against the rest: float32's and int8's.
        macro_roc_auc: Mean of each class against the rest, likewise; None with two classes.
        classes_changed: Images whose predicted class changes.
        decisions_changed: Images whose decision changes, each scorer at its own threshold and refer band.
        sensitivity_at_float32: What int8 would reach at float32's threshold.
        point: The threshold and refer band of its own; None where it did not answer.
    """

    images: int
    reasons: tuple[str, ...]
    roc_auc: tuple[float, float] | None = None
    macro_roc_auc: tuple[float, float] | None = None
    classes_changed: int = 0
    decisions_changed: int = 0
    sensitivity_at_float32: float | None = None
    point: OperatingPoint | None = None

    @property
    def offered(self) -> bool:
        """Whether it earned its place."""
        return not self.reasons

    def sentence(self) -> str:
        """The verdict with its numbers, for the bundle and for a person."""
        if self.roc_auc is None:
            return f"int8 is not offered: {'; '.join(self.reasons)}."
        on = "1 validation image" if self.images == 1 else f"{self.images:,} validation images"
        if not self.offered:
            return f"int8 did not earn its place on {on}: {'; '.join(self.reasons)}."
        changed = f"{_changed(self.classes_changed, self.images)} differ"
        return f"int8 earned its place on {on}: ROC AUC {self.roc_auc[1]:.4f} against {self.roc_auc[0]:.4f}, {changed}."

    def record(self) -> dict[str, Any]:
        """Plain values for bundle and report."""
        pairs = {"roc_auc": self.roc_auc, "macro_roc_auc": self.macro_roc_auc}
        figures = {name: {"float32": pair[0], "int8": pair[1]} for name, pair in pairs.items() if pair is not None}
        return {
            "offered": self.offered,
            "sentence": self.sentence(),
            "images": self.images,
            **figures,
            "classes_changed": self.classes_changed,
            "decisions_changed": self.decisions_changed,
            "sensitivity_at_float32_threshold": self.sensitivity_at_float32,
            "allowed": {"roc_auc_fall": LARGEST_FALL, "classes_changed": MOST_CHANGED},
        }


def judge_int8(
    float32: Answers,
    int8: Answers,
    labels: NDArray[np.int64],
    positive: Sequence[int],
    point: OperatingPoint,
) -> Int8Verdict:
    """Compare the two scorers on validation.

    Args:
        float32: Calibrated probabilities `[N, K]`.
        int8: The same of the 8-bit scorer.
        labels: Class numbers `[N]`.
        positive: Numbers of the positive classes.
        point: float32's threshold and refer band, whose targets are int8's too.
    """
    unanswered = int((~np.isfinite(int8).all(axis=1)).sum())
    if unanswered:
        return Int8Verdict(0, (f"it has no finite answer for {_changed(unanswered, len(labels), 'images')}",))
    truth = np.isin(labels, positive)
    score, quantised = sum_positive(float32, positive), sum_positive(int8, positive)
    areas = roc_auc(score, truth), roc_auc(quantised, truth)
    macro = _macro(float32, int8, labels) if float32.shape[1] > 2 else None
    changed = int((float32.argmax(axis=1) != int8.argmax(axis=1)).sum())
    own = fit_alike(point, quantised, truth)
    reasons = [
        *_fall("the ROC AUC of the positive classes", areas),
        *(_fall("the mean ROC AUC of the classes", macro) if macro else ()),
    ]
    if changed > MOST_CHANGED * len(labels):
        reasons.append(f"{_changed(changed, len(labels))} differ, more than {100 * MOST_CHANGED:g} %")
    if own.sensitivity < min(point.sensitivity, point.target):
        reasons.append(f"no threshold above 0 reaches a sensitivity of {min(point.sensitivity, point.target):.3f}")
    return Int8Verdict(
        images=len(labels),
        reasons=tuple(reasons),
        roc_auc=areas,
        macro_roc_auc=macro,
        classes_changed=changed,
        decisions_changed=int((decide(score, point.record()) != decide(quantised, own.record())).sum()),
        sensitivity_at_float32=float((quantised >= point.threshold)[truth].mean()),
        point=own,
    )


def _fall(what: str, areas: tuple[float, float]) -> list[str]:
    """Why a pair of areas speaks against int8, if it does; a NaN does."""
    before, after = areas
    # The numbers are of finite precision: 0.005 itself is allowed.
    if before - after <= LARGEST_FALL + 1e-12:
        return []
    if np.isnan(before) or np.isnan(after):
        return [f"{what} is not defined on these images"]
    return [f"{what} falls from {before:.4f} to {after:.4f}, by more than {LARGEST_FALL:g}"]


def _macro(float32: Answers, int8: Answers, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Mean ROC AUC of each class against the rest, of both; over the classes that validation has."""
    there = [number for number in range(float32.shape[1]) if 0 < (labels == number).sum() < len(labels)]
    both = [[roc_auc(answers[:, number], labels == number) for number in there] for answers in (float32, int8)]
    return float(np.mean(both[0])), float(np.mean(both[1]))


def _changed(count: int, whole: int, what: str = "predicted classes") -> str:
    return f"{count:,} of {whole:,} {what}"
